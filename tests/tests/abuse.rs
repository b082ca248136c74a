//! What a hostile or broken client does to a controller: its memory stays bounded, agents and people are served on.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use http::Request;
use proto::v1::{ConfigMap, Object, ObjectMeta, object};
use rpc::tls::CONTROLLER_NAME;
use rpc::v1::api_client::ApiClient;
use rpc::v1::{ApplyItem, ApplyRequest, WatchRequest};
use tests::{Access, Cluster, can_run, kernel, wait_for};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Resident memory that no attack drives a controller above.
const MEMORY_MIB_MAX: u64 = 384;
const PATIENCE: Duration = Duration::from_secs(60);

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A cluster with a pod, and what an attacker uses.
struct Target {
    cluster: Cluster,
    access: Access,
    runtime: tokio::runtime::Runtime,
}

impl Target {
    fn new() -> Self {
        let cluster = Cluster::up_with(1, 1, &[]);
        let access = Access::of(&cluster);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("threads");
        Self {
            cluster,
            access,
            runtime,
        }
    }

    /// Runs an attack, with people served beside it.
    fn survives<T>(&self, what: &str, attack: impl Future<Output = T> + Send + 'static) -> T
    where
        T: Send + 'static,
    {
        let attack = self.runtime.spawn(attack);
        let mut served = 0;
        while !attack.is_finished() || served == 0 {
            self.cluster.ok(&["get", "nodes"]);
            served += 1;
        }
        println!("{what}: {served} calls were served beside it");
        let outcome = self.runtime.block_on(attack).expect("the attack itself");
        self.is_well(what);
        outcome
    }

    /// The same where the attacker uses up what one person has of new connections: agents keep theirs.
    fn outlives<T>(&self, what: &str, attack: impl Future<Output = T>) -> T {
        let outcome = self.runtime.block_on(attack);
        self.is_well(what);
        outcome
    }

    /// The node was ready all the time, people are served, memory was bounded.
    fn is_well(&self, what: &str) {
        wait_for("the attack's connections to be gone", PATIENCE, || {
            (self.cluster.ctl(&["get", "nodes"]).code == 0).then_some(())
        });
        let text = self.cluster.ok(&["get", "nodes"]);
        assert!(
            text.contains("Ready") && !text.contains("Unknown"),
            "{what}: {text}"
        );
        let events = self.cluster.ok(&["events", "-A"]);
        assert!(!events.contains("NodeNotReady"), "{what}: {events}");
        let pid = self.cluster.process("controller-1").pid;
        let peak = kernel::status(pid)["VmHWM"]
            .trim_end_matches(" kB")
            .parse::<u64>();
        let peak = peak.expect("a number") / 1024;
        println!("{what}: peak of the controller's memory so far {peak} MiB");
        assert!(peak < MEMORY_MIB_MAX, "{what}: {peak} MiB");
    }
}

/// A TLS connection, with the administrator's certificate or none.
async fn connect(access: &Access, certificate: bool) -> Result<TlsStream<TcpStream>, Failure> {
    let identity = certificate.then_some((access.cert.as_str(), access.key.as_str()));
    let config = rpc::tls::client_config(&access.ca, identity)?;
    let stream = TcpStream::connect(&access.endpoints[0]).await?;
    let name = CONTROLLER_NAME.try_into()?;
    Ok(TlsConnector::from(Arc::new(config)).connect(name, stream).await?)
}

async fn session(access: &Access) -> Result<SendRequest<Bytes>, Failure> {
    let (requests, connection) = h2::client::handshake(connect(access, true).await?).await?;
    tokio::spawn(async move {
        // Its end is what the attack provokes.
        if let Err(cause) = connection.await {
            println!("the controller ended a connection: {cause}");
        }
    });
    Ok(requests)
}

fn call(method: &str) -> http::request::Builder {
    Request::post(format!("https://{CONTROLLER_NAME}/bulkhead.rpc.v1.Api/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
}

/// CVE-2023-44487: calls that are taken back at once.
async fn rapid_reset(access: Access) -> usize {
    let mut reset = 0;
    let mut ended = 0;
    while reset < 20_000 {
        let Ok(mut requests) = session(&access).await else {
            continue;
        };
        loop {
            let Ok(ready) = requests.ready().await else { break };
            requests = ready;
            let request = call("List").body(()).expect("a request");
            let Ok((_, mut stream)) = requests.send_request(request, false) else {
                break;
            };
            stream.send_reset(h2::Reason::CANCEL);
            reset += 1;
            if reset % 100 == 0 {
                tokio::task::yield_now().await;
            }
            if reset >= 20_000 {
                return ended;
            }
        }
        ended += 1;
    }
    ended
}

/// Headers without end.
async fn header_flood(access: Access) -> usize {
    let mut refused = 0;
    for _ in 0..50 {
        let Ok(requests) = session(&access).await else {
            continue;
        };
        let Ok(mut requests) = requests.ready().await else {
            continue;
        };
        let mut request = call("List");
        for number in 0..4_000 {
            request = request.header(format!("x-flood-{number}"), "x".repeat(200));
        }
        let answered = match requests.send_request(request.body(()).expect("a request"), true) {
            Ok((response, _)) => response.await,
            Err(cause) => Err(cause),
        };
        match answered {
            Ok(response) if response.status().is_success() => {}
            _ => refused += 1,
        }
    }
    refused
}

/// One message that says it has 1 GiB, and sends as much of it as is taken.
async fn endless_message(access: Access) -> u64 {
    let requests = session(&access).await.expect("a session");
    let mut requests = requests.ready().await.expect("a session");
    let (response, mut stream) = requests
        .send_request(call("Apply").body(()).expect("a request"), false)
        .expect("a stream");
    let mut prefix = BytesMut::new();
    prefix.put_u8(0);
    prefix.put_u32(1 << 30);
    let mut sent = 0_u64;
    let chunk = Bytes::from(vec![0; 64 << 10]);
    let sending = async {
        if stream.send_data(prefix.freeze(), false).is_err() {
            return;
        }
        while sent < 1 << 30 {
            stream.reserve_capacity(chunk.len());
            match std::future::poll_fn(|cx| stream.poll_capacity(cx)).await {
                Some(Ok(room)) => {
                    let part = chunk.slice(..room.min(chunk.len()));
                    sent += part.len() as u64;
                    if stream.send_data(part, false).is_err() {
                        return;
                    }
                }
                _ => return,
            }
        }
    };
    let answered = tokio::time::timeout(PATIENCE, async { tokio::join!(sending, response).1 }).await;
    match answered.expect("an answer in time") {
        Ok(response) => assert_ne!(
            response.headers().get("grpc-status").map(|code| code.as_bytes()),
            Some(&b"0"[..])
        ),
        Err(cause) => println!("the controller ended the call: {cause}"),
    }
    sent
}

/// Connections that say nothing: how many of them are kept.
async fn idle(access: Access, certificate: bool, count: usize) -> usize {
    let kept = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        let (access, keeping) = (access.clone(), kept.clone());
        tasks.spawn(async move {
            let Ok(mut stream) = connect(&access, certificate).await else {
                return None;
            };
            // TLS 1.3's tickets come first; an end comes at once where it comes.
            let mut buffer = [0; 1024];
            let read = tokio::io::AsyncReadExt::read(&mut stream, &mut buffer);
            match tokio::time::timeout(Duration::from_secs(2), read).await {
                Err(_) | Ok(Ok(1..)) => {
                    keeping.fetch_add(1, Ordering::Relaxed);
                    Some(stream)
                }
                Ok(_) => None,
            }
        });
        // The kernel's backlog is not what is tested.
        while tasks.len() >= 100 + kept.load(Ordering::Relaxed) {
            tasks.join_next().await;
        }
    }
    let open = tasks.join_all().await;
    open.iter().flatten().count()
}

async fn watches(access: &Access, count: usize) -> Vec<tonic::Streaming<rpc::v1::WatchEvent>> {
    let mut channels = Vec::new();
    let mut open = Vec::with_capacity(count);
    for number in 0..count {
        if number % 200 == 0 {
            channels.push(ApiClient::new(access.channel(0).expect("a channel")));
        }
        let request = WatchRequest {
            kind: "ConfigMap".to_owned(),
            namespace: "default".to_owned(),
            ..Default::default()
        };
        let api = channels.last_mut().expect("the first is made at 0");
        open.push(api.watch(request).await.expect("a watch").into_inner());
    }
    open
}

async fn write(access: &Access, name: &str, bytes: usize) {
    let config_map = ConfigMap {
        metadata: Some(ObjectMeta {
            name: name.to_owned(),
            ..Default::default()
        }),
        data: [("value".to_owned(), "x".repeat(bytes))].into(),
        ..Default::default()
    };
    let item = ApplyItem {
        object: Some(Object {
            object: Some(object::Object::ConfigMap(config_map)),
        }),
        ..Default::default()
    };
    let request = ApplyRequest {
        items: vec![item],
        ..Default::default()
    };
    let mut api = ApiClient::new(access.channel(0).expect("a channel"));
    api.apply(request).await.expect("a write");
}

/// Ten thousand watchers of one kind: each sees the change.
async fn many_watches(access: Access) -> usize {
    let mut open = watches(&access, 10_000).await;
    write(&access, "seen-by-all", 100).await;
    let mut seen = 0;
    for events in &mut open {
        loop {
            let event = tokio::time::timeout(PATIENCE, events.message())
                .await
                .expect("an event in time");
            let Some(event) = event.expect("an event") else {
                break;
            };
            if event.r#type == "ADDED" && format!("{:?}", event.object).contains("seen-by-all") {
                seen += 1;
                break;
            }
        }
    }
    seen
}

/// Watchers that never read, while much is written.
async fn slow_watches(access: Access) {
    let open = watches(&access, 400).await;
    for number in 0..400 {
        write(&access, &format!("large-{number}"), 200 << 10).await;
    }
    drop(open);
}

#[test]
fn a_hostile_client_takes_nothing_from_others() {
    if !can_run("a_hostile_client_takes_nothing_from_others", &["ip", "nft"]) {
        return;
    }
    let target = Target::new();
    let access = || target.access.clone();
    let ended = target.survives("rapid reset", rapid_reset(access()));
    assert!(ended > 0, "no connection was ended for its resets");
    let refused = target.survives("header flood", header_flood(access()));
    assert_eq!(refused, 50, "requests with 800 KiB of headers were taken");
    let sent = target.survives("a message of 1 GiB", endless_message(access()));
    assert!(sent < 64 << 20, "{sent} bytes of it were taken");
    let kept = target.outlives("idle connections", idle(access(), true, 5_000));
    assert!(kept < 1_100, "{kept} idle connections of one caller are kept");
    let kept = target.outlives("idle connections of nobody", idle(access(), false, 5_000));
    assert!(kept < 600, "{kept} idle connections of nobody are kept");
}

#[test]
fn ten_thousand_watches_and_readers_that_do_not_read_are_bounded() {
    if !can_run(
        "ten_thousand_watches_and_readers_that_do_not_read_are_bounded",
        &["ip", "nft"],
    ) {
        return;
    }
    let target = Target::new();
    let seen = target.survives("10,000 watches", many_watches(target.access.clone()));
    assert_eq!(seen, 10_000);
    target.survives("readers that do not read", slow_watches(target.access.clone()));
    wait_for("the cluster to serve on", PATIENCE, || {
        let text = target.cluster.ok(&["get", "configmaps"]);
        text.contains("large-399").then_some(())
    });
}
