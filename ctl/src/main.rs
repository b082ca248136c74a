//! `ctl`: what a person says to a cluster.
//!
//! One file a verb; each parses, asks, prints. Only `main` turns errors into exit codes: 0 done, 1 refused or failed,
//! 2 usage, 3 cannot reach the cluster, 4 timed out.

mod age;
mod backup;
mod bearer;
mod change;
mod cluster;
mod config;
mod dev;
mod error;
mod files;
mod output;
mod pods;
mod pruned;
mod rows;
mod selected;
mod target;
mod unified;
mod verb;
mod waiting;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::cluster::Cluster;
use crate::error::CtlError;
use crate::output::Output;

/// Runs containers across a cluster
#[derive(Parser)]
#[command(name = "ctl", version, disable_help_subcommand = true)]
struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Args)]
struct Global {
    /// Namespace of names that are given without one
    #[arg(short, long, global = true, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Which cluster of the configuration
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    /// The configuration [default: ~/.config/bulkhead/config.yaml]
    #[arg(long, global = true, env = "BULKHEAD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Verb {
    /// Create or update what manifests describe: all of it or nothing
    Apply(verb::apply::Apply),
    /// Show what an apply would change
    Diff(verb::diff::Diff),
    /// List objects
    Get(verb::get::Get),
    /// Show everything about an object, its events and its last words
    Describe(verb::describe::Describe),
    /// Delete objects and what they own
    Delete(verb::delete::Delete),
    /// Print a container's output
    Logs(verb::logs::Logs),
    /// Run a program in a container
    Exec(verb::exec::Exec),
    /// Run a single container
    Run(verb::run::Run),
    /// Set or remove labels
    Label(verb::label::Change),
    /// Set or remove annotations
    Annotate(verb::label::Change),
    /// Change an object in your editor
    Edit(verb::edit::Edit),
    /// Change what a patch says of an object
    Patch(verb::patch::Patch),
    /// Set the images of containers
    Set(verb::set::Set),
    /// Set how many replicas there are
    Scale(verb::scale::Scale),
    /// Show who changed an object, when, and what
    History(verb::history::History),
    /// Bring an earlier form of an object back
    Undo(verb::history::Undo),
    /// Follow, list, restart or take back the revisions of a Deployment
    Rollout(verb::rollout::Rollout),
    /// Wait until objects are in a condition
    Wait(verb::wait::Wait),
    /// Show what happened
    Events(verb::events::Events),
    /// Say why an object is not as it should be
    Why(verb::why::Why),
    /// Close nodes for new pods
    Cordon(verb::cordon::Cordon),
    /// Open nodes for new pods again
    Uncordon(verb::cordon::Uncordon),
    /// Close nodes and move their pods elsewhere
    Drain(verb::drain::Drain),
    /// Show each layer of a pod's isolation, as the kernel has it
    Inspect(verb::inspect::Inspect),
    /// Import and list images
    Image(verb::image::Image),
    /// Create tokens of service accounts
    Create(verb::create::Create),
    /// Create, list and revoke join tokens
    Token(verb::token::Token),
    /// Issue certificates for people, say who may do what
    Auth(verb::auth::Auth),
    /// List and remove controllers; back the cluster up and restore it
    Cluster(verb::members::ClusterVerb),
    /// Show and choose contexts
    Config(verb::contexts::ConfigVerb),
    /// Bring a whole cluster up on this machine, or remove it
    Dev(dev::Dev),
    /// Print a shell's completion script
    Completion(verb::completion::Completion),
    /// Print the versions of ctl and of the cluster
    Version(verb::version::Version),
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // `--help` and `--version` are answers; clap prints each to its own stream.
            let code = if error.use_stderr() { 2 } else { 0 };
            return match error.print() {
                Ok(()) => ExitCode::from(code),
                Err(_) => ExitCode::from(1),
            };
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: failed to start: {error}");
            return ExitCode::from(1);
        }
    };
    let mut output = Output::new();
    let result = runtime.block_on(run(arguments, &mut output));
    // A blocked read of standard input must not hold the process.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            for line in error.to_string().lines() {
                eprintln!("error: {line}");
            }
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(1))
        }
    }
}

