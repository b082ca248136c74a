//! A configuration from its bytes: its size, its form, and what of it can be checked before anything is made.

use std::path::Path;

use oci_spec::runtime::Spec;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{OciError, hooks, refused};
use crate::container;

/// Largest configuration: the largest seccomp profiles are some 100 KiB.
pub const CONFIG_BYTES_MAX: usize = 16 << 20;

/// Reads a configuration as `create` does; what no container could be made from is refused by its field. `path` is what
/// an error calls it.
pub fn read_config(text: &[u8], path: &Path) -> Result<Spec, OciError> {
    let config: Spec = parse(text, path)?;
    check(&config)?;
    Ok(config)
}

/// Any of the files that callers give: a configuration, a process, resources.
pub(super) fn parse<T: DeserializeOwned>(text: &[u8], path: &Path) -> Result<T, OciError> {
    if text.len() > CONFIG_BYTES_MAX {
        return Err(refused(format!(
            "{} is larger than {CONFIG_BYTES_MAX} bytes",
            path.display()
        )));
    }
    let malformed = |source| OciError::Json {
        path: path.to_owned(),
        source,
    };
    if !contains(text, b"\"SCHED_FLAG_") {
        return serde_json::from_slice(text).map_err(malformed);
    }
    let mut value: Value = serde_json::from_slice(text).map_err(malformed)?;
    for place in ["/process/scheduler/flags", "/scheduler/flags"] {
        if let Some(Value::Array(flags)) = value.pointer_mut(place) {
            flags.iter_mut().for_each(rename_flag);
        }
    }
    serde_json::from_value(value).map_err(malformed)
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window == word)
}

/// Two flags of the scheduler are called otherwise in the specification (config.md, Linux Process, 1.2) than in the types
/// that we read it with.
fn rename_flag(flag: &mut Value) {
    let ours = match flag.as_str() {
        Some("SCHED_FLAG_RESET_ON_FORK") => "SCHED_RESET_ON_FORK",
        Some("SCHED_FLAG_DL_OVERRUN") => "SCHED_FLAG_D_L_OVERRUN",
        _ => return,
    };
    *flag = ours.into();
}

/// What we would have to ignore is refused.
fn check(config: &Spec) -> Result<(), OciError> {
    // runtime-spec 1.2, config.md, Specification version: "MUST be in SemVer v2.0.0 format".
    let version = config.version();
    let mut numbers = version.split(['-', '+']).next().unwrap_or_default().split('.');
    let major = numbers.next();
    let sane = numbers
        .by_ref()
        .take(2)
        .filter(|part| part.parse::<u32>().is_ok())
        .count()
        == 2;
    if major != Some("1") || !sane || numbers.next().is_some() {
        return Err(refused(format!(
            "ociVersion: {version:?} is not a version that this runtime knows (1.x.y)"
        )));
    }
    if config.process().is_none() {
        return Err(refused("process: a container needs one"));
    }
    hooks::check(config)?;
    Ok(container::examine(config)?)
}

/// Whether a configuration asks for a user namespace, at a glance: before it is read in whole, as that would be done
/// twice. What is no configuration at all asks for none, and is refused when it is read.
pub fn asks_for_users(text: &[u8]) -> bool {
    #[derive(Default, Deserialize)]
    struct Glance {
        #[serde(default)]
        linux: Option<Linux>,
    }
    #[derive(Default, Deserialize)]
    struct Linux {
        #[serde(default)]
        namespaces: Option<Vec<Namespace>>,
    }
    #[derive(Default, Deserialize)]
    struct Namespace {
        #[serde(rename = "type", default)]
        typ: String,
    }
    let linux = serde_json::from_slice::<Glance>(text)
        .ok()
        .and_then(|glance| glance.linux);
    let namespaces = linux.and_then(|linux| linux.namespaces).unwrap_or_default();
    namespaces.iter().any(|one| one.typ == "user")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn versions_that_are_none_are_refused() {
        for (version, good) in [
            ("1.0.0", true),
            ("1.2.1+dev", true),
            ("1.0.2-dev", true),
            ("2.0.0", false),
            ("1.0", false),
            ("1.0.0.0", false),
            ("1.x.0", false),
            ("", false),
        ] {
            let mut config = Spec::default();
            config.set_version(version.to_owned());
            assert_eq!(check(&config).is_ok(), good, "{version:?}");
        }
    }

    #[test]
    fn only_the_schedulers_flags_are_renamed() {
        let word = "SCHED_FLAG_RESET_ON_FORK";
        let process = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": [word],
            "scheduler": {"policy": "SCHED_OTHER", "flags": [word, "SCHED_FLAG_DL_OVERRUN"]}});
        let path = Path::new("config.json");
        let text = json!({"ociVersion": "1.2.0", "process": process}).to_string();
        let config = read_config(text.as_bytes(), path).unwrap();
        let read = config.process().clone().unwrap();
        assert_eq!(read.args().as_deref(), Some(&[word.to_owned()][..]));
        assert_eq!(
            parse::<oci_spec::runtime::Process>(process.to_string().as_bytes(), path).unwrap(),
            read
        );
        assert_eq!(
            read.scheduler().as_ref().unwrap().flags().as_ref().unwrap().len(),
            2
        );
    }

    #[test]
    fn a_configuration_beyond_any_sense_is_refused() {
        let text = vec![b' '; CONFIG_BYTES_MAX + 1];
        let refused = read_config(&text, Path::new("config.json")).unwrap_err();
        assert!(refused.to_string().contains("larger than"), "{refused}");
    }
}
