//! `ctl dev up`: the first controller, the others, then the nodes; each waited for before the next.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pbjson_types::Timestamp;
use proto::v1::object::Object as Kind;
use rpc::v1::{CreateTokenRequest, Member, MembersRequest};

use super::layout::{Cluster as Record, Layout, Process};
use super::{Up, network, process};
use crate::cluster::{Cluster, Query};
use crate::config::{Config, Context};
use crate::error::CtlError;
use crate::output::Output;

/// API port of the first controller; the others follow at steps of ten, with their peer and metrics ports beside them.
const API_PORT: u16 = 7443;
const PEER_PORT: u16 = 7444;
const METRICS_PORT: u16 = 7480;
const PORT_STEP: u16 = 10;
/// Last byte of the first node's address.
const FIRST_NODE: u8 = 11;
/// How often to look whether something has become ready; readiness comes from outside, and not all of it can be watched.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A token that only this run uses.
const TOKEN_SECONDS: u32 = 600;

/// What one bringing-up has at hand.
struct Run<'a> {
    layout: &'a Layout,
    args: &'a Up,
    bin: PathBuf,
    record: Record,
    time: Time,
}

pub(super) async fn up(layout: &Layout, args: &Up, config: &Path, out: &mut Output) -> Result<(), CtlError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(CtlError::refused(
            "`ctl dev up` makes namespaces and cgroups: run it as root",
        ));
    }
    if let Some(record) = Record::read(layout)? {
        return revive(layout, &record, args, config, out).await;
    }
    let mut run = Run {
        layout,
        args,
        bin: binaries(args)?,
        record: Record {
            name: layout.name.clone(),
            subnet: args.subnet,
            controllers: args.controllers,
            nodes: args.nodes,
            processes: Vec::new(),
        },
        time: Time::of(args),
    };
    match run.start(config, out).await {
        Ok(()) => Ok(()),
        Err(error) => {
            out.note(format_args!(
                "logs are in {}; `ctl dev down` clears up",
                layout.log.display()
            ));
            Err(error)
        }
    }
}

/// A second `up`: starts again what has ended, as it was, and waits for a controller that leads. Nodes are not waited for:
/// whoever cut one off does not want to wait for it.
async fn revive(
    layout: &Layout,
    record: &Record,
    args: &Up,
    config: &Path,
    out: &mut Output,
) -> Result<(), CtlError> {
    let time = Time::of(args);
    if (record.controllers, record.nodes) != (args.controllers, args.nodes) {
        return Err(CtlError::refused(format!(
            "cluster {} is up with {} controllers and {} nodes; `ctl dev down` first for another size",
            layout.name, record.controllers, record.nodes
        )));
    }
    let mut record = Record {
        processes: record.processes.clone(),
        name: record.name.clone(),
        ..*record
    };
    let mut started = 0;
    for entry in &mut record.processes {
        if !process::is_running(entry) {
            entry.pid = process::start(&entry.command, &entry.log, entry.netns.as_deref())?;
            entry.started = started_at(entry.pid, &entry.name)?;
            started += 1;
        }
    }
    record.write(layout)?;
    let known = Config::read(config)?;
    let context = known.context(Some(&layout.name), config).map_err(|_| {
        CtlError::refused(format!(
            "cluster {} was not brought up to the end the last time: `ctl dev down` first",
            layout.name
        ))
    })?;
    let cluster = Cluster::connect(context, None)?;
    time.wait_until(&record, "a controller to lead", async || leads(&cluster).await)
        .await?;
    out.note(format_args!(
        "cluster {} is up ({started} processes started again)",
        layout.name
    ));
    Ok(())
}

