//! A configuration from its bytes: its size, its form, and what of it can be checked before anything is made.

use std::path::Path;

use oci_spec::runtime::{Capability, Spec};
use serde::de::{DeserializeOwned, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::{OciError, hooks, refused};
use crate::container;

/// Largest configuration: the largest seccomp profiles are some 100 KiB.
pub const CONFIG_BYTES_MAX: usize = 16 << 20;

/// Reads a configuration as `create` does; what no container could be made from is refused by its field. `path` is what
/// an error calls it; `warn` is told what the specification wants logged and not refused.
pub fn read_config(text: &[u8], path: &Path, warn: &mut dyn FnMut(&str)) -> Result<Spec, OciError> {
    let mut config: Spec = parse(text, path, warn)?;
    let linux = config.linux_mut().as_mut();
    if let Some(rdt) = linux.and_then(|linux| linux.intel_rdt_mut().as_mut())
        && counts_as_before(text)
    {
        rdt.set_enable_monitoring(Some(true));
    }
    check(&config)?;
    Ok(config)
}

/// runtime-spec 1.2, config-linux.md, IntelRdt: `enableCMT` and `enableMBM`, for which 1.3 has one word. Our types spell
/// them in a way of their own.
fn counts_as_before(text: &[u8]) -> bool {
    let config: Value = serde_json::from_slice(text).unwrap_or_default(); // it has been read already
    let rdt = &config["linux"]["intelRdt"];
    rdt["enableCMT"] == true || rdt["enableMBM"] == true
}

/// Any of the files that callers give: a configuration, a process, resources. Mended where the specification takes what our
/// types do not.
pub(super) fn parse<T: DeserializeOwned>(
    text: &[u8],
    path: &Path,
    warn: &mut dyn FnMut(&str),
) -> Result<T, OciError> {
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
    // Nearly all are read at once, and only this error knows its line.
    let first = match serde_json::from_slice(text) {
        Ok(parsed) => return Ok(parsed),
        Err(error) => error,
    };
    // Of an error that mending could not help the first is the one to tell: it knows the field.
    let Ok(Unique(mut value)) = serde_json::from_slice(text) else {
        return Err(malformed(first));
    };
    let mut unknown = Vec::new();
    if !mend(&mut value, &mut unknown) {
        return Err(malformed(first));
    }
    let parsed = serde_json::from_value(value).map_err(malformed)?;
    // runtime-spec 1.2, config.md, Linux Process: what cannot be mapped to a capability "MUST be logged as a warning by the
    // runtime", which "SHOULD NOT fail".
    for name in unknown {
        warn(&format!(
            "capability ignored: no variant for {name} in this kernel's list"
        ));
    }
    Ok(parsed)
}

/// Any JSON in which no object has a name twice (runtime-spec 1.2, glossary.md, JSON): a `Value` alone would keep the last.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor).map(Unique)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Value;

    fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Unique(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some((name, Unique(value))) = entries.next_entry::<String, _>()? {
            if map.insert(name, value).is_some() {
                return Err(A::Error::custom("a name is there twice"));
            }
        }
        Ok(Value::Object(map))
    }
}

/// Adds a user where a process has none, takes out capabilities that nobody knows, and renames two flags of the scheduler, which are called otherwise in the
/// specification (config.md, Linux Process, 1.2) than in the types. Says whether that changed anything.
fn mend(value: &mut Value, unknown: &mut Vec<String>) -> bool {
    const NAMES: [(&str, &str); 2] = [
        ("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"),
        ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN"),
    ];
    // A configuration has its process in it; `exec --process` names one.
    let process = if value.get("process").is_some() {
        &mut value["process"]
    } else {
        value
    };
    let mut changed = false;
    if let Some(process) = process
        .as_object_mut()
        .filter(|process| process.contains_key("args"))
    {
        // As runc: root, unless told.
        process.entry("user").or_insert_with(|| {
            changed = true;
            serde_json::json!({ "uid": 0, "gid": 0 })
        });
    }
    let sets = process.get_mut("capabilities").and_then(Value::as_object_mut);
    for set in sets
        .into_iter()
        .flatten()
        .filter_map(|(_, set)| set.as_array_mut())
    {
        set.retain(|name| {
            let known = Capability::deserialize(name).is_ok();
            if let (false, Some(name)) = (known, name.as_str()) {
                changed = true;
                if !unknown.iter().any(|other| other == name) {
                    unknown.push(name.to_owned());
                }
                return false;
            }
            true
        });
    }
    let flags = process
        .pointer_mut("/scheduler/flags")
        .and_then(Value::as_array_mut);
    for flag in flags.into_iter().flatten() {
        if let Some((_, ours)) = NAMES.iter().find(|(name, _)| flag.as_str() == Some(name)) {
            *flag = Value::from(*ours);
            changed = true;
        }
    }
    changed
}

