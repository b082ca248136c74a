//! The node process: session, pods, images, volumes, network.

pub mod network;
