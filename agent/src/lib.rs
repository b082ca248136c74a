//! The node process: session, pods, images, volumes, network.

pub mod image;
pub mod network;