impl Run<'_> {
    async fn start(&mut self, config: &Path, out: &mut Output) -> Result<(), CtlError> {
        for directory in [
            &self.layout.data,
            &self.layout.log,
            &self.layout.run.join("netns"),
        ] {
            std::fs::create_dir_all(directory)
                .map_err(CtlError::io(format!("failed to create {}", directory.display())))?;
        }
        self.record.write(self.layout)?;
        network::add_bridge(&self.layout.bridge, self.host()).await?;
        let context = self.first_controller().await?;
        let cluster = Cluster::connect(&context, None)?;
        self.wait_until("the first controller to lead", async || leads(&cluster).await)
            .await?;
        for number in 2..=self.args.controllers {
            self.further_controller(&cluster, number).await?;
        }
        let context = self.all_endpoints(context);
        let mut known = Config::read(config)?;
        known.adopt(context);
        known.write(config)?;
        out.note(format_args!("{} controllers are up", self.args.controllers));
        for number in 1..=self.args.nodes {
            self.node(&cluster, number).await?;
        }
        self.nodes_ready(&cluster).await?;
        out.note(format_args!(
            "{} nodes are ready; context {} is current",
            self.args.nodes, self.layout.name
        ));
        Ok(())
    }

    /// The controllers' address: the first of the subnet.
    fn host(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.args.subnet.to_bits() | 1)
    }

    fn node_address(&self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.args.subnet.to_bits() + u32::from(FIRST_NODE) + number - 1)
    }

    fn api(&self, number: u32) -> String {
        format!("{}:{}", self.host(), port(API_PORT, number))
    }

    fn program(&self, name: &str) -> String {
        self.bin.join(name).display().to_string()
    }

    /// `--data-dir` and `--config-dir` of a process.
    fn directories(&self, name: &str) -> Vec<String> {
        let data = self.layout.data.join(name);
        let pair = |flag: &str, path: PathBuf| [flag.to_owned(), path.display().to_string()];
        [
            pair("--data-dir", data.join("data")),
            pair("--config-dir", data.join("config")),
        ]
        .concat()
    }

    fn controller_flags(&self, number: u32) -> Vec<String> {
        let text = |text: &str| text.to_owned();
        vec![
            text("--name"),
            format!("controller-{number}"),
            text("--address"),
            self.host().to_string(),
            text("--port"),
            port(API_PORT, number).to_string(),
            text("--peer-port"),
            port(PEER_PORT, number).to_string(),
        ]
    }

    async fn first_controller(&mut self) -> Result<Context, CtlError> {
        let name = "controller-1";
        let mut init = vec![self.program("bulkhead-controller"), "init".to_owned()];
        init.extend(self.controller_flags(1));
        init.extend(self.directories(name));
        process::run_to_end(&init)?;
        self.run_controller(1)?;
        let path = self.layout.data.join(name).join("config/admin.yaml");
        let written = Config::read(&path)?;
        let context = written.context(None, &path)?;
        Ok(Context {
            name: self.layout.name.clone(),
            endpoints: vec![self.api(1)],
            ..context.clone()
        })
    }

    fn run_controller(&mut self, number: u32) -> Result<(), CtlError> {
        let name = format!("controller-{number}");
        let mut command = vec![self.program("bulkhead-controller"), "run".to_owned()];
        command.extend(self.directories(&name));
        command.extend([
            "--run-dir".to_owned(),
            self.layout.run.join(&name).display().to_string(),
        ]);
        command.extend([
            "--metrics-address".to_owned(),
            format!("127.0.0.1:{}", port(METRICS_PORT, number)),
        ]);
        command.extend(self.args.controller_arg.iter().cloned());
        self.launch(Process {
            address: self.api(number),
            log: self.layout.log.join(format!("{name}.log")),
            name,
            role: "controller".to_owned(),
            pid: 0,
            started: 0,
            command,
            netns: None,
            cgroup: None,
        })
    }

    async fn further_controller(&mut self, cluster: &Cluster, number: u32) -> Result<(), CtlError> {
        let name = format!("controller-{number}");
        let token = self.token(cluster, "member", &name).await?;
        let mut join = vec![self.program("bulkhead-controller"), "join".to_owned()];
        join.extend(["--server".to_owned(), self.api(1), "--token".to_owned(), token]);
        join.extend(self.controller_flags(number));
        join.extend(self.directories(&name));
        process::run_to_end(&join)?;
        self.run_controller(number)?;
        self.wait_until(&format!("{name} to vote"), async || {
            Ok(members(cluster)
                .await?
                .iter()
                .any(|member| member.name == name && matches!(&*member.role, "follower" | "leader")))
        })
        .await
    }

    async fn node(&mut self, cluster: &Cluster, number: u32) -> Result<(), CtlError> {
        let name = format!("node-{number}");
        let address = self.node_address(number);
        let netns = self.layout.netns(&name);
        network::add_node(&self.layout.bridge, &netns, number, address).await?;
        let token = self.token(cluster, "node", &name).await?;
        let servers: Vec<String> = (1..=self.args.controllers)
            .map(|number| self.api(number))
            .collect();
        let mut join = vec![self.program("bulkhead-agent"), "join".to_owned()];
        join.extend([
            "--server".to_owned(),
            servers.join(","),
            "--token".to_owned(),
            token,
        ]);
        join.extend(["--name".to_owned(), name.clone()]);
        join.extend(self.directories(&name));
        process::run_to_end(&join)?;
        let mut command = vec![self.program("bulkhead-agent"), "run".to_owned()];
        command.extend(self.directories(&name));
        let mut flag = |name: &str, value: String| command.extend([name.to_owned(), value]);
        flag("--run-dir", self.layout.run.join(&name).display().to_string());
        flag("--log-dir", self.layout.log.join(&name).display().to_string());
        flag("--cgroup-parent", self.layout.node_cgroup(&name));
        flag("--node-address", address.to_string());
        flag("--runtime", self.program("bulkhead-runtime"));
        command.extend(self.args.agent_arg.iter().cloned());
        self.launch(Process {
            log: self.layout.log.join(format!("{name}.log")),
            cgroup: Some(self.layout.node_cgroup(&name)),
            name,
            role: "agent".to_owned(),
            pid: 0,
            started: 0,
            address: address.to_string(),
            command,
            netns: Some(netns),
        })
    }

    async fn token(&self, cluster: &Cluster, role: &str, name: &str) -> Result<String, CtlError> {
        let request = CreateTokenRequest {
            role: role.to_owned(),
            name: name.to_owned(),
            ttl_seconds: TOKEN_SECONDS,
            uses: 1,
        };
        let answer = cluster
            .api
            .clone()
            .create_token(request)
            .await
            .map_err(|status| cluster.error(status))?;
        Ok(answer.into_inner().token)
    }

    /// Waits for every node and lets this machine reach their pods.
    async fn nodes_ready(&self, cluster: &Cluster) -> Result<(), CtlError> {
        let query = Query {
            kind: "Node".to_owned(),
            ..Query::default()
        };
        let wanted = self.args.nodes as usize;
        self.wait_until("all nodes to be ready", async || {
            let nodes = cluster.list(&query).await?.items;
            Ok(nodes.iter().filter(|node| ready(node).is_some()).count() == wanted)
        })
        .await?;
        for node in cluster.list(&query).await?.items {
            let Some(Kind::Node(node)) = node.object else {
                continue;
            };
            let (Some(spec), Some(meta)) = (node.spec, node.metadata) else {
                continue;
            };
            let range = spec
                .pod_cidr
                .split_once('/')
                .and_then(|(range, prefix)| Some((range.parse().ok()?, prefix.parse().ok()?)));
            let number = meta
                .name
                .strip_prefix("node-")
                .and_then(|number| number.parse().ok());
            if let (Some((range, prefix)), Some(number)) = (range, number) {
                network::add_pod_route(range, prefix, self.node_address(number)).await?;
            }
        }
        Ok(())
    }

    fn all_endpoints(&self, context: Context) -> Context {
        Context {
            endpoints: (1..=self.args.controllers)
                .map(|number| self.api(number))
                .collect(),
            ..context
        }
    }

    /// Starts a process and records it before anything else happens.
    fn launch(&mut self, mut entry: Process) -> Result<(), CtlError> {
        entry.pid = process::start(&entry.command, &entry.log, entry.netns.as_deref())?;
        entry.started = started_at(entry.pid, &entry.name)?;
        self.record.processes.push(entry);
        self.record.write(self.layout)
    }

    async fn wait_until(
        &self,
        what: &str,
        ask: impl AsyncFnMut() -> Result<bool, CtlError>,
    ) -> Result<(), CtlError> {
        self.time.wait_until(&self.record, what, ask).await
    }
}

