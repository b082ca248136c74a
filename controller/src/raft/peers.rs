//! Connections to the other members: mTLS, each member known by the name that the CA gave it, made when first used.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use http::{Request, Response};
use rpc::tls::TlsError;
use rustls::ClientConfig;
use tonic::Status;
use tonic::body::Body;
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

use super::types::{Member, MemberId};
use crate::security::identity::member_server_name;

/// What a connection is for: bulk on one must not hold up a heartbeat on another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// The log, and votes.
    Log,
    /// Heartbeats only.
    Heartbeat,
    /// Snapshots.
    Snapshot,
    /// Forwarded calls.
    Calls,
}

/// What calls to another member are made over.
pub type Channel = BoxCloneSyncService<Request<Body>, Response<Body>, Status>;

/// How members are reached: over mTLS, or over a simulated network.
pub trait Transport: Send + Sync + 'static {
    /// What calls to this member are made over; it connects when it is first used.
    fn channel(&self, id: MemberId, member: &Member, lane: Lane) -> Result<Channel, TlsError>;
}

/// Channels to members, by number and lane.
#[derive(Clone)]
pub struct Peers {
    transport: Arc<dyn Transport>,
    channels: Arc<Mutex<Channels>>,
}

/// With the address that each goes to.
type Channels = HashMap<(MemberId, Lane), (String, Channel)>;

impl Peers {
    /// None connected yet.
    pub fn new(transport: impl Transport) -> Self {
        Self {
            transport: Arc::new(transport),
            channels: Arc::default(),
        }
    }

    /// The channel to a member; a new one when its address has changed.
    pub fn channel(&self, id: MemberId, member: &Member, lane: Lane) -> Result<Channel, TlsError> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((address, channel)) = channels.get(&(id, lane))
            && *address == member.peer_address
        {
            return Ok(channel.clone());
        }
        let channel = self.transport.channel(id, member, lane)?;
        channels.insert((id, lane), (member.peer_address.clone(), channel.clone()));
        Ok(channel)
    }

    /// Forgets a member that was removed.
    pub fn forget(&self, id: MemberId) {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.retain(|(other, _), _| *other != id);
    }
}

/// With the certificate that we show to others.
impl From<ClientConfig> for Peers {
    fn from(tls: ClientConfig) -> Self {
        Self::new(Tls(Arc::new(tls)))
    }
}

struct Tls(Arc<ClientConfig>);

impl Transport for Tls {
    fn channel(&self, id: MemberId, member: &Member, _: Lane) -> Result<Channel, TlsError> {
        let endpoints = [member.peer_address.clone()];
        let channel = rpc::tls::channel_with(&endpoints, self.0.clone(), &member_server_name(id))?;
        Ok(Channel::new(
            channel.map_err(|cause| Status::from_error(Box::new(cause))),
        ))
    }
}
