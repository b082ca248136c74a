//! Names and uids that are decided without chance: from what they belong to.

use sha2::{Digest, Sha256};

/// A uid from parts that are unique together.
pub(crate) fn uid(parts: &[&str]) -> String {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest(parts)[..16]);
    model::name::uid(bytes)
}

/// `prefix` with a suffix of five letters and digits, cut so that it is still a name.
pub(crate) fn name(prefix: &str, parts: &[&str]) -> String {
    let mut bytes = [0; model::name::SUFFIX_LEN];
    let length = bytes.len();
    bytes.copy_from_slice(&digest(parts)[..length]);
    model::name::generate(prefix, bytes)
}

fn digest(parts: &[&str]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        // The length first: ["ab", "c"] and ["a", "bc"] differ.
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_run_together() {
        assert_ne!(uid(&["ab", "c"]), uid(&["a", "bc"]));
        assert_ne!(name("p-", &["ab", "c"]), name("p-", &["a", "bc"]));
    }

    #[test]
    fn a_long_prefix_still_makes_a_name() {
        assert!(name(&"a".repeat(253), &["x"]).len() <= 253);
    }
}
