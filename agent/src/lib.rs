//! The node process: session, pods, images, volumes, network.
