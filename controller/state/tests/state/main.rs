//! The state from outside: every rule of `apply`, random commands, and whole clusters in a simulation.

mod apply;
mod cluster;
mod deletion;
mod properties;
mod schedule;
mod simulation;
mod status;
mod support;
mod token;
