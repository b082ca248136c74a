//! Compiles the services of `schema/*.proto`; objects and commands are those of `proto`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=../schema");
    let files = ["api.proto", "agent.proto", "raft.proto", "peer.proto"];
    let descriptors = protox::compile(files, ["../schema"])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(
        out.join("descriptors.bin"),
        prost::Message::encode_to_vec(&descriptors),
    )?;
    tonic_prost_build::configure()
        .btree_map(".")
        .compile_well_known_types(true)
        .extern_path(".google.protobuf", "::pbjson_types")
        .extern_path(".bulkhead.v1", "::proto::v1")
        .extern_path(".bulkhead.state.v1", "::proto::state::v1")
        // Tokens are not to come into a log: `secret.rs` has its own.
        .skip_debug([
            ".bulkhead.rpc.v1.CreateServiceAccountTokenResponse",
            ".bulkhead.rpc.v1.PodTokenResponse",
        ])
        .compile_fds(descriptors)?;
    Ok(())
}
