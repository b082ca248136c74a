//! Netlink in small steps: find, name, remove.

use futures_util::TryStreamExt;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::Handle;

use super::NetworkError;

/// A connection in the network namespace of the calling thread. It ends with its last handle.
pub(super) fn connect() -> Result<Handle, NetworkError> {
    let (connection, handle, _) =
        rtnetlink::new_connection().map_err(NetworkError::io("open a netlink socket"))?;
    tokio::spawn(connection);
    Ok(handle)
}

/// An interface by its name; none when it is not there.
pub(super) async fn find(handle: &Handle, name: &str) -> Result<Option<LinkMessage>, NetworkError> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    match links.try_next().await {
        Ok(found) => Ok(found),
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => Ok(None),
        Err(error) => Err(NetworkError::netlink(format!("find interface {name}"))(error)),
    }
}

/// The index of an interface that must be there.
pub(super) async fn index(handle: &Handle, name: &str) -> Result<u32, NetworkError> {
    match find(handle, name).await? {
        Some(link) => Ok(link.header.index),
        None => Err(NetworkError::io(format!("find interface {name}"))(
            std::io::ErrorKind::NotFound.into(),
        )),
    }
}

/// Every interface's name.
pub(super) async fn names(handle: &Handle) -> Result<Vec<String>, NetworkError> {
    let links: Vec<LinkMessage> = handle
        .link()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(NetworkError::netlink("list interfaces"))?;
    Ok(links
        .iter()
        .filter_map(|link| Some(name(link)?.to_owned()))
        .collect())
}

pub(super) fn name(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

pub(super) fn mtu(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

/// Removes an interface; fine when it is not there or goes meanwhile.
pub(super) async fn remove(handle: &Handle, name: &str) -> Result<(), NetworkError> {
    let Some(link) = find(handle, name).await? else {
        return Ok(());
    };
    match handle.link().del(link.header.index).execute().await {
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => Ok(()),
        other => other.map_err(NetworkError::netlink(format!("remove interface {name}"))),
    }
}

/// Whether an answer says that what was to be made is there already.
pub(super) fn exists(error: &rtnetlink::Error) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(error) if error.raw_code() == -libc::EEXIST)
}
