//! The OCI runtime command line: `bulkhead-runtime create|start|state|kill|delete|run|exec|ps|list|pause|resume|features|spec`,
//! with the flags, exit codes and words that engines expect of runc. Where to start: `main`, then `verbs`.

mod arguments;
mod state;
mod verbs;

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;

use arguments::Arguments;

/// Version of the OCI runtime specification that we implement.
pub const SPEC_VERSION: &str = "1.2.0";
/// State of root's containers, as no caller says otherwise.
const ROOT: &str = "/run/bulkhead/oci";
/// Exit code of a failed command; engines look at the text.
const FAILED: i32 = 1;

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
}

fn refused(message: impl Into<String>) -> OciError {
    OciError::Refused(message.into())
}

/// Runs one command and returns its exit code.
pub fn main(arguments: Vec<OsString>) -> i32 {
    let mut log = Log {
        path: None,
        json: false,
    };
    match run(arguments, &mut log) {
        Ok(code) => code,
        Err(error) => {
            log.error(&crate::monitor::chain(&error));
            FAILED
        }
    }
}

/// Where the last words go beside standard error.
struct Log {
    path: Option<PathBuf>,
    json: bool,
}

impl Log {
    /// One line; with `--log-format json` as containerd's shim reads it. Without a log file, plain on standard error,
    /// which becomes the engine's error text.
    fn error(&self, message: &str) {
        let line = if self.json {
            let time = jiff::Timestamp::now();
            serde_json::json!({ "level": "error", "msg": message, "time": format!("{time:.0}") }).to_string()
        } else {
            format!("level=error msg={message:?}")
        };
        if let Some(path) = &self.path {
            let written = OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
            if let Err(error) = written {
                eprintln!("failed to write log {}: {error}", path.display());
            }
        }
        match (&self.path, self.json) {
            (None, true) => eprintln!("{line}"),
            _ => eprintln!("bulkhead-runtime: {message}"),
        }
    }
}

fn run(arguments: Vec<OsString>, log: &mut Log) -> Result<i32, OciError> {
    let arguments = Arguments::parse(arguments)?;
    log.path = arguments.value("log").map(PathBuf::from);
    log.json = match arguments.value("log-format") {
        None | Some("text") => false,
        Some("json") => true,
        Some(other) => {
            return Err(refused(format!(
                "unknown log format {other:?}: json and text are known"
            )));
        }
    };
    let root = arguments
        .value("root")
        .map_or_else(|| PathBuf::from(ROOT), PathBuf::from);
    verbs::run(&root, &arguments)
}
