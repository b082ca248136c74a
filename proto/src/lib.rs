//! The schema: every object and message, generated from schema/*.proto.
