//! Three members of Debian's etcd, and as much of its API as is measured (etcdserverpb/rpc.proto of etcd 3.4).

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Streaming};
use tonic_prost::ProstCodec;

use crate::load::{self, Peer, largest_mib};

const PORT: u16 = 12_379;
const READY_ATTEMPTS: u32 = 100;

pub(crate) struct Members {
    running: Vec<Child>,
    directory: PathBuf,
}

impl Drop for Members {
    fn drop(&mut self) {
        for child in &mut self.running {
            if let Err(cause) = child.kill().and_then(|()| child.wait()) {
                eprintln!("a member of etcd was not ended: {cause}");
            }
        }
    }
}

fn address(member: usize, peers: bool) -> String {
    format!(
        "https://127.0.0.1:{}",
        PORT + 10 * member as u16 + u16::from(peers)
    )
}

impl Members {
    pub(crate) fn up(directory: &Path) -> anyhow::Result<Self> {
        let directory = directory.join("etcd");
        fs::create_dir(&directory)?;
        certificates(&directory)?;
        let mut members = Self {
            running: Vec::new(),
            directory,
        };
        let all: Vec<String> = (0..3)
            .map(|member| format!("m{member}={}", address(member, true)))
            .collect();
        for member in 0..3 {
            let place = |name: &str| members.directory.join(name).display().to_string();
            let words = [
                ("--name", format!("m{member}")),
                ("--data-dir", place(&format!("m{member}"))),
                ("--listen-client-urls", address(member, false)),
                ("--advertise-client-urls", address(member, false)),
                ("--listen-peer-urls", address(member, true)),
                ("--initial-advertise-peer-urls", address(member, true)),
                ("--initial-cluster", all.join(",")),
                ("--trusted-ca-file", place("ca.pem")),
                ("--cert-file", place("cert.pem")),
                ("--key-file", place("key.pem")),
                ("--peer-trusted-ca-file", place("ca.pem")),
                ("--peer-cert-file", place("cert.pem")),
                ("--peer-key-file", place("key.pem")),
                ("--log-level", "error".to_owned()),
            ];
            let log = File::create(members.directory.join(format!("m{member}.log")))?;
            let child = Command::new("etcd")
                .args(words.iter().flat_map(|(flag, value)| [*flag, value.as_str()]))
                .args(["--client-cert-auth", "--peer-client-cert-auth"])
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()?;
            members.running.push(child);
        }
        Ok(members)
    }

    /// Connections, spread over the members; made when they are used.
    pub(crate) async fn peers(&self, count: usize) -> anyhow::Result<Vec<Peer>> {
        let read = |name: &str| fs::read(self.directory.join(name));
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read("ca.pem")?))
            .identity(Identity::from_pem(read("cert.pem")?, read("key.pem")?));
        let connect = |number: usize| {
            let endpoint = Endpoint::from_shared(address(number % 3, false))?.tls_config(tls.clone())?;
            anyhow::Ok(Peer::Etcd(endpoint.tcp_nodelay(true).connect_lazy()))
        };
        (0..count).map(connect).collect()
    }

    /// Waits until every member takes writes.
    pub(crate) async fn ready(&self, peers: &[Peer]) -> anyhow::Result<()> {
        for peer in &peers[..3] {
            let Peer::Etcd(channel) = peer else { continue };
            let mut attempts = 0;
            while let Err(cause) = write(&mut channel.clone(), &load::key(0, 0), String::new()).await {
                attempts += 1;
                ensure!(attempts < READY_ATTEMPTS, "etcd takes no writes: {cause:#}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        Ok(())
    }

    pub(crate) fn memory_mib(&self) -> anyhow::Result<f64> {
        largest_mib(self.running.iter().map(|child| child.id() as i32))
    }
}

/// A CA, and one certificate for everything.
fn certificates(directory: &Path) -> anyhow::Result<()> {
    let script = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=bench-ca \
                    -keyout ca.key -out ca.pem &&
                  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=bench -keyout key.pem -out req.pem &&
                  printf 'subjectAltName=IP:127.0.0.1\\nextendedKeyUsage=serverAuth,clientAuth\\n' >ext &&
                  openssl x509 -req -in req.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 1 -extfile ext -out cert.pem";
    let made = Command::new("sh")
        .args(["-ec", script])
        .current_dir(directory)
        .output()?;
    ensure!(
        made.status.success(),
        "openssl: {}",
        String::from_utf8_lossy(&made.stderr)
    );
    Ok(())
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

/// Linearizable, unless `serializable` is set.
#[derive(Clone, PartialEq, prost::Message)]
struct RangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RangeResponse {
    #[prost(int64, tag = "4")]
    count: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct WatchRequest {
    #[prost(message, optional, tag = "1")]
    create: Option<WatchCreate>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WatchCreate {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    range_end: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct WatchResponse {
    #[prost(bool, tag = "3")]
    created: bool,
    #[prost(message, repeated, tag = "11")]
    pub(crate) events: Vec<WatchedEvent>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct WatchedEvent {
    #[prost(int32, tag = "1")]
    kind: i32,
}

async fn unary<Q, A>(channel: &mut Channel, path: &'static str, request: Q) -> anyhow::Result<A>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await?;
    let codec = ProstCodec::<Q, A>::default();
    let answer = grpc
        .unary(Request::new(request), PathAndQuery::from_static(path), codec)
        .await?;
    Ok(answer.into_inner())
}

pub(crate) async fn write(channel: &mut Channel, key: &str, value: String) -> anyhow::Result<()> {
    let request = PutRequest {
        key: key.into(),
        value: value.into_bytes(),
    };
    let PutResponse {} = unary(channel, "/etcdserverpb.KV/Put", request).await?;
    Ok(())
}

pub(crate) async fn read(channel: &mut Channel, key: &str) -> anyhow::Result<()> {
    let answer: RangeResponse = unary(
        channel,
        "/etcdserverpb.KV/Range",
        RangeRequest { key: key.into() },
    )
    .await?;
    ensure!(answer.count == 1, "{key} is not there");
    Ok(())
}

/// Of what is written from now on.
pub(crate) async fn watch(channel: Channel) -> anyhow::Result<Streaming<WatchResponse>> {
    let create = WatchCreate {
        key: b"client-".to_vec(),
        range_end: b"client.".to_vec(),
    };
    let requests = tokio_stream::StreamExt::chain(
        tokio_stream::once(WatchRequest { create: Some(create) }),
        tokio_stream::pending(),
    );
    let mut grpc = Grpc::new(channel);
    grpc.ready().await?;
    let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
    let codec = ProstCodec::<WatchRequest, WatchResponse>::default();
    let mut events = grpc
        .streaming(Request::new(requests), path, codec)
        .await?
        .into_inner();
    let first = events.message().await?.context("the watch ended at once")?;
    ensure!(first.created, "the watch was not made");
    Ok(events)
}
