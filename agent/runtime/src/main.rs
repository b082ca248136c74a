//! `bulkhead-runtime`: the pod monitor, and the OCI runtime command line.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use runtime::monitor;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    match arguments.as_slice() {
        // Before anything of a command line's size: what a monitor allocates here it keeps for its life.
        [verb, flag, directory] if verb == "monitor" && flag == "--dir" => {
            let directory = Path::new(directory).to_owned();
            drop(arguments);
            match monitor::run(&directory) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("bulkhead-runtime monitor: {}", monitor::chain(&error));
                    ExitCode::FAILURE
                }
            }
        }
        // A process's own code may be any; ours are small and not negative.
        _ => ExitCode::from(u8::try_from(runtime::oci::main(arguments)).unwrap_or(u8::MAX)),
    }
}
