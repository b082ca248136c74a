//! Compiles `schema/*.proto` without protoc: prost types, their JSON form, and the descriptors that strict reading walks.

use std::path::PathBuf;

use prost::Message;

const FILES: [&str; 6] = [
    "meta.proto",
    "pod.proto",
    "rbac.proto",
    "workload.proto",
    "core.proto",
    "state.proto",
];
/// Written by hand in `scalar.rs`, as bare scalars.
const SCALARS: [&str; 2] = [".bulkhead.v1.Quantity", ".bulkhead.v1.IntOrString"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=schema");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let descriptors = protox::compile(FILES, ["schema"])?;
    let bytes = descriptors.encode_to_vec();
    std::fs::write(out.join("descriptors.bin"), &bytes)?;
    tonic_prost_build::configure()
        .btree_map(".")
        .compile_well_known_types(true)
        .extern_path(".google.protobuf", "::pbjson_types")
        // Values of secrets are not to come into a log: `secret.rs` has its own.
        .skip_debug([".bulkhead.v1.Secret"])
        .compile_fds(descriptors)?;
    pbjson_build::Builder::new()
        .register_descriptors(&bytes)?
        .btree_map(["."])
        .exclude(SCALARS)
        .build(&[".bulkhead.v1", ".bulkhead.state.v1"])?;
    Ok(())
}
