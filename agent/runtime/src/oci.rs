//! The OCI runtime command line: `bulkhead-runtime create|start|state|kill|delete|run|exec|ps|list|pause|resume|update|
//! events|features|spec`, with the flags, exit codes and words that engines expect of runc. Where to start: `main`, then
//! `verbs`.

mod arguments;
mod config;
mod hooks;
mod notify;
mod rootless;
mod state;
mod verbs;

use std::ffi::OsString;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use arguments::Arguments;

pub use config::{CONFIG_BYTES_MAX, asks_for_users, read_config};
pub use state::{Record, Status, read_state};

/// Version of the OCI runtime specification that we implement.
pub const SPEC_VERSION: &str = "1.2.1";
/// The newest version whose configurations are taken as it means them; what it adds to `SPEC_VERSION` is here.
const SPEC_VERSION_MAX: &str = "1.3.0";
/// What is kept until the machine stops, of root; below it is the state of containers, as no caller says otherwise.
const RUN: &str = "/run/bulkhead";
/// Compiled seccomp filters, below it: the same profiles come again and again.
const FILTERS: &str = "seccomp-cache";
/// Exit code of a failed command; engines look at the text.
const FAILED: i32 = 1;
/// Of a verb that there is none of, and of an exec that did not come to its process: runc's.
const UNKNOWN: i32 = 3;
const EXEC_FAILED: i32 = 255;
const SIGKILL: i32 = nix::libc::SIGKILL;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OciError {
    /// Wrong use, or a configuration that cannot be.
    #[error("{0}")]
    Refused(String),
    /// There is no such container.
    #[error("container {id:?} does not exist")]
    NoContainer {
        /// Its id.
        id: String,
    },
    /// There is no such command.
    #[error("no command {verb:?}: see `bulkhead-runtime --help`")]
    NoVerb {
        /// What was said.
        verb: String,
    },
    /// An exec, which has exit codes of its own.
    #[error("exec failed")]
    Exec(#[source] Box<OciError>),
    /// A hook of the configuration.
    #[error("a hook stopped the container")]
    Hook(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A file.
    #[error("failed to {action} {}", .path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A file that is not the JSON it should be.
    #[error("{} is malformed", .path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// Another step.
    #[error("failed to {action}")]
    Step {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The container's process.
    #[error("unable to start container process")]
    Start(#[from] crate::container::StartError),
    /// A created container could not be started.
    #[error(transparent)]
    Release(#[from] crate::container::ReleaseError),
    /// The container's cgroup.
    #[error(transparent)]
    Cgroup(#[from] crate::cgroup::CgroupError),
    /// The container's class of service.
    #[error(transparent)]
    Rdt(#[from] crate::rdt::RdtError),
    /// systemd, asked for the container's scope.
    #[error(transparent)]
    Systemd(#[from] crate::systemd::SystemdError),
}

impl OciError {
    fn exit_code(&self) -> i32 {
        match self {
            OciError::NoVerb { .. } => UNKNOWN,
            OciError::Exec(error) => match &**error {
                OciError::Start(error) => error.exit_code().unwrap_or(EXEC_FAILED),
                _ => EXEC_FAILED,
            },
            _ => FAILED,
        }
    }
}

impl From<hooks::HookError> for OciError {
    fn from(error: hooks::HookError) -> Self {
        OciError::Hook(Box::new(error))
    }
}

fn refused(message: impl Into<String>) -> OciError {
    OciError::Refused(message.into())
}

/// What the global flags say.
struct Globals {
    /// Where containers are kept between two commands.
    root: PathBuf,
    /// Without root's rights.
    rootless: bool,
    log: Log,
}

/// Runs one command and returns its exit code.
pub fn main(arguments: Vec<OsString>) -> i32 {
    let mut log = Log {
        path: None,
        json: false,
        debug: false,
    };
    let result = Arguments::parse(arguments).and_then(|arguments| {
        log.configure(&arguments)?;
        let rootless = arguments.verb.as_deref() != Some("spec") && rootless::asked(&arguments)?;
        if let Some(other) = arguments
            .value("cgroup-manager")
            .filter(|name| !matches!(*name, "cgroupfs" | "systemd"))
        {
            return Err(refused(format!(
                "unknown cgroup manager {other:?}: cgroupfs and systemd are known"
            )));
        }
        let globals = Globals {
            root: root(&arguments, rootless),
            rootless,
            log: log.clone(),
        };
        globals.log.debug(&format!(
            "{} in {}",
            arguments.verb.as_deref().unwrap_or("-"),
            globals.root.display()
        ));
        let _held = verbs::fill_passed(&arguments)?;
        verbs::run(&globals, &arguments)
    });
    match result {
        Ok(code) => code,
        Err(error) => {
            log.error(&crate::monitor::chain(&error));
            error.exit_code()
        }
    }
}

/// As told; of root /run, of another user the directory that his session has for such things.
fn root(arguments: &Arguments, rootless: bool) -> PathBuf {
    if let Some(root) = arguments.value("root").filter(|root| !root.is_empty()) {
        return PathBuf::from(root);
    }
    run_directory(rootless).join("oci")
}

fn run_directory(rootless: bool) -> PathBuf {
    match rootless.then(rootless::run_directory).flatten() {
        Some(directory) => directory.join("bulkhead"),
        None => PathBuf::from(RUN),
    }
}

/// Where compiled seccomp filters are kept; none where there is no place for them: then each start compiles its own.
fn filters(globals: &Globals) -> Option<PathBuf> {
    let directory = run_directory(globals.rootless).join(FILTERS);
    // Nobody else may write there: who can, weakens filters.
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
    made.is_ok().then_some(directory)
}

/// Where words go beside standard error.
#[derive(Clone, Debug)]
struct Log {
    path: Option<PathBuf>,
    json: bool,
    debug: bool,
}

impl Log {
    fn configure(&mut self, arguments: &Arguments) -> Result<(), OciError> {
        self.path = arguments
            .value("log")
            .filter(|path| !path.is_empty())
            .map(PathBuf::from);
        self.debug = arguments.is("debug");
        self.json = match arguments.value("log-format") {
            None | Some("text" | "") => false,
            Some("json") => true,
            Some(other) => {
                return Err(refused(format!(
                    "unknown log format {other:?}: json and text are known"
                )));
            }
        };
        Ok(())
    }

    /// Last words, on standard error too: they become the engine's error text.
    fn error(&self, message: &str) {
        let line = self.line("error", message);
        self.append(&line);
        match (&self.path, self.json) {
            (None, true) => eprintln!("{line}"),
            _ => eprintln!("bulkhead-runtime: {message}"),
        }
    }

    fn warn(&self, message: &str) {
        let line = self.line("warning", message);
        self.append(&line);
        if self.path.is_none() {
            eprintln!("{line}");
        }
    }

    fn debug(&self, message: &str) {
        if self.debug {
            let line = self.line("debug", message);
            self.append(&line);
            if self.path.is_none() {
                eprintln!("{line}");
            }
        }
    }

    /// With `--log-format json` as containerd's shim reads it.
    fn line(&self, level: &str, message: &str) -> String {
        let time = format!("{:.0}", jiff::Timestamp::now());
        if self.json {
            serde_json::json!({ "level": level, "msg": message, "time": time }).to_string()
        } else {
            format!("time=\"{time}\" level={level} msg={message:?}")
        }
    }

    fn append(&self, line: &str) {
        let Some(path) = &self.path else {
            return;
        };
        let written = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
        if let Err(error) = written {
            eprintln!("failed to write log {}: {error}", path.display());
        }
    }
}
