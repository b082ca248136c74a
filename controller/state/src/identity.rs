//! Names and uids that are decided without chance: from what they belong to.

use sha2::{Digest, Sha256};

/// A uid in the form of RFC 9562, version 8 (custom), from parts that are unique together.
pub(crate) fn uid(parts: &[&str]) -> String {
    let digest = digest(parts);
    let mut bytes = [0_u8; 16];
    bytes.copy_from_slice(&digest[..16]);
    bytes[6] = 0x80 | (bytes[6] & 0x0f);
    bytes[8] = 0x80 | (bytes[8] & 0x3f);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

/// A suffix of five letters and digits, as Kubernetes appends to names: without vowels, so that no words come out.
pub(crate) fn suffix(parts: &[&str]) -> String {
    letters(&digest(parts), 5)
}

/// As [`suffix`], ten long.
pub(crate) fn long_suffix(parts: &[&str]) -> String {
    letters(&digest(parts), 10)
}

fn letters(digest: &[u8; 32], length: usize) -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    digest
        .iter()
        .take(length)
        .map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]))
        .collect()
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
    fn uids_have_the_form_of_version_8() {
        let uid = uid(&["a", "b"]);
        assert_eq!(uid.len(), 36);
        assert_eq!(&uid[14..15], "8");
        assert!(["8", "9", "a", "b"].contains(&&uid[19..20]));
    }

    #[test]
    fn parts_do_not_run_together() {
        assert_ne!(uid(&["ab", "c"]), uid(&["a", "bc"]));
        assert_ne!(suffix(&["ab", "c"]), suffix(&["a", "bc"]));
    }
}
