//! Three controllers of the built binaries.

use std::path::Path;

use anyhow::{Context, ensure};
use rpc::v1::api_client::ApiClient;
use rpc::v1::{ApplyRequest, GetRequest, WatchRequest};
use tests::access::config_map;
use tests::{Access, Cluster};
use tonic::transport::Channel;

use crate::load::{Peer, largest_mib};

pub(crate) struct Members {
    cluster: Cluster,
    access: Access,
}

impl Members {
    pub(crate) fn up() -> anyhow::Result<Self> {
        let cluster = Cluster::up_with(3, 1, &[]);
        let access = Access::of(&cluster);
        ensure!(access.endpoints.len() == 3, "{:?}", access.endpoints);
        Ok(Self { cluster, access })
    }

    pub(crate) fn directory(&self) -> &Path {
        self.cluster.directory()
    }

    /// Connections, spread over the members.
    pub(crate) fn peers(&self, count: usize) -> anyhow::Result<Vec<Peer>> {
        let peer = |number| Ok(Peer::Bulkhead(ApiClient::new(self.access.channel(number)?)));
        (0..count).map(peer).collect()
    }

    pub(crate) fn memory_mib(&self) -> anyhow::Result<f64> {
        let pids = (1..=3).map(|number| self.cluster.process(&format!("controller-{number}")).pid);
        largest_mib(pids)
    }
}

pub(crate) async fn write(api: &mut ApiClient<Channel>, key: &str, value: String) -> anyhow::Result<()> {
    let request = ApplyRequest {
        items: vec![config_map(key, value)],
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
