//! The network of a development cluster: a bridge here, a network namespace and a veth pair for each node.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use netlink_packet_route::link::LinkAttribute;
use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::error::CtlError;

/// Prefix length of the shared network.
const PREFIX: u8 = 24;

fn failed(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> CtlError {
    let what = what.into();
    move |error| CtlError::refused(format!("{what}: {error}"))
}

/// A netlink connection in the namespace of the calling thread.
fn connect() -> Result<Handle, CtlError> {
    let (connection, handle, _) =
        rtnetlink::new_connection().map_err(CtlError::io("failed to open a netlink socket"))?;
    tokio::spawn(connection);
    Ok(handle)
}

async fn index(handle: &Handle, name: &str) -> Result<u32, CtlError> {
    use futures_util::TryStreamExt;
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    let found = links
        .try_next()
        .await
        .map_err(failed(format!("failed to find interface {name}")))?;
    found
        .map(|link| link.header.index)
        .ok_or_else(|| CtlError::refused(format!("interface {name} is not there")))
}

/// The bridge with the controllers' address.
pub(super) async fn add_bridge(name: &str, address: Ipv4Addr) -> Result<(), CtlError> {
    let handle = connect()?;
    let what = format!("failed to make bridge {name}");
    handle
        .link()
        .add(LinkBridge::new(name).build())
        .execute()
        .await
        .map_err(failed(&*what))?;
    let index = index(&handle, name).await?;
    handle
        .address()
        .add(index, IpAddr::V4(address), PREFIX)
        .execute()
        .await
        .map_err(failed(&*what))?;
    handle
        .link()
        .set(LinkUnspec::new_with_index(index).up().build())
        .execute()
        .await
        .map_err(failed(what))
}

/// Takes the bridge and its ports away; fine when they are not there. The kernel would remove a port with its node's
/// namespace, but only some time after.
pub(super) async fn remove_bridge(name: &str) -> Result<(), CtlError> {
    use futures_util::TryStreamExt;
    let handle = connect()?;
    let links: Vec<_> = handle
        .link()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(failed("failed to list interfaces"))?;
    let port = format!("{name}-");
    for link in links {
        let ours = link.attributes.iter().any(
            |attribute| matches!(attribute, LinkAttribute::IfName(own) if own == name || own.starts_with(&port)),
        );
        if !ours {
            continue;
        }
        match handle.link().del(link.header.index).execute().await {
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -nix::libc::ENODEV => {}
            other => other.map_err(failed(format!("failed to remove {name}")))?,
        }
    }
    Ok(())
}

/// Makes a node's namespace, bound at `path`, with `eth0` on the bridge.
pub(super) async fn add_node(
    bridge: &str,
    path: &Path,
    number: u32,
    address: Ipv4Addr,
) -> Result<(), CtlError> {
    let shown = path.display().to_string();
    std::fs::File::create(path).map_err(CtlError::io(format!("failed to create {shown}")))?;
    let netns = new_netns(path)?;
    let handle = connect()?;
    // Unique on the bridge's machine, at most 15 characters.
    let port = format!("{bridge}-{number}");
    let peer = format!("{bridge}p{number}");
    let what = format!("failed to link {shown} to {bridge}");
    let bridge = index(&handle, bridge).await?;
    handle
        .link()
        .add(LinkVeth::new(&port, &peer).build())
        .execute()
        .await
        .map_err(failed(&*what))?;
    let (port, peer) = (index(&handle, &port).await?, index(&handle, &peer).await?);
    let set = LinkUnspec::new_with_index(port).controller(bridge).up().build();
    handle.link().set(set).execute().await.map_err(failed(&*what))?;
    let mut moved = LinkUnspec::new_with_index(peer)
        .setns_by_fd(netns.as_raw_fd())
        .build();
    moved.attributes.push(LinkAttribute::IfName("eth0".to_owned()));
    handle.link().set(moved).execute().await.map_err(failed(&*what))?;
    in_netns(&netns, move || configure_node(address))?
}

/// Inside the node: loopback, `eth0`, its address.
fn configure_node(address: Ipv4Addr) -> Result<(), CtlError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CtlError::io("failed to start a runtime"))?;
    runtime.block_on(async {
        let handle = connect()?;
        let what = "failed to set up a node's network";
        for name in ["lo", "eth0"] {
            let index = index(&handle, name).await?;
            if name == "eth0" {
                handle
                    .address()
                    .add(index, IpAddr::V4(address), PREFIX)
                    .execute()
                    .await
                    .map_err(failed(what))?;
            }
            let up = LinkUnspec::new_with_index(index).up().build();
            handle.link().set(up).execute().await.map_err(failed(what))?;
        }
        Ok(())
    })
}

/// Routes the pods of one node to it, so that a person on this machine reaches pods by their addresses.
pub(super) async fn add_pod_route(range: Ipv4Addr, prefix: u8, node: Ipv4Addr) -> Result<(), CtlError> {
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(range, prefix)
        .gateway(node)
        .build();
    match connect()?.route().add(route).replace().execute().await {
        Ok(()) => Ok(()),
        Err(error) => Err(CtlError::refused(format!(
            "failed to route {range}/{prefix} to {node}: {error}"
        ))),
    }
}

/// A new network namespace, kept by a mount at `path`.
fn new_netns(path: &Path) -> Result<OwnedFd, CtlError> {
    let path = path.to_owned();
    let what = format!("failed to make the network namespace {}", path.display());
    // A thread of its own: unshare(2) moves the calling thread only, and this one must stay where it is.
    let made = std::thread::spawn(move || -> std::io::Result<OwnedFd> {
        nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
        let own = "/proc/thread-self/ns/net";
        nix::mount::mount(Some(own), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        Ok(std::fs::File::open(&path)?.into())
    });
    match made.join() {
        Ok(result) => result.map_err(CtlError::io(what)),
        Err(_) => Err(CtlError::refused(what)),
    }
}

/// Runs `work` on a thread inside `netns`; what it starts is there too.
pub(super) fn in_netns<T: Send + 'static>(
    netns: &OwnedFd,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, CtlError> {
    let netns = netns
        .try_clone()
        .map_err(CtlError::io("failed to copy a descriptor"))?;
    let thread = std::thread::spawn(move || -> std::io::Result<T> {
        nix::sched::setns(&netns, CloneFlags::CLONE_NEWNET)?;
        Ok(work())
    });
    let what = "failed to enter a node's network namespace";
    match thread.join() {
        Ok(result) => result.map_err(CtlError::io(what)),
        Err(_) => Err(CtlError::refused(what)),
    }
}

/// Unmounts what keeps a namespace and removes the file; fine when it is not there.
pub(super) fn remove_netns(path: &Path) -> Result<(), CtlError> {
    match nix::mount::umount2(path, MntFlags::MNT_DETACH) {
        // EINVAL: not a mount point, as `up` was stopped before it became one.
        Ok(()) | Err(nix::errno::Errno::ENOENT | nix::errno::Errno::EINVAL) => {}
        Err(error) => {
            return Err(CtlError::io(format!("failed to unmount {}", path.display()))(
                error.into(),
            ));
        }
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(CtlError::io(format!(
            "failed to remove {}",
            path.display()
        ))(error)),
        _ => Ok(()),
    }
}
