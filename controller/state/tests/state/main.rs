//! The state from outside: every rule of `apply`, random commands, and whole clusters in a simulation.

// The lint's exception for tests ends at their helpers; here everything is test.
#![allow(clippy::unwrap_used)]

mod apply;
mod cluster;
mod deletion;
mod fencing;
mod finalizers;
mod history;
mod level;
mod properties;
mod rbac;
mod restore;
mod revoke;
mod schedule;
mod simulation;
mod status;
mod support;
mod token;
