//! One file a verb: usage, arguments, `run` (ask, then print).

pub(crate) mod apply;
pub(crate) mod auth;
pub(crate) mod completion;
pub(crate) mod contexts;
pub(crate) mod cordon;
pub(crate) mod delete;
pub(crate) mod describe;
pub(crate) mod drain;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod get;
pub(crate) mod image;
pub(crate) mod inspect;
pub(crate) mod logs;
pub(crate) mod members;
pub(crate) mod rollout;
pub(crate) mod run;
pub(crate) mod scale;
pub(crate) mod token;
pub(crate) mod version;
pub(crate) mod wait;
pub(crate) mod why;
