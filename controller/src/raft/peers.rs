//! Connections to the other members: mTLS, each member known by the name that the CA gave it, made when first used.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use rpc::tls::TlsError;
use rustls::ClientConfig;
use tonic::transport::Channel;

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

/// Channels to members, by number and lane.
#[derive(Clone)]
pub struct Peers {
    tls: Arc<ClientConfig>,
    channels: Arc<Mutex<Channels>>,
}

/// With the address that each goes to.
type Channels = HashMap<(MemberId, Lane), (String, Channel)>;

impl Peers {
    /// With the certificate that we show to others.
    pub fn new(tls: ClientConfig) -> Self {
        Self {
            tls: Arc::new(tls),
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
        let endpoints = [member.peer_address.clone()];
        let channel = rpc::tls::channel_with(&endpoints, self.tls.clone(), &member_server_name(id))?;
        channels.insert((id, lane), (member.peer_address.clone(), channel.clone()));
        Ok(channel)
    }

    /// Forgets a member that was removed.
    pub fn forget(&self, id: MemberId) {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.retain(|(other, _), _| *other != id);
    }
}