/// How long all of it may take.
struct Time {
    deadline: Instant,
    seconds: u64,
}

impl Time {
    fn of(args: &Up) -> Self {
        Self {
            deadline: Instant::now() + Duration::from_secs(args.timeout),
            seconds: args.timeout,
        }
    }

    /// Asks again until `true`; an error is only final when time is up or a process of ours has ended.
    async fn wait_until(
        &self,
        record: &Record,
        what: &str,
        mut ask: impl AsyncFnMut() -> Result<bool, CtlError>,
    ) -> Result<(), CtlError> {
        loop {
            let answer = ask().await;
            if matches!(answer, Ok(true)) {
                return Ok(());
            }
            if let Some(ended) = record
                .processes
                .iter()
                .find(|process| !process::is_running(process))
            {
                return Err(CtlError::refused(format!(
                    "{} ended: {}",
                    ended.name,
                    last_line(&ended.log)
                )));
            }
            if Instant::now() >= self.deadline {
                let cause = answer
                    .err()
                    .map(|error| format!(" ({error})"))
                    .unwrap_or_default();
                return Err(CtlError::TimedOut {
                    what: format!("{what}{cause}"),
                    seconds: self.seconds,
                });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

async fn members(cluster: &Cluster) -> Result<Vec<Member>, CtlError> {
    let answer = cluster.api.clone().members(MembersRequest {}).await;
    Ok(answer
        .map_err(|status| cluster.error(status))?
        .into_inner()
        .members)
}

async fn leads(cluster: &Cluster) -> Result<bool, CtlError> {
    let members = members(cluster).await?;
    Ok(members.iter().any(|member| member.role == "leader"))
}

fn port(first: u16, number: u32) -> u16 {
    first + PORT_STEP * u16::try_from(number - 1).unwrap_or_default()
}

fn started_at(pid: i32, name: &str) -> Result<u64, CtlError> {
    process::start_time(pid).ok_or_else(|| CtlError::refused(format!("{name} ended at once; see its log")))
}

/// When a node last became ready; none while it is not.
fn ready(object: &proto::v1::Object) -> Option<Timestamp> {
    let Some(Kind::Node(node)) = &object.object else {
        return None;
    };
    let conditions = &node.status.as_ref()?.conditions;
    let ready = conditions
        .iter()
        .find(|condition| condition.r#type == "Ready" && condition.status == "True")?;
    Some(ready.last_transition_time.unwrap_or_default())
}

fn last_line(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().last().unwrap_or("its log is empty").to_owned()
}

fn binaries(args: &Up) -> Result<PathBuf, CtlError> {
    let directory = match &args.bin_dir {
        Some(directory) => directory
            .canonicalize()
            .map_err(CtlError::io(format!("{}", directory.display())))?,
        None => {
            let own = std::env::current_exe().map_err(CtlError::io("failed to find ctl's own path"))?;
            own.parent().map(Path::to_owned).unwrap_or_default()
        }
    };
    for name in ["bulkhead-controller", "bulkhead-agent", "bulkhead-runtime"] {
        if !directory.join(name).is_file() {
            return Err(CtlError::refused(format!(
                "{name} is not in {}; build it, or give --bin-dir DIR",
                directory.display()
            )));
        }
    }
    Ok(directory)
}
