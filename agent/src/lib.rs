//! The node process: session, pods, images, volumes, network.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod events;
pub mod image;
pub mod ledger;
pub mod network;
pub mod node;
pub mod pod;
pub mod settings;
