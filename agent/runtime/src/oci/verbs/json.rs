//! Files of JSON that a command line names: read, and mended where the specification takes what our types do not.

use std::fs::File;
use std::io;
use std::path::Path;

use oci_spec::runtime::Capability;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::super::{Log, OciError, refused};

/// Largest configuration: the largest seccomp profiles are some 100 KiB.
const BYTES_MAX: u64 = 16 << 20;

/// Room for one of an engine's, so that it is read at once.
const ROOM: usize = 64 << 10;

pub(super) fn read<T: DeserializeOwned>(path: &Path, log: &Log) -> Result<T, OciError> {
    parse(&text(path)?, path, log)
}

pub(super) fn text(path: &Path) -> Result<Vec<u8>, OciError> {
    let file = File::open(path).map_err(|source| OciError::File {
        action: "read",
        path: path.to_owned(),
        source,
    })?;
    text_from(file, path)
}

pub(super) fn read_from<T: DeserializeOwned>(
    from: impl io::Read,
    path: &Path,
    log: &Log,
) -> Result<T, OciError> {
    parse(&text_from(from, path)?, path, log)
}

fn text_from(from: impl io::Read, path: &Path) -> Result<Vec<u8>, OciError> {
    let mut text = Vec::with_capacity(ROOM);
    io::Read::read_to_end(&mut io::Read::take(from, BYTES_MAX + 1), &mut text).map_err(|source| {
        OciError::File {
            action: "read",
            path: path.to_owned(),
            source,
        }
    })?;
    if text.len() as u64 > BYTES_MAX {
        return Err(refused(format!(
            "{} is larger than {BYTES_MAX} bytes",
            path.display()
        )));
    }
    Ok(text)
}

pub(super) fn parse<T: DeserializeOwned>(text: &[u8], path: &Path, log: &Log) -> Result<T, OciError> {
    let malformed = |source| OciError::Json {
        path: path.to_owned(),
        source,
    };
    // Nearly all are read at once, and only this error knows its line.
    let first = match serde_json::from_slice(text) {
        Ok(parsed) => return Ok(parsed),
        Err(error) => error,
    };
    let Ok(mut value) = serde_json::from_slice::<Value>(text) else {
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
        log.warn(&format!(
            "capability ignored: no variant for {name} in this kernel's list"
        ));
    }
    Ok(parsed)
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

#[cfg(test)]
mod tests {
    use oci_spec::runtime::Process;

    use super::*;

    #[test]
    fn what_the_types_lack_is_mended_and_the_rest_refused() {
        let log = Log {
            path: None,
            json: false,
            debug: false,
        };
        let parse = |text: &str| read_from::<Process>(text.as_bytes(), Path::new("p"), &log);
        let read = parse(
            r#"{"cwd": "/", "args": ["x"], "capabilities": {"bounding": ["CAP_KILL", "CAP_NOPE", "NOPE"]},
                "scheduler": {"policy": "SCHED_BATCH", "flags": ["SCHED_FLAG_RESET_ON_FORK"]}}"#,
        )
        .unwrap();
        let bounding = read.capabilities().as_ref().unwrap().bounding().clone().unwrap();
        assert_eq!(bounding, [Capability::Kill].into());
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
        ] {
            assert!(matches!(parse(text), Err(OciError::Json { .. })), "{text}");
        }
    }
}
