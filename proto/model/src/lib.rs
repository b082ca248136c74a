//! What objects mean: read, default, validate; quantities, selectors, names.
//!
//! Pure: no I/O, no clock, no randomness. Whoever reads a manifest starts at [`read::manifests`]; the API server takes
//! objects that came over the wire through [`unknown::fields`], [`default::object`] and [`validate::object`], in this order.
//! What always holds: no input panics, no recursion goes deeper than [`read::DEPTH_MAX`], and nothing that was written in
//! a manifest is dropped without a refusal that names its place.

pub mod at_most_once;
pub mod default;
pub mod difference;
pub mod image;
mod kind;
pub mod merge;
pub mod name;
pub mod object;
pub mod patch;
pub mod quantity;
pub mod read;
mod schema;
pub mod selector;
pub mod template_hash;
mod time;
pub mod unknown;
pub mod uses;
pub mod validate;
pub mod write;

pub use kind::{Kind, KindError};
