//! Pods of two nodes, each node a network namespace, joined by a bridge in a third: packets that arrive are the proof.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use agent::network::{Backend, Bandwidth, HostPort, Network, NetworkConfig, Peer, PodNet, Protocol};
use nix::sched::CloneFlags;

/// A network namespace that ends with this value: nothing but its descriptor keeps it.
struct Netns(OwnedFd);

impl Netns {
    fn new() -> Self {
        let made = std::thread::spawn(|| {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET).expect("unshare (run as root)");
            File::open("/proc/thread-self/ns/net").expect("own namespace")
        });
        Self(made.join().expect("thread").into())
    }

    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let fd = self.0.try_clone().unwrap();
        let entered = std::thread::spawn(move || {
            nix::sched::setns(&fd, CloneFlags::CLONE_NEWNET).expect("setns");
            work()
        });
        entered.join().expect("thread")
    }

    /// Runs words inside and returns the output.
    fn sh(&self, words: &str) -> String {
        let words = words.to_owned();
        self.run(move || {
            let output = Command::new("sh").args(["-ec", &words]).output().expect("sh");
            assert!(
                output.status.success(),
                "{words}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
    }

    /// Async work on a runtime whose thread is inside.
    fn block_on<T, F>(&self, work: impl FnOnce() -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        self.run(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(work())
        })
    }

    fn path(&self) -> PathBuf {
        use std::os::fd::AsRawFd;
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }
}

struct Node {
    netns: Netns,
    config: NetworkConfig,
}

/// Two nodes on one link: 192.0.2.1 and .2, pods in 10.244.1.0/24 and 10.244.2.0/24.
fn nodes(backend: Backend) -> (Netns, [Node; 2]) {
    let link = Netns::new();
    link.sh("ip link add br0 type bridge; ip link set br0 up");
    let node = |number: u8| {
        let netns = Netns::new();
        link.sh(&format!(
            "ip link add v{number} type veth peer name eth0 netns {}; ip link set v{number} master br0 up",
            netns.path().display()
        ));
        netns.sh(&format!(
            "ip link set lo up; ip addr add 192.0.2.{number}/24 dev eth0; ip link set eth0 up"
        ));
        let config = NetworkConfig {
            bridge: "bulkhead0".to_owned(),
            backend,
            range: format!("10.244.{number}.0/24").parse().unwrap(),
            cluster: "10.244.0.0/16".parse().unwrap(),
            node_address: Ipv4Addr::new(192, 0, 2, number),
        };
        Node { netns, config }
    };
    let nodes = [node(1), node(2)];
    (link, nodes)
}

impl Node {
    fn peer(&self) -> Peer {
        Peer {
            address: self.config.node_address,
            range: self.config.range,
        }
    }

    /// Opens the network, links to `peer` and attaches one pod; twice, as a restarted agent does.
    fn bring_up(&self, peer: Peer, spec: PodNet) {
        let config = self.config.clone();
        self.netns.block_on(move || async move {
            for _ in 0..2 {
                let network = Network::open(config.clone()).await.expect("open");
                network
                    .set_peers(std::slice::from_ref(&peer))
                    .await
                    .expect("peers");
                network.attach(&spec).await.expect("attach");
            }
        });
    }
}

fn pod(netns: &Netns, uid: &str, address: Ipv4Addr) -> PodNet {
    let netns = netns.0.try_clone().unwrap();
    PodNet {
        uid: uid.to_owned(),
        netns,
        address,
        bandwidth: Bandwidth::default(),
        ports: Vec::new(),
    }
}

/// Serves `answer` to each caller at a port of the namespace, for as long as the test runs.
fn serve(netns: &Netns, port: u16) {
    netns.run(move || {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).expect("listen");
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("accept");
                let caller = stream.peer_addr().expect("caller").ip().to_string();
                // The caller may hang up early.
                drop(stream.write_all(caller.as_bytes()));
            }
        });
    });
}

/// What the server at `to` says of the caller's address.
fn ask(netns: &Netns, to: SocketAddrV4) -> std::io::Result<String> {
    netns.run(move || {
        let mut stream = TcpStream::connect_timeout(&to.into(), Duration::from_secs(5))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })
}

fn pods_reach_each_other(backend: Backend) {
    let (_link, [one, two]) = nodes(backend);
    let (a, b, c) = (Netns::new(), Netns::new(), Netns::new());
    let (at_a, at_b, at_c) = (
        Ipv4Addr::new(10, 244, 1, 2),
        Ipv4Addr::new(10, 244, 2, 2),
        Ipv4Addr::new(10, 244, 1, 3),
    );
    one.bring_up(two.peer(), pod(&a, "uid-a", at_a));
    one.bring_up(two.peer(), pod(&c, "uid-c", at_c));
    two.bring_up(one.peer(), pod(&b, "uid-b", at_b));
    for netns in [&a, &b, &c] {
        serve(netns, 80);
    }
    for (from, own, to) in [
        (&a, at_a, at_b),
        (&b, at_b, at_a),
        (&a, at_a, at_c),
        (&c, at_c, at_a),
        (&c, at_c, at_b),
    ] {
        // The server sees the pod's own address: nothing between pods is masqueraded.
        assert_eq!(
            ask(from, SocketAddrV4::new(to, 80)).expect("an answer"),
            own.to_string(),
            "{own} to {to}"
        );
    }
    // The node itself reaches its pods.
    assert!(ask(&one.netns, SocketAddrV4::new(at_a, 80)).is_ok());
    let mtu = if backend == Backend::Vxlan {
        "mtu 1450"
    } else {
        "mtu 1500"
    };
    assert!(a.sh("ip link show eth0").contains(mtu));
}

