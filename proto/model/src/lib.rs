//! What objects mean: read, default, validate; quantities, selectors, names.
//!
//! Pure: no I/O, no clock, no randomness. What always holds: no input panics.

pub mod image;
mod kind;
pub mod name;
pub mod object;
pub mod quantity;
mod schema;
pub mod selector;
pub mod template_hash;
pub mod unknown;
pub mod write;

pub use kind::{Kind, KindError};
