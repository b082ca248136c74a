//! What the fuzzers call: checks that hold of any bytes. The same files are modules of the crates' tests.

#[path = "../../../agent/runtime/tests/filter/mod.rs"]
pub mod filter;
pub mod layer;
pub mod runtime;

// The store's own code for one layer: the rest of the agent, most of which is RPC, would be instrumented for nothing.
#[path = "../../../agent/src/image/archive.rs"]
mod archive;
#[path = "../../../agent/src/image/digest.rs"]
mod digest;
#[path = "../../../agent/src/image/entry.rs"]
mod entry;
#[path = "../../../agent/src/image/layer.rs"]
mod store;
#[path = "../../../agent/src/image/unpack.rs"]
mod unpack;

/// Unpacks a layer as the store does.
pub fn unpack_layer(root: std::os::fd::BorrowedFd<'_>, bytes: &[u8]) -> Result<u64, String> {
    match store::read(root, bytes, bytes.len() as u64, true) {
        Ok(layer) => {
            assert_eq!(
                layer.blob,
                digest::Digest::of(bytes),
                "all of a layer is digested"
            );
            assert_eq!(layer.diff_id.hex().len(), 64);
            Ok(layer.unpacked.bytes)
        }
        Err(error) => Err(error.to_string()),
    }
}