#[test]
fn pods_reach_each_other_over_vxlan() {
    pods_reach_each_other(Backend::Vxlan);
}

#[test]
fn pods_reach_each_other_by_routes() {
    pods_reach_each_other(Backend::HostGateway);
}

#[test]
fn a_port_of_the_node_leads_to_its_pod() {
    let (_link, [one, two]) = nodes(Backend::Vxlan);
    let a = Netns::new();
    let port = HostPort {
        host_ip: None,
        host_port: 8080,
        container_port: 80,
        protocol: Protocol::Tcp,
    };
    let spec = PodNet {
        ports: vec![port],
        ..pod(&a, "uid-a", Ipv4Addr::new(10, 244, 1, 2))
    };
    one.bring_up(two.peer(), spec);
    serve(&a, 80);
    let from_outside =
        ask(&two.netns, SocketAddrV4::new(one.config.node_address, 8080)).expect("from another host");
    assert_eq!(from_outside, "192.0.2.2", "the caller's address is kept");
    ask(&one.netns, SocketAddrV4::new(one.config.node_address, 8080)).expect("from the node by its address");
    ask(&one.netns, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8080)).expect("from the node by 127.0.0.1");
    ask(&a, SocketAddrV4::new(one.config.node_address, 8080))
        .expect("the pod reaches itself by the node's port");
}

#[test]
fn what_leaves_the_cluster_has_the_nodes_address() {
    let (_link, [one, two]) = nodes(Backend::Vxlan);
    let a = Netns::new();
    one.bring_up(two.peer(), pod(&a, "uid-a", Ipv4Addr::new(10, 244, 1, 2)));
    serve(&two.netns, 9000);
    let seen = ask(&a, SocketAddrV4::new(two.config.node_address, 9000)).expect("an answer");
    assert_eq!(seen, "192.0.2.1");
}

#[test]
fn bandwidth_is_held_within_fifteen_percent() {
    const BPS: u64 = 40_000_000;
    let (_link, [one, two]) = nodes(Backend::Vxlan);
    let (a, b) = (Netns::new(), Netns::new());
    let limited = PodNet {
        bandwidth: Bandwidth {
            ingress_bps: Some(BPS),
            egress_bps: Some(BPS),
        },
        ..pod(&a, "uid-a", Ipv4Addr::new(10, 244, 1, 2))
    };
    one.bring_up(two.peer(), limited);
    two.bring_up(one.peer(), pod(&b, "uid-b", Ipv4Addr::new(10, 244, 2, 2)));
    for (server, client, to) in [(&a, &b, [10, 244, 1, 2]), (&b, &a, [10, 244, 2, 2])] {
        let rate = throughput(server, client, SocketAddrV4::new(to.into(), 5000));
        let ratio = rate / BPS as f64;
        assert!((0.85..1.15).contains(&ratio), "{rate} bits a second of {BPS}");
    }
}

/// Bits a second of one TCP stream, over two seconds after its start.
fn throughput(server: &Netns, client: &Netns, to: SocketAddrV4) -> f64 {
    let listener = server.run(move || TcpListener::bind((Ipv4Addr::UNSPECIFIED, to.port())).expect("listen"));
    let reader = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        let mut buffer = vec![0; 1 << 16];
        let read_for = |stream: &mut TcpStream, buffer: &mut [u8], time: Duration| {
            let start = Instant::now();
            let mut total = 0;
            while start.elapsed() < time {
                total += stream.read(buffer).expect("read");
            }
            total as f64 * 8.0 / start.elapsed().as_secs_f64()
        };
        // The bucket's first burst and TCP's start are not the rate.
        read_for(&mut stream, &mut buffer, Duration::from_millis(700));
        read_for(&mut stream, &mut buffer, Duration::from_secs(2))
    });
    client.run(move || {
        let mut stream = TcpStream::connect_timeout(&to.into(), Duration::from_secs(5)).expect("connect");
        let block = vec![0; 1 << 16];
        while stream.write_all(&block).is_ok() {}
    });
    reader.join().expect("reader")
}

#[test]
fn nothing_is_left_after_the_pods_and_the_node_have_gone() {
    let (_link, [one, two]) = nodes(Backend::Vxlan);
    let before = one
        .netns
        .sh("ip -o link | wc -l; ip route; nft list ruleset; bridge fdb | wc -l");
    let config = one.config.clone();
    let peer = two.peer();
    one.netns.block_on(move || async move {
        let network = Network::open(config).await.expect("open");
        network.set_peers(&[peer]).await.expect("peers");
        for number in 2..12u8 {
            let netns = Netns::new();
            let port = HostPort {
                host_ip: None,
                host_port: 8000 + u16::from(number),
                container_port: 80,
                protocol: Protocol::Udp,
            };
            let uid = format!("uid-{number}");
            let spec = PodNet {
                bandwidth: Bandwidth {
                    ingress_bps: None,
                    egress_bps: Some(1_000_000),
                },
                ports: vec![port],
                ..pod(&netns, &uid, Ipv4Addr::new(10, 244, 1, number))
            };
            network.attach(&spec).await.expect("attach");
            drop(spec);
            drop(netns);
            network.detach(&uid).await.expect("detach");
        }
        network.set_peers(&[]).await.expect("no peers");
        network.close().await.expect("close");
    });
    // Namespaces are taken down by the kernel in its own time.
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let after = one
            .netns
            .sh("ip -o link | wc -l; ip route; nft list ruleset; bridge fdb | wc -l");
        if after == before {
            return;
        }
        assert!(Instant::now() < end, "before:\n{before}\nafter:\n{after}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
