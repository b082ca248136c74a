//! The node process: what is to run here comes by the session, is written to the ledger, and is made true by one task for
//! each pod.
//!
//! `run` starts everything, `session` speaks with the controllers, `pods` keeps the pods' actors (`pod`), `calls` carries
//! out what clients ask of a node. `ledger` is what outlives the process, `image` and `network` are what pods are made
//! from. It knows nothing of how the cluster decides, and builds no container itself: that is the runtime's.
//!
//! Always: what is desired is in the ledger before an actor hears of it; the end of the agent ends no container; without
//! a controller the node goes on with what it knows.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod account;
mod calls;
mod configs;
mod desired;
mod durable;
pub mod events;
mod garbage;
mod health;
pub mod identity;
mod idmap;
pub mod image;
pub mod join;
pub mod ledger;
mod link;
mod metrics;
pub mod network;
pub mod node;
mod node_status;
pub mod pod;
mod pods;
mod renew;
pub mod run;
mod session;
pub mod settings;
mod wiring;
