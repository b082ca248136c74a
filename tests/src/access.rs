//! The API of a cluster as a program calls it, beside `ctl`.

use std::fs;

use proto::v1::{ConfigMap, Object, ObjectMeta, object};
use rpc::tls::TlsError;
use rpc::v1::ApplyItem;
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

/// A ConfigMap of the namespace `default` with one value, to be applied.
pub fn config_map(name: &str, value: String) -> ApplyItem {
    let config_map = ConfigMap {
        metadata: Some(ObjectMeta {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            ..Default::default()
        }),
        data: [("value".to_owned(), value)].into(),
        ..Default::default()
    };
    ApplyItem {
        object: Some(Object {
            object: Some(object::Object::ConfigMap(config_map)),
        }),
        ..Default::default()
    }
}
