//! Three controllers of the built binaries.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use proto::v1::{ConfigMap, Object, ObjectMeta, object};
use rpc::v1::api_client::ApiClient;
use rpc::v1::{ApplyItem, ApplyRequest, GetRequest, WatchRequest};
use serde::Deserialize;
use tests::Cluster;
use tonic::transport::Channel;

use crate::load::{Peer, largest_mib};

pub(crate) struct Members {
    cluster: Cluster,
    context: Access,
}

/// What a client needs, as `ctl` keeps it.
#[derive(Deserialize)]
struct Config {
    contexts: Vec<Access>,
}

#[derive(Deserialize)]
struct Access {
    endpoints: Vec<String>,
    ca: String,
    cert: String,
    key: String,
}

impl Members {
    pub(crate) fn up() -> anyhow::Result<Self> {
        let cluster = Cluster::up_with(3, 1, &[]);
        let text = fs::read_to_string(cluster.directory().join("config.yaml"))?;
        let config: Config = serde_saphyr::from_str(&text)?;
        let context = config.contexts.into_iter().next().context("no context")?;
        ensure!(context.endpoints.len() == 3, "{:?}", context.endpoints);
        Ok(Self { cluster, context })
    }

    pub(crate) fn directory(&self) -> &Path {
        self.cluster.directory()
    }

    /// Connections, spread over the members.
    pub(crate) fn peers(&self, count: usize) -> anyhow::Result<Vec<Peer>> {
        let Access {
            endpoints,
            ca,
            cert,
            key,
        } = &self.context;
        let members = endpoints.iter().cycle().take(count);
        members
            .map(|endpoint| {
                let channel = rpc::tls::channel(std::slice::from_ref(endpoint), ca, Some((cert, key)))?;
                Ok(Peer::Bulkhead(ApiClient::new(channel)))
            })
            .collect()
    }

    pub(crate) fn memory_mib(&self) -> anyhow::Result<f64> {
        let pids = (1..=3).map(|number| self.cluster.process(&format!("controller-{number}")).pid);
        largest_mib(pids)
    }
}

pub(crate) async fn write(api: &mut ApiClient<Channel>, key: &str, value: String) -> anyhow::Result<()> {
    let config_map = ConfigMap {
        metadata: Some(ObjectMeta {
            name: key.to_owned(),
            namespace: "default".to_owned(),
            ..Default::default()
        }),
        data: [("value".to_owned(), value)].into(),
        ..Default::default()
    };
    let object = Object {
        object: Some(object::Object::ConfigMap(config_map)),
    };
    let request = ApplyRequest {
        items: vec![ApplyItem {
            object: Some(object),
            mode: String::new(),
        }],
        ..Default::default()
    };
    let answer = api.apply(request).await?.into_inner();
    ensure!(answer.results.iter().all(|result| result.outcome != "unchanged"));
    Ok(())
}

pub(crate) async fn read(api: &mut ApiClient<Channel>, key: &str) -> anyhow::Result<()> {
    let key = proto::state::v1::Key {
        kind: "ConfigMap".to_owned(),
        namespace: "default".to_owned(),
        name: key.to_owned(),
    };
    api.get(GetRequest {
        key: Some(key),
        stale: false,
    })
    .await?;
    Ok(())
}

/// Of what is written from now on.
pub(crate) async fn watch(
    mut api: ApiClient<Channel>,
) -> anyhow::Result<tonic::Streaming<rpc::v1::WatchEvent>> {
    let request = WatchRequest {
        kind: "ConfigMap".to_owned(),
        namespace: "default".to_owned(),
        ..Default::default()
    };
    let mut events = api.watch(request).await?.into_inner();
    // First everything there is, then a bookmark.
    loop {
        let event = events
            .message()
            .await?
            .context("the watch ended before its bookmark")?;
        if event.r#type == "BOOKMARK" {
            return Ok(events);
        }
    }
}
