//! What names may be: objects, labels, ports, variables; and names made from given random bytes.

/// Longest label of DNS, RFC 1123.
pub const LABEL_MAX: usize = 63;
/// Longest name of DNS, RFC 1123.
pub const SUBDOMAIN_MAX: usize = 253;
/// Longest prefix of a generated name: prefix and suffix are a label together.
pub const GENERATED_PREFIX_MAX: usize = LABEL_MAX - SUFFIX_LEN;
/// Length of a generated suffix.
pub const SUFFIX_LEN: usize = 5;
/// Kubernetes' alphabet of suffixes: no vowels and nothing that looks like one, so that no word appears.
const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Why a text is no such name; says what is allowed.
pub type NameResult = Result<(), String>;

fn edge(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// Of a text that people should find again in a message: not megabytes of it.
pub(crate) fn shown(text: &str) -> String {
    let mut cut: String = text
        .chars()
        .take(LABEL_MAX + 1)
        .flat_map(char::escape_default)
        .collect();
    if text.chars().count() > LABEL_MAX + 1 {
        cut.push_str("...");
    }
    cut
}

/// Something, and not too long.
fn within(text: &str, max: usize) -> NameResult {
    match text.len() {
        0 => Err("must not be empty".to_owned()),
        length if length > max => Err(format!("must be at most {max} characters, is {length}")),
        _ => Ok(()),
    }
}

/// A label of DNS: names of namespaces, containers, volumes.
pub fn dns1123_label(text: &str) -> NameResult {
    within(text, LABEL_MAX)?;
    let bytes = text.as_bytes();
    let inner = bytes.iter().all(|byte| edge(*byte) || *byte == b'-');
    if inner && edge(bytes[0]) && edge(bytes[bytes.len() - 1]) {
        return Ok(());
    }
    Err(format!(
        "`{}` is not a DNS-1123 label: lower case letters, digits and `-`, a letter or digit at both ends{}",
        shown(text),
        fixed(text, dns1123_label)
    ))
}

/// A name of DNS, labels joined by dots: names of most objects.
pub fn dns1123_subdomain(text: &str) -> NameResult {
    within(text, SUBDOMAIN_MAX)?;
    let label = |part: &str| {
        let bytes = part.as_bytes();
        !bytes.is_empty()
            && bytes.iter().all(|byte| edge(*byte) || *byte == b'-')
            && edge(bytes[0])
            && edge(bytes[bytes.len() - 1])
    };
    if text.split('.').all(label) {
        return Ok(());
    }
    Err(format!(
        "`{}` is not a DNS-1123 name: lower case letters, digits, `-` and `.`, a letter or digit at both ends of each part{}",
        shown(text),
        fixed(text, dns1123_subdomain)
    ))
}

/// What a person would have written instead, if a small change is enough.
fn fixed(text: &str, check: fn(&str) -> NameResult) -> String {
    if !text.is_ascii() || text.len() > SUBDOMAIN_MAX {
        return String::new();
    }
    let lower = text.to_ascii_lowercase().replace(['_', ' '], "-");
    let trimmed = lower.trim_matches(['-', '.']);
    // Without this, check and hint would call each other for what no change helps.
    let legal = trimmed
        .bytes()
        .all(|byte| edge(byte) || byte == b'-' || byte == b'.');
    if trimmed != text && legal && !trimmed.is_empty() && !trimmed.contains("..") && check(trimmed).is_ok() {
        format!("; for example `{trimmed}`")
    } else {
        String::new()
    }
}

/// Names of roles and bindings: whatever can stand between the slashes of a URL's path, as `system:node`.
pub fn path_segment(text: &str) -> NameResult {
    within(text, SUBDOMAIN_MAX)?;
    if text == "." || text == ".." || text.contains(['/', '%']) || text.chars().any(char::is_control) {
        return Err(format!(
            "`{}` must not be `.` or `..`, nor have `/`, `%` or control characters in it",
            shown(text)
        ));
    }
    Ok(())
}

/// Key of a label or annotation: `app`, `example.com/role`.
pub fn label_key(text: &str) -> NameResult {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    if let Some(prefix) = prefix {
        dns1123_subdomain(prefix).map_err(|reason| format!("the part before `/`: {reason}"))?;
    }
    if name.is_empty() {
        return Err("the name of a key must not be empty".to_owned());
    }
    qualified(name)
}

/// Value of a label: empty, or like the name of a key.
pub fn label_value(text: &str) -> NameResult {
    if text.is_empty() { Ok(()) } else { qualified(text) }
}

fn qualified(text: &str) -> NameResult {
    if text.len() > LABEL_MAX {
        return Err(format!(
            "must be at most {LABEL_MAX} characters, is {}",
            text.len()
        ));
    }
    let bytes = text.as_bytes();
    let inner = bytes
        .iter()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte));
    if inner && bytes[0].is_ascii_alphanumeric() && bytes[bytes.len() - 1].is_ascii_alphanumeric() {
        return Ok(());
    }
    Err(format!(
        "`{}` may have letters, digits, `-`, `_` and `.` only, with a letter or digit at both ends",
        shown(text)
    ))
}

