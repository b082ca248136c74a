//! The services, generated from schema/*.proto for tonic.
