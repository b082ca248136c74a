//! Backups as files: the key that seals them, their format, and whether one is whole.

pub(crate) mod check;
pub(crate) mod format;
pub(crate) mod key;
pub(crate) mod target;
