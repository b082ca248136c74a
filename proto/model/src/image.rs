//! References of images: `nginx`, `registry.example.com:5000/team/app:1.2@sha256:...`.

/// Longest name of a repository, as registries have it.
const NAME_MAX: usize = 255;

/// The parts of a reference, as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference<'a> {
    /// Registry, if one was written: `registry.example.com:5000`.
    pub registry: Option<&'a str>,
    /// Repository: `team/app`.
    pub repository: &'a str,
    /// Tag, if one was written.
    pub tag: Option<&'a str>,
    /// Digest, if one was written: `sha256:...`.
    pub digest: Option<&'a str>,
}

/// Takes a reference apart; an error says what is wrong.
pub fn parse(text: &str) -> Result<Reference<'_>, String> {
    if text.is_empty() {
        return Err("must not be empty".to_owned());
    }
    if text.trim() != text {
        return Err("must not begin or end with white space".to_owned());
    }
    if text.contains("://") {
        return Err(format!("`{}` is a URL; an image has no scheme", short(text)));
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    if let Some(digest) = digest {
        let hex = digest
            .strip_prefix("sha256:")
            .map(|hex| (hex, 64))
            .or(digest.strip_prefix("sha512:").map(|hex| (hex, 128)));
        let good = hex.is_some_and(|(hex, len)| {
            hex.len() == len
                && hex
                    .bytes()
                    .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        });
        if !good {
            return Err(format!(
                "`{}` is not a digest such as sha256: and 64 hexadecimal digits",
                short(digest)
            ));
        }
    }
    // The first part is a registry when it cannot be part of a repository's name: that is every tool's rule.
    let (registry, path) = match rest.split_once('/') {
        Some((first, path)) if first.contains(['.', ':']) || first == "localhost" => (Some(first), path),
        _ => (None, rest),
    };
    if let Some(registry) = registry {
        host(registry)?;
    }
    let (repository, tag) = match path.split_once(':') {
        Some((repository, tag)) => (repository, Some(tag)),
        None => (path, None),
    };
    if let Some(tag) = tag {
        let first = tag
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let rest = tag
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
        if !first || !rest || tag.len() > 128 {
            return Err(format!(
                "`{}` is not a tag: letters, digits, `_`, `.`, `-`, at most 128",
                short(tag)
            ));
        }
    }
    if repository.is_empty() || repository.len() > NAME_MAX {
        return Err(format!("`{}` has no valid repository name", short(text)));
    }
    for part in repository.split('/') {
        if !component(part) {
            let upper = if part.bytes().any(|byte| byte.is_ascii_uppercase()) {
                "; upper case is not allowed"
            } else {
                ""
            };
            return Err(format!("`{}` is not a repository name{upper}", short(repository)));
        }
    }
    Ok(Reference {
        registry,
        repository,
        tag,
        digest,
    })
}

/// Lower case letters and digits, between them `.`, `_`, `__` or any number of `-`.
fn component(part: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    part.starts_with(alphanumeric)
        && part.ends_with(alphanumeric)
        && part.chars().all(|c| alphanumeric(c) || "._-".contains(c))
        && part
            .split(alphanumeric)
            .all(|gap| matches!(gap, "" | "." | "_" | "__") || gap.bytes().all(|byte| byte == b'-'))
}

fn host(registry: &str) -> Result<(), String> {
    let bad = || format!("`{}` is not a registry's host and port", short(registry));
    // An IPv6 address stands in brackets.
    let (name, port) = match registry.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or_else(bad)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| bad())?;
            ("", port)
        }
        None => match registry.split_once(':') {
            Some((name, _)) => (name, &registry[name.len()..]),
            None => (registry, ""),
        },
    };
    if !port.is_empty() {
        let number = port.strip_prefix(':').and_then(|port| port.parse::<u16>().ok());
        number.filter(|port| *port > 0).ok_or_else(bad)?;
    }
    let label = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    if !registry.starts_with('[') && !name.split('.').all(label) {
        return Err(bad());
    }
    Ok(())
}

fn short(text: &str) -> String {
    text.chars().take(100).flat_map(char::escape_default).collect()
}

/// The policy that Kubernetes gives an image without one: what may move is asked for again.
pub fn default_pull_policy(image: &str) -> &'static str {
    match parse(image) {
        Ok(Reference {
            tag: None | Some("latest"),
            digest: None,
            ..
        }) => "Always",
        _ => "IfNotPresent",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_taken_apart() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let text = format!("registry.example.com:5000/team/app:1.2@{digest}");
        let parts = parse(&text).unwrap();
        assert_eq!(parts.registry, Some("registry.example.com:5000"));
        assert_eq!(
            (parts.repository, parts.tag, parts.digest),
            ("team/app", Some("1.2"), Some(digest.as_str()))
        );
        assert_eq!(parse("nginx").unwrap().repository, "nginx");
        assert_eq!(parse("localhost/app").unwrap().registry, Some("localhost"));
        assert_eq!(parse("[::1]:5000/app").unwrap().registry, Some("[::1]:5000"));
        assert_eq!(parse("team/app:1").unwrap().registry, None);
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for text in [
            "",
            " nginx",
            "Nginx",
            "nginx:",
            "nginx:a b",
            "https://x.io/nginx",
            "nginx@sha256:12",
            "a//b",
            "a/../b",
            "a/",
            "/a",
            "x.io:99999/a",
            "a:b:c",
            "a___b",
            "-a",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_may_move_is_pulled_always() {
        assert_eq!(default_pull_policy("nginx"), "Always");
        assert_eq!(default_pull_policy("nginx:latest"), "Always");
        assert_eq!(default_pull_policy("nginx:1.27"), "IfNotPresent");
        assert_eq!(
            default_pull_policy(&format!("nginx@sha256:{}", "a".repeat(64))),
            "IfNotPresent"
        );
    }
}
