//! `ctl dev up|down|status`: a whole cluster on this machine.
//!
//! Each agent is a real node in a network namespace of its own, joined by a bridge to the controllers, which run beside
//! `ctl`. The binaries are those that an operator installs, started as they start them; nothing is linked in from them.
//! `down` works from what the kernel and the file system show, not from what `up` remembers, so that it also clears up
//! after a cluster that was killed half-way.

mod down;
mod layout;
mod network;
mod process;
mod up;

use std::path::PathBuf;

use clap::Subcommand;

use self::layout::{Cluster, Layout};
use crate::error::CtlError;
use crate::output::{Output, Table};

/// Arguments of `ctl dev`.
#[derive(clap::Args)]
pub(crate) struct Dev {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Bring a cluster up on this machine and make it the current context
    Up(Up),
    /// Remove the cluster and every trace of it
    Down(Which),
    /// Show the cluster's processes
    Status(Status),
}

/// Which of this machine's clusters is meant.
#[derive(clap::Args, Clone)]
struct Which {
    /// The cluster's name: its context, bridge, cgroup and directories are called after it
    #[arg(long, default_value = "dev", value_name = "NAME")]
    name: String,
}

#[derive(clap::Args)]
struct Up {
    #[command(flatten)]
    which: Which,
    /// How many controllers: 1, 3 or 5
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = parse_controllers)]
    controllers: u32,
    /// How many nodes
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    nodes: u32,
    /// The /24 that controllers and nodes share; its first address is the controllers'
    #[arg(long, default_value = "10.89.0.0", value_name = "ADDRESS")]
    subnet: std::net::Ipv4Addr,
    /// Where the binaries are [default: beside ctl]
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// A further argument for each agent; may be repeated
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    agent_arg: Vec<String>,
    /// A further argument for each controller's `run`; may be repeated
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    controller_arg: Vec<String>,
    /// Give up after this many seconds
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    timeout: u64,
}

#[derive(clap::Args)]
struct Status {
    #[command(flatten)]
    which: Which,
    /// json for programs
    #[arg(short, long, value_name = "FORMAT", value_parser = ["json"])]
    output: Option<String>,
}

fn parse_controllers(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(count @ (1 | 3 | 5)) => Ok(count),
        _ => Err("a cluster has 1, 3 or 5 controllers".to_owned()),
    }
}

/// Runs `ctl dev`.
pub(crate) async fn run(args: Dev, config: PathBuf, out: &mut Output) -> Result<(), CtlError> {
    match args.verb {
        Verb::Up(args) => {
            let layout = Layout::new(&args.which.name)?;
            up::up(&layout, &args, &config, out).await
        }
        Verb::Down(which) => down::down(&Layout::new(&which.name)?, &config, out).await,
        Verb::Status(args) => status(&args, out),
    }
}

fn status(args: &Status, out: &mut Output) -> Result<(), CtlError> {
    let layout = Layout::new(&args.which.name)?;
    let cluster = Cluster::read(&layout)?.ok_or_else(|| {
        CtlError::refused(format!(
            "no cluster `{}` here; `ctl dev up` makes one",
            layout.name
        ))
    })?;
    if args.output.is_some() {
        let text =
            serde_json::to_string_pretty(&cluster).map_err(|error| CtlError::refused(error.to_string()))?;
        return out.line(text);
    }
    let mut table = Table::new(["NAME", "ROLE", "PID", "STATUS", "ADDRESS", "LOG"]);
    for process in &cluster.processes {
        let running = if process::is_running(process) {
            "Running"
        } else {
            "Dead"
        };
        table.row(vec![
            process.name.clone(),
            process.role.clone(),
            process.pid.to_string(),
            running.to_owned(),
            process.address.clone(),
            process.log.display().to_string(),
        ]);
    }
    out.table(&table)
}