async fn run(arguments: Arguments, out: &mut Output) -> Result<(), CtlError> {
    let Arguments { global, verb } = arguments;
    let path = config::path(global.config.as_deref())?;
    let open = || Cluster::open(&path, global.context.as_deref(), global.namespace.as_deref());
    match verb {
        Verb::Apply(args) => verb::apply::run(args, open, global.namespace.as_deref(), out).await,
        Verb::Diff(args) => verb::diff::run(args, open, global.namespace.as_deref(), out).await,
        Verb::Get(args) => verb::get::run(args, &open()?, out).await,
        Verb::Describe(args) => verb::describe::run(args, &open()?, out).await,
        Verb::Delete(args) => verb::delete::run(args, &open()?, global.namespace.as_deref(), out).await,
        Verb::Logs(args) => verb::logs::run(args, &open()?, out).await,
        Verb::Exec(args) => verb::exec::run(args, &open()?, out).await,
        Verb::Run(args) => verb::run::run(args, &open()?, out).await,
        Verb::Label(args) => verb::label::label(args, &open()?, out).await,
        Verb::Annotate(args) => verb::label::annotate(args, &open()?, out).await,
        Verb::Edit(args) => verb::edit::run(args, &open()?, out).await,
        Verb::Patch(args) => verb::patch::run(args, &open()?, out).await,
        Verb::Set(args) => verb::set::run(args, &open()?, out).await,
        Verb::History(args) => verb::history::run(args, &open()?, out).await,
        Verb::Undo(args) => verb::history::undo(args, &open()?, out).await,
        Verb::Scale(args) => verb::scale::run(args, &open()?, out).await,
        Verb::Rollout(args) => verb::rollout::run(args, &open()?, out).await,
        Verb::Wait(args) => verb::wait::run(args, &open()?, out).await,
        Verb::Events(args) => verb::events::run(args, &open()?, out).await,
        Verb::Why(args) => verb::why::run(args, &open()?, out).await,
        Verb::Cordon(args) => verb::cordon::cordon(args, &open()?, out).await,
        Verb::Uncordon(args) => verb::cordon::uncordon(args, &open()?, out).await,
        Verb::Drain(args) => verb::drain::run(args, &open()?, out).await,
        Verb::Inspect(args) => verb::inspect::run(args, &open()?, out).await,
        Verb::Image(args) => verb::image::run(args, &open()?, out).await,
        Verb::Create(args) => verb::create::run(args, &open()?, out).await,
        Verb::Token(args) => verb::token::run(args, &open()?, out).await,
        Verb::Auth(args) => verb::auth::run(args, &open()?, &path, out).await,
        Verb::Cluster(args) => verb::members::run(args, open, out).await,
        Verb::Config(args) => verb::contexts::run(args, &path, out),
        Verb::Dev(args) => dev::run(args, path, out).await,
        Verb::Completion(args) => verb::completion::run(&args),
        Verb::Version(args) => verb::version::run(args, open, out).await,
    }
}

/// The whole command line, for completion scripts and the test over all flags.
fn command() -> clap::Command {
    <Arguments as clap::CommandFactory>::command()
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_flag_is_consistent_and_has_help() {
        super::command().debug_assert();
        fn walk(command: &clap::Command) {
            for argument in command.get_arguments() {
                let described = argument.get_help().is_some() || argument.is_hide_set();
                assert!(
                    described,
                    "`{}` of `{}` has no help",
                    argument.get_id(),
                    command.get_name()
                );
            }
            command.get_subcommands().for_each(walk);
        }
        walk(&super::command());
    }
}