/// What we would have to ignore is refused.
fn check(config: &Spec) -> Result<(), OciError> {
    // runtime-spec 1.2, config.md, Specification version: "MUST be in SemVer v2.0.0 format".
    let version = config.version();
    if !is_known(version) {
        return Err(refused(format!(
            "ociVersion: {version:?} is not a version that this runtime knows (1.x.y)"
        )));
    }
    // config.md, Annotations: "Keys MUST NOT be an empty string". That values are strings is the type's.
    if config
        .annotations()
        .as_ref()
        .is_some_and(|all| all.contains_key(""))
    {
        return Err(refused("annotations: a key is empty"));
    }
    hooks::check(config)?;
    Ok(container::examine(config)?)
}

/// Whether a version is of major 1 and as semver.org, 2.0.0, 2 to 10, has it: no leading zeros, identifiers of letters, digits
/// and hyphens.
fn is_known(version: &str) -> bool {
    let identifiers = |text: &str, numeric: bool| {
        text.split('.').all(|one| {
            let letters = one
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
            let number = numeric && one.bytes().all(|byte| byte.is_ascii_digit());
            letters && !one.is_empty() && !(number && one.len() > 1 && one.starts_with('0'))
        })
    };
    let (version, build) = version
        .split_once('+')
        .map_or((version, None), |(a, b)| (a, Some(b)));
    let (core, before) = version
        .split_once('-')
        .map_or((version, None), |(a, b)| (a, Some(b)));
    let numbers: Vec<&str> = core.split('.').collect();
    numbers.len() == 3
        && numbers[0] == "1"
        && numbers.iter().all(|one| one.parse::<u32>().is_ok())
        && identifiers(core, true)
        && before.is_none_or(|text| identifiers(text, true))
        && build.is_none_or(|text| identifiers(text, false))
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
    use oci_spec::runtime::Process;

    use super::*;

    #[test]
    fn versions_that_are_none_are_refused() {
        for (version, good) in [
            ("1.0.0", true),
            ("1.2.1+dev", true),
            ("1.0.2-dev", true),
            ("1.0.0-rc5-dev.2+0.07", true),
            ("1.0.0-", false),
            ("1.0.0-a..b", false),
            ("1.0.0-01", false),
            ("1.0.0+a_b", false),
            ("1.02.0", false),
            ("1.+2.0", false),
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
    fn what_the_types_lack_is_mended_and_the_rest_refused() {
        let mut warnings = Vec::new();
        let mut parse = |text: &str| {
            parse::<Process>(text.as_bytes(), Path::new("p"), &mut |warning| {
                warnings.push(warning.to_owned());
            })
        };
        let read = parse(
            r#"{"cwd": "/", "args": ["SCHED_FLAG_RESET_ON_FORK"], "capabilities": {"bounding": ["CAP_KILL", "CAP_NOPE", "NOPE"]},
                "scheduler": {"policy": "SCHED_BATCH", "flags": ["SCHED_FLAG_RESET_ON_FORK"]}}"#,
        )
        .unwrap();
        let bounding = read.capabilities().as_ref().unwrap().bounding().clone().unwrap();
        assert_eq!(bounding, [Capability::Kill].into());
        assert_eq!(
            read.args().as_deref(),
            Some(&["SCHED_FLAG_RESET_ON_FORK".to_owned()][..])
        );
        assert_eq!(
            read.scheduler().as_ref().unwrap().flags().as_ref().unwrap().len(),
            1
        );
        for text in [
            "",
            "{",
            r#"{"cwd": 1, "args": ["x"]}"#,
            r#"{"args": ["x"], "cwd": "/", "capabilities": {"bounding": [1]}}"#,
            r#"{"args": ["x"], "cwd": "/", "scheduler": {"policy": "SCHED_BATCH", "flags": ["SCHED_NOPE"]}}"#,
            r#"{"args": ["x"], "cwd": "/", "capabilities": {"bounding": ["CAP_NOPE"]}, "cwd": "/b"}"#,
        ] {
            assert!(matches!(parse(text), Err(OciError::Json { .. })), "{text}");
        }
        assert_eq!(warnings.len(), 2, "{warnings:?}");
    }

    #[test]
    fn counters_are_asked_for_in_old_words_and_new() {
        for (field, value, counts) in [
            ("enableCMT", true, true),
            ("enableMBM", true, true),
            ("enableMonitoring", true, true),
            ("enableCMT", false, false),
            ("other", true, false),
        ] {
            let text =
                format!(r#"{{"ociVersion": "1.2.0", "linux": {{"intelRdt": {{"{field}": {value}}}}}}}"#);
            let config = read_config(text.as_bytes(), Path::new("c"), &mut |_| {}).unwrap();
            let linux = config.linux().as_ref().unwrap();
            let monitoring = linux.intel_rdt().as_ref().unwrap().enable_monitoring();
            assert_eq!(monitoring.unwrap_or(false), counts, "{field} {value}");
        }
    }

    #[test]
    fn a_configuration_beyond_any_sense_is_refused() {
        let text = vec![b' '; CONFIG_BYTES_MAX + 1];
        let refused = read_config(&text, Path::new("config.json"), &mut |_| {}).unwrap_err();
        assert!(refused.to_string().contains("larger than"), "{refused}");
    }
}
