//! The words of a command line: flags before and after the verb and the id, in one pass.

use std::collections::BTreeMap;
use std::ffi::OsString;

use super::{OciError, refused};

/// Flags with a value, in any command.
const VALUES: &[&str] = &[
    "root",
    "log",
    "log-format",
    "rootless",
    "criu",
    "bundle",
    "pid-file",
    "console-socket",
    "preserve-fds",
    "process",
    "format",
    "cwd",
    "env",
    "user",
    "apparmor",
    "process-label",
    "cap",
    "pidfd-socket",
    "resources",
    "interval",
    "additional-gids",
    "cgroup",
    "blkio-weight",
    "cpu-period",
    "cpu-quota",
    "cpu-burst",
    "cpu-share",
    "cpu-rt-period",
    "cpu-rt-runtime",
    "cpu-idle",
    "cpuset-cpus",
    "cpuset-mems",
    "memory",
    "memory-reservation",
    "memory-swap",
    "kernel-memory",
    "kernel-memory-tcp",
    "pids-limit",
    "l3-cache-schema",
    "mem-bw-schema",
    "image-path",
    "work-path",
    // crun's own.
    "cgroup-manager",
    "config",
    "regex",
];
/// Flags without.
const SWITCHES: &[&str] = &[
    "debug",
    "systemd-cgroup",
    "version",
    "help",
    "no-pivot",
    "no-new-keyring",
    "no-subreaper",
    "keep",
    "detach",
    "tty",
    "force",
    "all",
    "quiet",
    "stats",
    "no-new-privs",
    "ignore-paused",
    "leave-running",
    "file-locks",
];
const SHORT: &[(&str, &str)] = &[
    ("b", "bundle"),
    ("p", "process"),
    ("d", "detach"),
    ("t", "tty"),
    ("f", "force"),
    ("a", "all"),
    ("q", "quiet"),
    ("e", "env"),
    ("u", "user"),
    ("g", "additional-gids"),
    ("c", "cap"),
    ("r", "resources"),
    ("v", "version"),
    ("h", "help"),
];

/// The whole name of a flag: what `-f` stands for hangs on the verb.
fn long<'a>(name: &'a str, verb: Option<&str>) -> &'a str {
    match (name, verb) {
        ("f", Some("list" | "ps")) => return "format",
        ("f", Some("create" | "run")) => return "config",
        _ => {}
    }
    SHORT
        .iter()
        .find(|(short, _)| *short == name)
        .map_or(name, |(_, long)| long)
}

/// What was said.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    /// The verb, if any.
    pub(super) verb: Option<String>,
    /// What is no flag.
    pub(super) words: Vec<String>,
    values: BTreeMap<String, Vec<String>>,
}

