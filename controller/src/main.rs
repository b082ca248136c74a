//! `bulkhead-controller`: begins a cluster, enters one, runs a member of one, renews the key of its files, lets an
//! administrator back in.

use std::io::IsTerminal;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use controller::run::{RunOptions, run};
use controller::setup::{NewCluster, Places, init, issue_admin, join};
use controller::storage_keys;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// A member under load spends a fifth of its time in the C library's allocator, and a tenth in this one.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The controller of a Bulkhead cluster
#[derive(Parser)]
#[command(name = "bulkhead-controller", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Begin a new cluster with this controller as its first
    Init(Init),
    /// Join this controller to a cluster
    Join(Join),
    /// Run the controller
    Run(Run),
    /// Seal new files of this controller with a new key, from its next start on
    RotateStorageKey(RotateStorageKey),
    /// Make an administrator on a controller's machine, when nobody has a good certificate any more
    IssueAdmin(IssueAdmin),
}

#[derive(Args)]
struct Directories {
    /// Log, snapshots and identity of this controller
    #[arg(
        long,
        env = "BULKHEAD_DATA_DIR",
        default_value = "/var/lib/bulkhead/controller"
    )]
    data_dir: PathBuf,
    /// Keys and configuration
    #[arg(long, env = "BULKHEAD_CONFIG_DIR", default_value = "/etc/bulkhead")]
    config_dir: PathBuf,
}

#[derive(Args)]
struct Advertised {
    /// Name of this controller in the cluster
    #[arg(long, env = "BULKHEAD_NAME")]
    name: String,
    /// Host name or IP address by which nodes, people and other controllers reach it
    #[arg(long, env = "BULKHEAD_ADDRESS")]
    address: String,
    /// Port of the API
    #[arg(long, env = "BULKHEAD_PORT", default_value_t = 7443)]
    port: u16,
    /// Port for other controllers
    #[arg(long, env = "BULKHEAD_PEER_PORT", default_value_t = 7444)]
    peer_port: u16,
}

#[derive(Args)]
struct Init {
    #[command(flatten)]
    directories: Directories,
    #[command(flatten)]
    advertised: Advertised,
    /// Addresses of pods
    #[arg(long, env = "BULKHEAD_POD_CIDR", default_value = "10.244.0.0/16")]
    pod_cidr: String,
    /// Addresses of services
    #[arg(long, env = "BULKHEAD_SERVICE_CIDR", default_value = "10.96.0.0/16")]
    service_cidr: String,
    /// DNS domain of services and pods
    #[arg(long, env = "BULKHEAD_CLUSTER_DOMAIN", default_value = "cluster.local")]
    cluster_domain: String,
}

#[derive(Args)]
struct Join {
    #[command(flatten)]
    directories: Directories,
    #[command(flatten)]
    advertised: Advertised,
    /// HOST:PORT of the API of a controller that is in the cluster
    #[arg(long, env = "BULKHEAD_SERVER")]
    server: String,
    /// A token from `ctl token create --role member`
    #[arg(long, env = "BULKHEAD_TOKEN", hide_env_values = true)]
    token: String,
}

#[derive(Args)]
struct Run {
    #[command(flatten)]
    directories: Directories,
    /// Volatile files
    #[arg(long, env = "BULKHEAD_RUN_DIR", default_value = "/run/bulkhead")]
    run_dir: PathBuf,
    /// Address to listen on; both ports are those of `init` or `join`
    #[arg(long, env = "BULKHEAD_LISTEN", default_value_t = IpAddr::V6(Ipv6Addr::UNSPECIFIED))]
    listen: IpAddr,
    /// Where metrics and health are served
    #[arg(long, env = "BULKHEAD_METRICS_ADDRESS", default_value = "127.0.0.1:7480")]
    metrics_address: SocketAddr,
    /// How often the leader says that it is there, in milliseconds
    #[arg(long, env = "BULKHEAD_HEARTBEAT_MS", default_value_t = 50)]
    heartbeat_ms: u64,
    /// Shortest election timeout in milliseconds; the longest is twice that
    #[arg(long, env = "BULKHEAD_ELECTION_MS", default_value_t = 200)]
    election_ms: u64,
}

