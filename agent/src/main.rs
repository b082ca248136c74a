//! `bulkhead-agent`: makes this machine a node of a cluster, and runs its pods.

use std::io::IsTerminal;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use agent::join::{Join, join, parse_label};
use agent::network::Backend;
use agent::run::{RunOptions, run};
use agent::settings::Settings;
use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Threads for work that waits for the disk: pulls, imports, the ledger. More of it queues.
const BLOCKING_THREADS_MAX: usize = 32;
/// How long such a thread is kept for the next work: an idle agent has none.
const BLOCKING_THREAD_IDLE: Duration = Duration::from_secs(2);

/// The agent of a Bulkhead node
#[derive(Parser)]
#[command(name = "bulkhead-agent", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Join this machine to a cluster as a node
    Join(JoinArgs),
    /// Run the agent
    Run(RunArgs),
}

#[derive(Args)]
struct Directories {
    /// Ledger, images and volumes of this node
    #[arg(long, env = "BULKHEAD_DATA_DIR", default_value = "/var/lib/bulkhead/agent")]
    data_dir: PathBuf,
    /// Identity of this node, credentials of registries
    #[arg(long, env = "BULKHEAD_CONFIG_DIR", default_value = "/etc/bulkhead")]
    config_dir: PathBuf,
}

#[derive(Args)]
struct JoinArgs {
    #[command(flatten)]
    directories: Directories,
    /// HOST:PORT of the API of controllers, separated by commas
    #[arg(long, env = "BULKHEAD_SERVER", value_delimiter = ',', required = true)]
    server: Vec<String>,
    /// A token from `ctl token create --role node`
    #[arg(long, env = "BULKHEAD_TOKEN", hide_env_values = true)]
    token: String,
    /// Name of this node in the cluster [default: the machine's host name]
    #[arg(long, env = "BULKHEAD_NAME")]
    name: Option<String>,
    /// Label of this node; may be given several times
    #[arg(long, env = "BULKHEAD_LABEL", value_name = "KEY=VALUE", value_parser = parse_label, value_delimiter = ',')]
    label: Vec<(String, String)>,
}

#[derive(Args)]
struct RunArgs {
    #[command(flatten)]
    directories: Directories,
    /// Volatile files
    #[arg(long, env = "BULKHEAD_RUN_DIR", default_value = "/run/bulkhead")]
    run_dir: PathBuf,
    /// Logs of pods
    #[arg(long, env = "BULKHEAD_LOG_DIR", default_value = "/var/log/bulkhead")]
    log_dir: PathBuf,
    /// The cgroup below which pods have theirs, in every hierarchy
    #[arg(long, env = "BULKHEAD_CGROUP_PARENT", default_value = "/bulkhead", value_parser = parse_cgroup)]
    cgroup_parent: PathBuf,
    /// IPv4 address by which other nodes reach this one [default: the one that reaches the controllers]
    #[arg(long, env = "BULKHEAD_NODE_ADDRESS", value_parser = parse_address)]
    node_address: Option<MaybeAddress>,
    /// Path of bulkhead-runtime [default: beside this program]
    #[arg(long, env = "BULKHEAD_RUNTIME")]
    runtime: Option<PathBuf>,
    /// Name of the pods' bridge
    #[arg(long, env = "BULKHEAD_BRIDGE", default_value = "bulkhead0", value_parser = parse_interface)]
    bridge: String,
    /// How packets travel between nodes
    #[arg(long, env = "BULKHEAD_BACKEND", value_enum, default_value_t = BackendArg::Vxlan)]
    backend: BackendArg,
    /// Where metrics and health are served
    #[arg(long, env = "BULKHEAD_METRICS_ADDRESS", default_value = "127.0.0.1:7481")]
    metrics_address: SocketAddr,
}

#[derive(Clone, Copy, ValueEnum)]
enum BackendArg {
    /// UDP tunnels
    Vxlan,
    /// Plain routes; all nodes must be on one link
    HostGw,
}

/// An address, or an empty setting in the unit's EnvironmentFile.
#[derive(Clone, Copy)]
struct MaybeAddress(Option<Ipv4Addr>);

fn parse_address(text: &str) -> Result<MaybeAddress, String> {
    match text.trim() {
        "" => Ok(MaybeAddress(None)),
        text => text
            .parse()
            .map(|address| MaybeAddress(Some(address)))
            .map_err(|error| error.to_string()),
    }
}

