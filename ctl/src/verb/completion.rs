//! `ctl completion SHELL`: a completion script on standard output.

use crate::error::CtlError;

/// Arguments of `ctl completion`.
#[derive(clap::Args)]
pub(crate) struct Completion {
    /// Which shell
    shell: clap_complete::Shell,
}

/// Prints the script.
pub(crate) fn run(args: &Completion) -> Result<(), CtlError> {
    clap_complete::generate(args.shell, &mut crate::command(), "ctl", &mut std::io::stdout());
    Ok(())
}