#[derive(Args)]
struct RotateStorageKey {
    /// Keys and configuration
    #[arg(long, env = "BULKHEAD_CONFIG_DIR", default_value = "/etc/bulkhead")]
    config_dir: PathBuf,
}

#[derive(Args)]
struct IssueAdmin {
    #[command(flatten)]
    directories: Directories,
    /// The administrator's name
    #[arg(long, default_value = "admin")]
    name: String,
    /// Where to write the client configuration, which must not be there
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

impl Directories {
    fn places(self) -> Places {
        Places {
            data: self.data_dir,
            config: self.config_dir,
        }
    }
}

/// HOST:PORT, with brackets around an IPv6 address.
fn host_port(host: &str, port: u16) -> String {
    match host.parse::<IpAddr>() {
        Ok(address) => SocketAddr::new(address, port).to_string(),
        Err(_) => format!("{host}:{port}"),
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // The libraries warn at each heartbeat to a member that is away, where we say ourselves who leads, and at each connection
    // of a client that takes back its calls: nobody from outside fills the log.
    let filter = EnvFilter::try_from_env("BULKHEAD_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,openraft=error,h2=error"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let done = runtime
        .context("failed to start the runtime")
        .and_then(|runtime| runtime.block_on(carry_out(cli.verb)));
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
        Verb::Init(Init {
            directories,
            advertised,
            pod_cidr,
            service_cidr,
            cluster_domain,
        }) => {
            let new = NewCluster {
                address: host_port(&advertised.address, advertised.port),
                peer_address: host_port(&advertised.address, advertised.peer_port),
                name: advertised.name,
                pod_cidr,
                service_cidr,
                cluster_domain,
            };
            let admin = init(&directories.places(), &new).await?;
            println!(
                "cluster begun; client configuration of its administrator: {}",
                admin.display()
            );
            Ok(())
        }
        Verb::Join(Join {
            directories,
            advertised,
            server,
            token,
        }) => {
            let address = host_port(&advertised.address, advertised.port);
            let peer_address = host_port(&advertised.address, advertised.peer_port);
            let places = directories.places();
            let identity = join(
                &places,
                &server,
                &token,
                &advertised.name,
                &address,
                &peer_address,
            )
            .await?;
            println!(
                "joined as controller {} ({}); now run it",
                identity.name, identity.id
            );
            Ok(())
        }
        Verb::Run(options) => run_member(options).await,
        Verb::RotateStorageKey(RotateStorageKey { config_dir }) => {
            let id = storage_keys::rotate(&config_dir)?;
            println!("new files are sealed with key {id} once this controller is started again");
            Ok(())
        }
        Verb::IssueAdmin(IssueAdmin {
            directories,
            name,
            output,
        }) => {
            issue_admin(&directories.places(), &name, &output)?;
            println!(
                "client configuration of administrator {name}: {}",
                output.display()
            );
            Ok(())
        }
    }
}

async fn run_member(options: Run) -> anyhow::Result<()> {
    std::fs::create_dir_all(&options.run_dir)
        .with_context(|| format!("failed to create {}", options.run_dir.display()))?;
    let places = options.directories.places();
    let identity = places.identity()?;
    let port = |address: &str| -> anyhow::Result<u16> {
        let port = address.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        port.with_context(|| format!("`{address}` in member.json is not HOST:PORT"))
    };
    let election = Duration::from_millis(options.election_ms);
    let run_options = RunOptions {
        api: SocketAddr::new(options.listen, port(&identity.address)?),
        peers: SocketAddr::new(options.listen, port(&identity.peer_address)?),
        metrics: options.metrics_address,
        heartbeat: Duration::from_millis(options.heartbeat_ms),
        election: (election, 2 * election),
        places,
    };
    let mut terminate = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    run(run_options, stop).await?;
    Ok(())
}