impl Arguments {
    pub(super) fn parse(arguments: Vec<OsString>) -> Result<Self, OciError> {
        let mut parsed = Arguments::default();
        let mut rest = arguments.into_iter().map(|argument| {
            argument
                .into_string()
                .map_err(|argument| refused(format!("argument {argument:?} is not UTF-8")))
        });
        while let Some(argument) = rest.next() {
            let argument = argument?;
            // Of `exec ID PROGRAM ...` all from the program on is its own; `ps ID OPTIONS` likewise, but for `--format`.
            let own = matches!(parsed.verb.as_deref(), Some("exec" | "ps")) && !parsed.words.is_empty();
            let options = parsed.verb.as_deref() == Some("ps") && !argument.starts_with("--");
            if argument == "--" {
                parsed.words.extend(rest.collect::<Result<Vec<_>, _>>()?);
                break;
            }
            let is_program = own && (!argument.starts_with('-') || options || parsed.words.len() > 1);
            if is_program {
                parsed.words.push(argument);
                parsed.words.extend(rest.collect::<Result<Vec<_>, _>>()?);
                break;
            }
            let Some(flag) = argument
                .strip_prefix("--")
                .or_else(|| argument.strip_prefix('-'))
                .filter(|f| !f.is_empty())
            else {
                match parsed.verb {
                    None => parsed.verb = Some(argument),
                    Some(_) => parsed.words.push(argument),
                }
                continue;
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            let long = long(name, parsed.verb.as_deref());
            // `kill` has signals, which may look like `-9`, as its last word.
            if parsed.verb.as_deref() == Some("kill") && name.bytes().all(|byte| byte.is_ascii_digit()) {
                parsed.words.push(name.to_owned());
                continue;
            }
            // Before the verb it has a value; of `spec` it is a switch.
            let switch = long == "rootless" && parsed.verb.as_deref() == Some("spec");
            let value = if VALUES.contains(&long) && !switch {
                match value {
                    Some(value) => value,
                    None => rest
                        .next()
                        .ok_or_else(|| refused(format!("flag needs an argument: --{long}")))??,
                }
            } else if SWITCHES.contains(&long) || switch {
                value.unwrap_or_else(|| "true".to_owned())
            } else {
                return Err(refused(format!("flag provided but not defined: --{long}")));
            };
            parsed.values.entry(long.to_owned()).or_default().push(value);
        }
        Ok(parsed)
    }

    /// The last value of a flag.
    pub(super) fn value(&self, flag: &str) -> Option<&str> {
        self.values.get(flag)?.last().map(String::as_str)
    }

    /// Every value of a flag.
    pub(super) fn values(&self, flag: &str) -> &[String] {
        self.values.get(flag).map_or(&[], Vec::as_slice)
    }

    /// Whether a switch is on.
    pub(super) fn is(&self, flag: &str) -> bool {
        matches!(self.value(flag), Some("true" | "t" | "T" | "TRUE" | "True" | "1"))
    }

    /// A flag that is a number.
    pub(super) fn number<T: std::str::FromStr>(&self, flag: &str) -> Result<Option<T>, OciError> {
        let parse = |text: &str| {
            text.parse()
                .map_err(|_| refused(format!("invalid value {text:?} for flag --{flag}")))
        };
        self.value(flag).map(parse).transpose()
    }

    /// Whether as many words were given as the verb takes.
    pub(super) fn expect(&self, least: usize, most: usize) -> Result<(), OciError> {
        let verb = self.verb.as_deref().unwrap_or_default();
        match self.words.len() {
            count if count < least && least == 1 && most == 1 => Err(refused(format!(
                "{verb:?} requires exactly 1 argument: container id cannot be empty"
            ))),
            count if count < least => Err(refused(format!(
                "{verb:?} requires a minimum of {least} arguments"
            ))),
            count if count > most => Err(refused(format!(
                "{verb:?} requires at most {most} arguments, not {count}"
            ))),
            _ => Ok(()),
        }
    }

    /// The container's id, checked.
    pub(super) fn id(&self) -> Result<&str, OciError> {
        let Some(id) = self.words.first() else {
            return Err(refused("container id cannot be empty"));
        };
        crate::name::check(id).map_err(|reason| {
            // In crun's words where they fit.
            match id
                .chars()
                .find(|letter| !letter.is_ascii_alphanumeric() && !"_+-.".contains(*letter))
            {
                Some(letter) => refused(format!(
                    "invalid character `{letter}` in the ID {id:?}: it {reason}"
                )),
                None => refused(format!("invalid container id {id:?}: it {reason}")),
            }
        })?;
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, OciError> {
        Arguments::parse(line.split_whitespace().map(OsString::from).collect())
    }

    #[test]
    fn flags_stand_before_and_after_the_id() {
        for line in [
            "--root /r --log=l create --bundle /b --pid-file p ID",
            "--root=/r --log l create ID -b /b --pid-file=p",
        ] {
            let arguments = parse(line).unwrap();
            assert_eq!(arguments.verb.as_deref(), Some("create"));
            assert_eq!(arguments.id().unwrap(), "ID");
            assert_eq!(arguments.value("bundle"), Some("/b"));
            assert_eq!(
                (arguments.value("root"), arguments.value("log")),
                (Some("/r"), Some("l"))
            );
        }
    }

    #[test]
    fn what_follows_the_program_is_its_own() {
        let arguments = parse("exec -t ID --env A=b ls -l --root x").unwrap();
        assert_eq!(arguments.words, ["ID", "ls", "-l", "--root", "x"]);
        assert_eq!(arguments.values("env"), ["A=b"]);
        assert!(arguments.is("tty") && arguments.value("root").is_none());
    }

    #[test]
    fn a_short_flag_means_what_its_verb_says() {
        assert_eq!(parse("list -f json").unwrap().value("format"), Some("json"));
        assert!(parse("delete -f ID").unwrap().is("force"));
        assert_eq!(parse("run -f c.json ID").unwrap().value("config"), Some("c.json"));
        let ps = parse("ps ID -e -f").unwrap();
        assert_eq!(ps.words, ["ID", "-e", "-f"]);
        let ps = parse("ps ID --format json").unwrap();
        assert_eq!((ps.words.len(), ps.value("format")), (1, Some("json")));
    }

    #[test]
    fn bad_words_are_refused() {
        assert!(parse("state a b").unwrap().expect(1, 1).is_err());
        assert!(parse("state").unwrap().expect(1, 1).is_err());
        assert!(
            parse("update --cpu-quota x ID")
                .unwrap()
                .number::<i64>("cpu-quota")
                .is_err()
        );
        assert!(parse("create --frobnicate ID").is_err());
        assert!(parse("create --bundle").is_err());
        assert!(parse("create ../x").unwrap().id().is_err());
        assert!(parse("create").unwrap().id().is_err());
        assert_eq!(parse("kill ID -9").unwrap().words, ["ID", "9"]);
    }
}
