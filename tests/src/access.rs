//! The API of a cluster as a program calls it, beside `ctl`.

use std::fs;

use rpc::tls::TlsError;
use serde::Deserialize;
use tonic::transport::Channel;

use crate::Cluster;

/// What `ctl` keeps to reach a cluster as its administrator.
#[derive(Clone, Debug, Deserialize)]
pub struct Access {
    /// HOST:PORT of each member's API.
    pub endpoints: Vec<String>,
    /// PEM, as the two below.
    pub ca: String,
    /// The client's certificate.
    pub cert: String,
    /// Its key.
    pub key: String,
}

#[derive(Deserialize)]
struct Config {
    contexts: Vec<Access>,
}

impl Access {
    /// The administrator's.
    pub fn of(cluster: &Cluster) -> Self {
        let text = fs::read_to_string(cluster.directory().join("config.yaml")).expect("the configuration");
        let config: Config = serde_saphyr::from_str(&text).expect("the configuration");
        config.contexts.into_iter().next().expect("a context")
    }

    /// A connection of its own to one member, made when it is used. Called inside a runtime of tokio.
    pub fn channel(&self, member: usize) -> Result<Channel, TlsError> {
        let endpoint = &self.endpoints[member % self.endpoints.len()];
        let identity = (self.cert.as_str(), self.key.as_str());
        rpc::tls::channel(std::slice::from_ref(endpoint), &self.ca, Some(identity))
    }
}
