//! Names of containers: they become file names, cgroup names and words on command lines.

/// Longest container id, so that it fits a file name with our suffixes.
const BYTES_MAX: usize = 200;

/// Accepts letters, digits and `_ + - .`, not beginning with a dot or a dash; else says what is wrong.
pub fn check(id: &str) -> Result<(), &'static str> {
    if id.is_empty() {
        return Err("is empty");
    }
    if id.len() > BYTES_MAX {
        return Err("is longer than 200 bytes");
    }
    if id.starts_with(['.', '-']) {
        return Err("begins with a dot or a dash");
    }
    if !id
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'+' | b'-' | b'.'))
    {
        return Err("has characters other than letters, digits, '_', '+', '-' and '.'");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn ids_that_could_leave_their_directory_are_refused() {
        for id in ["", ".", "..", "a/b", "../x", "a\0", "-x", "a b", "\u{e4}"] {
            assert!(check(id).is_err(), "{id:?}");
        }
        for id in ["a", "web-1.2_x+y", "0123456789ab"] {
            assert!(check(id).is_ok(), "{id:?}");
        }
    }
}