fn parse_cgroup(text: &str) -> Result<PathBuf, String> {
    let good = text.starts_with('/')
        && text.len() > 1
        && text
            .split('/')
            .skip(1)
            .all(|part| !matches!(part, "" | "." | ".."));
    if good {
        Ok(text.into())
    } else {
        Err("expected an absolute path such as /bulkhead".to_owned())
    }
}

/// Interface names have at most fifteen characters; the tunnel's is the bridge's with three more.
fn parse_interface(text: &str) -> Result<String, String> {
    let good = (1..=12).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    if good {
        Ok(text.to_owned())
    } else {
        Err("expected up to 12 letters, digits, - _ or .".to_owned())
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("BULKHEAD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    if let Err(cause) = sys::memory::keep_small() {
        tracing::warn!(%cause, "the allocator keeps what it likes");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(BLOCKING_THREAD_IDLE)
        .enable_all()
        .build();
    let done = runtime
        .context("failed to start the runtime")
        .and_then(|runtime| {
            let done = runtime.block_on(carry_out(cli.verb));
            // A pull that waits for the disk is not waited for: what it made is cleared away at the next start.
            runtime.shutdown_background();
            done
        });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            eprintln!("error: {cause:#}");
            ExitCode::FAILURE
        }
    }
}

async fn carry_out(verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Join(args) => {
            let name = match args.name {
                Some(name) => name,
                None => std::fs::read_to_string("/proc/sys/kernel/hostname")
                    .context("failed to read the machine's host name; give --name")?
                    .trim()
                    .to_lowercase(),
            };
            let request = Join {
                servers: args
                    .server
                    .into_iter()
                    .filter(|server| !server.is_empty())
                    .collect(),
                token: args.token,
                name,
                labels: args.label.into_iter().collect(),
                data_dir: args.directories.data_dir,
                config_dir: args.directories.config_dir,
            };
            let identity = join(&request).await?;
            println!("joined as node {}; now run the agent", identity.name);
            Ok(())
        }
        Verb::Run(args) => run_agent(args).await,
    }
}

async fn run_agent(args: RunArgs) -> anyhow::Result<()> {
    let runtime = match args.runtime {
        Some(path) => path,
        None => {
            let own = std::env::current_exe().context("failed to find the agent's own path")?;
            own.with_file_name("bulkhead-runtime")
        }
    };
    let address = args.node_address.and_then(|address| address.0);
    let settings = Settings {
        data_dir: args.directories.data_dir,
        config_dir: args.directories.config_dir,
        run_dir: args.run_dir,
        log_dir: args.log_dir,
        cgroup_parent: args.cgroup_parent,
        runtime,
        node_address: address.unwrap_or(Ipv4Addr::UNSPECIFIED),
        bridge: args.bridge,
        backend: match args.backend {
            BackendArg::Vxlan => Backend::Vxlan,
            BackendArg::HostGw => Backend::HostGateway,
        },
        metrics_address: args.metrics_address,
    };
    let mut terminate = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let options = RunOptions {
        settings,
        address_given: address.is_some(),
    };
    run(options, stop).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_flag_is_a_setting_of_the_unit_too() {
        let command = Cli::command();
        command.clone().debug_assert();
        for verb in command.get_subcommands() {
            for argument in verb
                .get_arguments()
                .filter(|argument| argument.get_long().is_some())
            {
                let name = argument.get_long().unwrap_or_default();
                if matches!(name, "help" | "version") {
                    continue;
                }
                let expected = format!("BULKHEAD_{}", name.replace('-', "_").to_uppercase());
                let variable = argument.get_env().map(|name| name.to_string_lossy().into_owned());
                assert_eq!(variable, Some(expected), "--{name}");
            }
        }
    }

    #[test]
    fn an_empty_address_in_the_units_file_is_none() {
        assert!(parse_address("").is_ok_and(|address| address.0.is_none()));
        assert!(parse_address("10.0.0.1").is_ok_and(|address| address.0.is_some()));
        assert!(parse_address("host").is_err());
    }

    #[test]
    fn groups_and_bridges_are_checked() {
        assert!(parse_cgroup("/bulkhead-x/node-1").is_ok());
        for bad in ["", "/", "bulkhead", "/a/../b", "/a//b", "/a/"] {
            assert!(parse_cgroup(bad).is_err(), "{bad}");
        }
        assert!(parse_interface("bulkhead0").is_ok());
        assert!(parse_interface("a-name-too-long").is_err() && parse_interface("a/b").is_err());
    }
}
