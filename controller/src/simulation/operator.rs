//! Who runs Deployments, and who is in their way.

use model::{at_most_once, object};
use proto::state::v1::DeleteOp;
use proto::v1::{
    Container, Deployment, DeploymentSpec, DeploymentStrategy, LabelSelector, Object, ObjectMeta, PodSpec,
    PodTemplateSpec, Quantity, ResourceRequirements,
};
use rpc::v1::{ApplyItem, ApplyRequest, DeleteRequest, ListRequest, ScaleRequest, SetSchedulableRequest};
use tokio::time::Instant;

use super::check::newest;
use super::client::{Client, key, meta};
use super::fence::GRACE_S;
use super::history::{Told, version};
use crate::security::new_uuid;

/// Deployments of the operator, and their most replicas; each asks for half a CPU.
const DEPLOYMENTS: [&str; 3] = ["web", "db", "queue"];
const REPLICAS_MAX: u64 = 6;
/// A Deployment of a pod that must not run twice.
const ONLY: &str = "only";

impl Client {
    /// Runs Deployments: applies and scales them, and changes their templates.
    pub(super) async fn operate(mut self, until: Instant) {
        let names: Vec<&str> = DEPLOYMENTS.into_iter().chain([ONLY]).collect();
        for &name in &names {
            let replicas = if name == ONLY { 1 } else { 2 };
            while !self.deploy(name, replicas).await {
                self.rest(50, 500).await;
            }
        }
        while Instant::now() < until {
            self.rest(100, 1500).await;
            let name = names[self.random.below(names.len() as u64) as usize];
            let replicas = match name {
                // Mostly one: only that can be one too many.
                ONLY => i32::from(self.random.below(4) > 0),
                _ => self.random.below(REPLICAS_MAX + 1) as i32,
            };
            match self.random.below(2) {
                0 => {
                    self.deploy(name, replicas).await;
                }
                _ => self.scale(name, replicas).await,
            }
        }
    }

    /// Is in their way: closes nodes for new pods, opens them again, and deletes pods, which others then replace.
    pub(super) async fn disturb(mut self, nodes: Vec<String>, until: Instant) {
        while Instant::now() < until {
            self.rest(20, 600).await;
            match self.random.below(3) {
                0 => self.delete_any_pod().await,
                _ => {
                    let node = nodes[self.random.below(nodes.len() as u64) as usize].clone();
                    let close = self.random.below(2) == 0;
                    self.cordon(node, close, 1).await;
                }
            }
        }
        for node in nodes {
            self.cordon(node, false, u64::MAX).await;
        }
    }

    async fn delete_any_pod(&mut self) {
        let request = ListRequest {
            kind: "Pod".to_owned(),
            stale: true,
            ..ListRequest::default()
        };
        let member = self.any_member();
        let mut api = self.api(member);
        let Ok(pods) = self.within(api.list(request)).await else {
            return;
        };
        if pods.items.is_empty() {
            return;
        }
        let pod = &pods.items[self.random.below(pods.items.len() as u64) as usize];
        let target = DeleteOp {
            key: Some(key("Pod", "default", &object::meta(pod).name)),
            grace_period_seconds: (self.random.below(3) == 0).then_some(0),
            ..DeleteOp::default()
        };
        let request = DeleteRequest {
            targets: vec![target],
            dry_run: false,
            request_id: new_uuid(),
        };
        // Whether or not it is deleted: the checks follow what members apply.
        if let Err(status) = self.within(api.delete(request)).await {
            tracing::debug!(%status, "a pod was not deleted");
        }
    }

    async fn deploy(&mut self, name: &str, replicas: i32) -> bool {
        let image = format!("image:{}", self.random.below(3));
        let item = ApplyItem {
            object: Some(deployment(name, replicas, &image)),
            ..Default::default()
        };
        let request = ApplyRequest {
            items: vec![item],
            request_id: new_uuid(),
            ..Default::default()
        };
        let member = self.any_member();
        let mut api = self.api(member);
        let began = self.world.history.moment();
        match self.within(api.apply(request)).await {
            Ok(answer) => {
                let objects = answer.results.iter().filter_map(|result| result.object.as_ref());
                let revision = newest(objects);
                self.told(began, Told::Changed { revision });
                true
            }
            Err(_) => false,
        }
    }

    async fn scale(&mut self, name: &str, replicas: i32) {
        let request = ScaleRequest {
            key: Some(key("Deployment", "default", name)),
            replicas,
            current_replicas: None,
        };
        let member = self.any_member();
        let mut api = self.api(member);
        let began = self.world.history.moment();
        if let Ok(scaled) = self.within(api.scale(request)).await {
            let revision = version(&scaled);
            self.told(began, Told::Changed { revision });
        }
    }

    async fn cordon(&mut self, node: String, unschedulable: bool, tries: u64) {
        let request = SetSchedulableRequest {
            nodes: vec![node],
            unschedulable,
        };
        for _ in 0..tries {
            let member = self.any_member();
            let mut api = self.api(member);
            if self.within(api.set_schedulable(request.clone())).await.is_ok() {
                return;
            }
            self.rest(50, 500).await;
        }
    }
}

fn deployment(name: &str, replicas: i32, image: &str) -> Object {
    let labels = || [("app".to_owned(), name.to_owned())].into();
    let half = Quantity {
        text: "500m".to_owned(),
    };
    let container = Container {
        name: "main".to_owned(),
        image: image.to_owned(),
        resources: Some(ResourceRequirements {
            requests: [("cpu".to_owned(), half)].into(),
            ..ResourceRequirements::default()
        }),
        ..Container::default()
    };
    let only = name == ONLY;
    let asks = only.then(|| {
        (
            at_most_once::ANNOTATION.to_owned(),
            at_most_once::ASKED.to_owned(),
        )
    });
    let template = PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: labels(),
            annotations: asks.into_iter().collect(),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            containers: vec![container],
            termination_grace_period_seconds: only.then_some(GRACE_S),
            ..PodSpec::default()
        }),
    };
    object::from(Deployment {
        metadata: meta(name),
        spec: Some(DeploymentSpec {
            replicas: Some(replicas),
            selector: Some(LabelSelector {
                match_labels: labels(),
                ..LabelSelector::default()
            }),
            template: Some(template),
            strategy: only.then(|| DeploymentStrategy {
                r#type: "Recreate".to_owned(),
                ..DeploymentStrategy::default()
            }),
            ..DeploymentSpec::default()
        }),
        ..Deployment::default()
    })
}