/// Name of an environment variable. Kubernetes 1.34: any printable ASCII but `=`.
pub fn env(text: &str) -> NameResult {
    if text.is_empty() {
        return Err("must not be empty".to_owned());
    }
    if text
        .bytes()
        .all(|byte| (b' '..=b'~').contains(&byte) && byte != b'=')
    {
        return Ok(());
    }
    Err(format!(
        "`{}` is not a name of a variable: printable ASCII without `=`",
        shown(text)
    ))
}

/// Name of a port, an IANA service name: at most 15, lower case letters, digits, single `-`, at least one letter.
pub fn port(text: &str) -> NameResult {
    let bytes = text.as_bytes();
    let ok = !bytes.is_empty()
        && bytes.len() <= 15
        && bytes.iter().all(|byte| edge(*byte) || *byte == b'-')
        && edge(bytes[0])
        && edge(bytes[bytes.len() - 1])
        && bytes.iter().any(u8::is_ascii_lowercase)
        && !text.contains("--");
    if ok {
        return Ok(());
    }
    Err(format!(
        "`{}` is not a name of a port: at most 15 lower case letters, digits and single `-`, at least one letter",
        shown(text)
    ))
}

/// Key of a config map: a file name.
pub fn config_key(text: &str) -> NameResult {
    within(text, SUBDOMAIN_MAX)?;
    if !text
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    {
        return Err(format!(
            "`{}` may have letters, digits, `-`, `_` and `.` only",
            shown(text)
        ));
    }
    if text == "." || text.starts_with("..") {
        return Err(format!(
            "must not be `.` or begin with `..`, is `{}`",
            shown(text)
        ));
    }
    Ok(())
}

/// A uid as the server makes them.
pub fn is_uid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
        })
}

/// A uid, RFC 9562 version 4, from given random bytes.
pub fn uid(random: [u8; 16]) -> String {
    let mut bytes = random;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if [4, 6, 8, 10].contains(&index) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// Five characters from given random bytes, for the end of a generated name. (The last bytes of the alphabet are a little
/// less likely: collisions are refused by the state, so that even spread is not needed.)
pub fn suffix(random: [u8; SUFFIX_LEN]) -> String {
    random
        .iter()
        .map(|byte| char::from(SUFFIX_ALPHABET[usize::from(*byte) % SUFFIX_ALPHABET.len()]))
        .collect()
}

/// `prefix` and a suffix, together no longer than a label: a pod's name is its hostname.
pub fn generate(prefix: &str, random: [u8; SUFFIX_LEN]) -> String {
    let mut end = prefix.len().min(GENERATED_PREFIX_MAX);
    while !prefix.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{}", &prefix[..end], suffix(random))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_judged_as_kubernetes_judges_them() {
        for name in ["web", "a", "0", "web-1", "a--b"] {
            assert_eq!(dns1123_label(name), Ok(()), "{name}");
        }
        for name in ["", "Web", "-a", "a-", "a.b", "a_b", "\u{e9}", &"a".repeat(64)] {
            assert!(dns1123_label(name).is_err(), "{name}");
        }
        assert_eq!(dns1123_subdomain("a.b-c.d"), Ok(()));
        assert!(dns1123_subdomain("a..b").is_err());
        assert_eq!(label_key("app.kubernetes.io/name"), Ok(()));
        assert!(label_key("a/b/c").is_err());
        assert!(label_key("/b").is_err());
        assert_eq!(label_value("v1.2_3"), Ok(()));
        assert!(label_value("a b").is_err());
        assert_eq!(port("http"), Ok(()));
        assert!(port("80").is_err());
        assert!(port("a--b").is_err());
        assert!(env("A=B").is_err());
        assert_eq!(env("my.var"), Ok(()));
        assert!(config_key("..data").is_err());
        assert_eq!(path_segment("system:node"), Ok(()));
        for name in ["", ".", "..", "a/b", "a%b", "a\n", &"a".repeat(254)] {
            assert!(path_segment(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_bad_name_comes_with_a_good_one() {
        assert!(
            dns1123_label("My_App")
                .unwrap_err()
                .ends_with("; for example `my-app`")
        );
    }

    #[test]
    fn made_names_are_valid() {
        assert!(is_uid(&uid([255; 16])));
        for byte in 0..=255 {
            assert_eq!(dns1123_label(&generate(&"x".repeat(80), [byte; 5])), Ok(()));
        }
    }
}
