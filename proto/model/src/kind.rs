//! The kinds: their names, versions and scopes; and the names of those that Kubernetes has and we do not have yet.

use std::fmt;

use crate::schema;

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A room of names.
    Namespace,
    /// A machine that runs pods.
    Node,
    /// Containers that share a node, an address and volumes.
    Pod,
    /// Configuration as keys and values.
    ConfigMap,
    /// Keys and values that nobody else is to know.
    Secret,
    /// Whom the processes of a pod act for.
    ServiceAccount,
    /// What may be done in a namespace.
    Role,
    /// What may be done anywhere.
    ClusterRole,
    /// Who has a role in a namespace.
    RoleBinding,
    /// Who has a role everywhere.
    ClusterRoleBinding,
    /// Replicas of a pod template, with revisions.
    Deployment,
    /// One revision of a deployment.
    ReplicaSet,
    /// Something that happened.
    Event,
}

/// Why a text names none of our kinds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KindError {
    /// Kubernetes has it, we do not yet.
    #[error("kind {kind} is not supported yet")]
    Unsupported {
        /// The kind as Kubernetes spells it.
        kind: String,
    },
    /// Nobody has it.
    #[error("unknown kind `{text}`{}", schema::hint(.suggestion.as_deref()))]
    Unknown {
        /// What was written.
        text: String,
        /// The nearest of the names that are known.
        suggestion: Option<String>,
    },
    /// The kind is ours, the group or version is not.
    #[error("{kind} has apiVersion {expected}, not `{found}`")]
    Version {
        /// The kind.
        kind: &'static str,
        /// Its apiVersion.
        expected: &'static str,
        /// What was written.
        found: String,
    },
}

/// Built-in kinds of Kubernetes 1.34 (and some that were removed) that are refused by name, with their plurals and short names.
const UNSUPPORTED: &[(&str, &str, &[&str])] = &[
    ("APIService", "apiservices", &[]),
    ("Binding", "bindings", &[]),
    (
        "CertificateSigningRequest",
        "certificatesigningrequests",
        &["csr"],
    ),
    ("ClusterTrustBundle", "clustertrustbundles", &[]),
    ("ComponentStatus", "componentstatuses", &["cs"]),
    ("ControllerRevision", "controllerrevisions", &[]),
    ("CronJob", "cronjobs", &["cj"]),
    ("CSIDriver", "csidrivers", &[]),
    ("CSINode", "csinodes", &[]),
    ("CSIStorageCapacity", "csistoragecapacities", &[]),
    (
        "CustomResourceDefinition",
        "customresourcedefinitions",
        &["crd", "crds"],
    ),
    ("DaemonSet", "daemonsets", &["ds"]),
    ("DeviceClass", "deviceclasses", &[]),
    ("Endpoints", "endpoints", &["ep"]),
    ("EndpointSlice", "endpointslices", &[]),
    ("Eviction", "evictions", &[]),
    ("FlowSchema", "flowschemas", &[]),
    ("Gateway", "gateways", &["gtw"]),
    ("GatewayClass", "gatewayclasses", &["gc"]),
    ("HorizontalPodAutoscaler", "horizontalpodautoscalers", &["hpa"]),
    ("HTTPRoute", "httproutes", &[]),
    ("Ingress", "ingresses", &["ing"]),
    ("IngressClass", "ingressclasses", &[]),
    ("IPAddress", "ipaddresses", &["ip"]),
    ("Job", "jobs", &[]),
    ("Kustomization", "kustomizations", &[]),
    ("Lease", "leases", &[]),
    ("LeaseCandidate", "leasecandidates", &[]),
    ("LimitRange", "limitranges", &["limits"]),
    ("LocalSubjectAccessReview", "localsubjectaccessreviews", &[]),
    ("MutatingAdmissionPolicy", "mutatingadmissionpolicies", &[]),
    (
        "MutatingAdmissionPolicyBinding",
        "mutatingadmissionpolicybindings",
        &[],
    ),
    (
        "MutatingWebhookConfiguration",
        "mutatingwebhookconfigurations",
        &[],
    ),
    ("NetworkPolicy", "networkpolicies", &["netpol"]),
    ("PersistentVolume", "persistentvolumes", &["pv"]),
    ("PersistentVolumeClaim", "persistentvolumeclaims", &["pvc"]),
    ("PodCertificateRequest", "podcertificaterequests", &[]),
    ("PodDisruptionBudget", "poddisruptionbudgets", &["pdb"]),
    ("PodSecurityPolicy", "podsecuritypolicies", &["psp"]),
    ("PodTemplate", "podtemplates", &[]),
    ("PriorityClass", "priorityclasses", &["pc"]),
    ("PriorityLevelConfiguration", "prioritylevelconfigurations", &[]),
    ("ReplicationController", "replicationcontrollers", &["rc"]),
    ("ResourceClaim", "resourceclaims", &[]),
    ("ResourceClaimTemplate", "resourceclaimtemplates", &[]),
    ("ResourceQuota", "resourcequotas", &["quota"]),
    ("ResourceSlice", "resourceslices", &[]),
    ("RuntimeClass", "runtimeclasses", &[]),
    ("Scale", "scales", &[]),
    ("SelfSubjectAccessReview", "selfsubjectaccessreviews", &[]),
    ("SelfSubjectReview", "selfsubjectreviews", &[]),
    ("SelfSubjectRulesReview", "selfsubjectrulesreviews", &[]),
    ("Service", "services", &["svc"]),
    ("ServiceCIDR", "servicecidrs", &[]),
    ("StatefulSet", "statefulsets", &["sts"]),
    ("StorageClass", "storageclasses", &["sc"]),
    ("StorageVersion", "storageversions", &[]),
    ("StorageVersionMigration", "storageversionmigrations", &[]),
    ("SubjectAccessReview", "subjectaccessreviews", &[]),
    ("TokenRequest", "tokenrequests", &[]),
    ("TokenReview", "tokenreviews", &[]),
    ("ValidatingAdmissionPolicy", "validatingadmissionpolicies", &[]),
    (
        "ValidatingAdmissionPolicyBinding",
        "validatingadmissionpolicybindings",
        &[],
    ),
    (
        "ValidatingWebhookConfiguration",
        "validatingwebhookconfigurations",
        &[],
    ),
    ("VolumeAttachment", "volumeattachments", &[]),
    ("VolumeAttributesClass", "volumeattributesclasses", &["vac"]),
];

impl Kind {
    /// Every kind, in the order in which dependencies are made: what others need comes first.
    pub const ALL: [Kind; 13] = [
        Kind::Namespace,
        Kind::Node,
        Kind::ConfigMap,
        Kind::Secret,
        Kind::ServiceAccount,
        Kind::Role,
        Kind::ClusterRole,
        Kind::RoleBinding,
        Kind::ClusterRoleBinding,
        Kind::Deployment,
        Kind::ReplicaSet,
        Kind::Pod,
        Kind::Event,
    ];

    /// As in `kind:`.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Namespace => "Namespace",
            Kind::Node => "Node",
            Kind::Pod => "Pod",
            Kind::ConfigMap => "ConfigMap",
            Kind::Secret => "Secret",
            Kind::ServiceAccount => "ServiceAccount",
            Kind::Role => "Role",
            Kind::ClusterRole => "ClusterRole",
            Kind::RoleBinding => "RoleBinding",
            Kind::ClusterRoleBinding => "ClusterRoleBinding",
            Kind::Deployment => "Deployment",
            Kind::ReplicaSet => "ReplicaSet",
            Kind::Event => "Event",
        }
    }

    /// Lower case, one: `pod` in `pod/web`. Kubernetes' tools print a group behind it; ours do not.
    pub fn singular(self) -> &'static str {
        match self {
            Kind::Namespace => "namespace",
            Kind::Node => "node",
            Kind::Pod => "pod",
            Kind::ConfigMap => "configmap",
            Kind::Secret => "secret",
            Kind::ServiceAccount => "serviceaccount",
            Kind::Role => "role",
            Kind::ClusterRole => "clusterrole",
            Kind::RoleBinding => "rolebinding",
            Kind::ClusterRoleBinding => "clusterrolebinding",
            Kind::Deployment => "deployment",
            Kind::ReplicaSet => "replicaset",
            Kind::Event => "event",
        }
    }

    /// Lower case, many.
    pub fn plural(self) -> &'static str {
        match self {
            Kind::Namespace => "namespaces",
            Kind::Node => "nodes",
            Kind::Pod => "pods",
            Kind::ConfigMap => "configmaps",
            Kind::Secret => "secrets",
            Kind::ServiceAccount => "serviceaccounts",
            Kind::Role => "roles",
            Kind::ClusterRole => "clusterroles",
            Kind::RoleBinding => "rolebindings",
            Kind::ClusterRoleBinding => "clusterrolebindings",
            Kind::Deployment => "deployments",
            Kind::ReplicaSet => "replicasets",
            Kind::Event => "events",
        }
    }

    /// What fingers type instead.
    pub fn short_names(self) -> &'static [&'static str] {
        match self {
            Kind::Namespace => &["ns"],
            Kind::Node => &["no"],
            Kind::Pod => &["po"],
            Kind::ConfigMap => &["cm"],
            Kind::ServiceAccount => &["sa"],
            Kind::Secret | Kind::Role | Kind::ClusterRole | Kind::RoleBinding | Kind::ClusterRoleBinding => {
                &[]
            }
            Kind::Deployment => &["deploy"],
            Kind::ReplicaSet => &["rs"],
            Kind::Event => &["ev"],
        }
    }

    /// As in `apiVersion:`.
    pub fn api_version(self) -> &'static str {
        match self {
            Kind::Deployment | Kind::ReplicaSet => "apps/v1",
            Kind::Role | Kind::ClusterRole | Kind::RoleBinding | Kind::ClusterRoleBinding => {
                "rbac.authorization.k8s.io/v1"
            }
            Kind::Namespace
            | Kind::Node
            | Kind::Pod
            | Kind::ConfigMap
            | Kind::Secret
            | Kind::ServiceAccount
            | Kind::Event => "v1",
        }
    }

    /// The part of `apiVersion` before the slash, as rules name it; empty for `v1`.
    pub fn group(self) -> &'static str {
        self.api_version().split_once('/').map_or("", |(group, _)| group)
    }

    /// Whether its objects live in a namespace.
    pub fn namespaced(self) -> bool {
        !matches!(
            self,
            Kind::Namespace | Kind::Node | Kind::ClusterRole | Kind::ClusterRoleBinding
        )
    }

    /// Whether its objects say what was observed of them.
    pub fn has_status(self) -> bool {
        matches!(
            self,
            Kind::Namespace | Kind::Node | Kind::Pod | Kind::Deployment | Kind::ReplicaSet
        )
    }

    /// Whether people may write objects of this kind; the others are made by the cluster itself.
    pub fn applicable(self) -> bool {
        !matches!(self, Kind::ReplicaSet | Kind::Event)
    }

    /// Full name of the message in the schema.
    pub(crate) fn message(self) -> String {
        format!("bulkhead.v1.{}", self.as_str())
    }

    /// What a person typed: `po`, `pod`, `pods`, `Pod`, `deployments.apps`, `deployments.v1.apps`, in any case.
    pub fn parse(text: &str) -> Result<Kind, KindError> {
        let lower = text.to_ascii_lowercase();
        let (resource, group) = match lower.split_once('.') {
            Some((resource, group)) => (resource, Some(group)),
            None => (lower.as_str(), None),
        };
        for kind in Kind::ALL {
            let names = [kind.singular(), kind.plural()];
            if names.contains(&resource) || kind.short_names().contains(&resource) {
                let ours = match kind.api_version().split_once('/') {
                    Some((group, version)) => [group.to_owned(), format!("{version}.{group}")],
                    None => [String::new(), kind.api_version().to_owned()],
                };
                return match group {
                    Some(group) if !ours.iter().any(|known| known == group) => Err(KindError::Version {
                        kind: kind.as_str(),
                        expected: kind.api_version(),
                        found: group.to_owned(),
                    }),
                    _ => Ok(kind),
                };
            }
        }
        for (kind, plural, short) in UNSUPPORTED {
            if *plural == resource || short.contains(&resource) || kind.eq_ignore_ascii_case(resource) {
                return Err(KindError::Unsupported {
                    kind: (*kind).to_owned(),
                });
            }
        }
        let names = Kind::ALL
            .into_iter()
            .flat_map(|kind| [kind.singular(), kind.plural()]);
        Err(KindError::Unknown {
            text: schema::shown(text),
            suggestion: schema::nearest(resource, names),
        })
    }

    /// `kind:` and `apiVersion:` of a manifest, in their exact spelling.
    pub fn from_manifest(api_version: &str, kind: &str) -> Result<Kind, KindError> {
        let Some(found) = Kind::ALL.into_iter().find(|ours| ours.as_str() == kind) else {
            if UNSUPPORTED.iter().any(|(name, ..)| *name == kind) {
                return Err(KindError::Unsupported {
                    kind: kind.to_owned(),
                });
            }
            let names = Kind::ALL
                .iter()
                .map(|kind| kind.as_str())
                .chain(UNSUPPORTED.iter().map(|(kind, ..)| *kind));
            // A group of somebody else's has kinds of its own: a `Route` of OpenShift is no misspelled `Role`.
            let group = api_version.split_once('/').map_or("", |(group, _)| group);
            let foreign = group.contains('.') && !group.ends_with(".k8s.io");
            return Err(KindError::Unknown {
                text: schema::shown(kind),
                suggestion: schema::nearest(kind, names).filter(|_| !foreign),
            });
        };
        if found.api_version() == api_version {
            Ok(found)
        } else {
            Err(KindError::Version {
                kind: found.as_str(),
                expected: found.api_version(),
                found: schema::shown(api_version),
            })
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Kind {
    type Err = KindError;

    fn from_str(text: &str) -> Result<Kind, KindError> {
        Kind::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fingers_type_is_understood() {
        for (text, kind) in [
            ("po", Kind::Pod),
            ("pods", Kind::Pod),
            ("Pod", Kind::Pod),
            ("deploy", Kind::Deployment),
            ("deployments.apps", Kind::Deployment),
            ("deployments.v1.apps", Kind::Deployment),
            ("cm", Kind::ConfigMap),
            ("ns", Kind::Namespace),
        ] {
            assert_eq!(Kind::parse(text), Ok(kind), "{text}");
        }
    }

    #[test]
    fn a_kind_of_kubernetes_is_known_by_name() {
        assert_eq!(
            Kind::parse("svc").unwrap_err().to_string(),
            "kind Service is not supported yet"
        );
        assert_eq!(
            Kind::from_manifest("v1", "Service").unwrap_err().to_string(),
            "kind Service is not supported yet"
        );
    }

    #[test]
    fn a_misspelled_kind_gets_a_suggestion() {
        assert_eq!(
            Kind::from_manifest("v1", "Deploymnet").unwrap_err().to_string(),
            "unknown kind `Deploymnet`; did you mean `Deployment`?"
        );
        assert_eq!(
            Kind::from_manifest("route.openshift.io/v1", "Route")
                .unwrap_err()
                .to_string(),
            "unknown kind `Route`"
        );
        assert_eq!(
            Kind::from_manifest("extensions/v1beta1", "Deployment")
                .unwrap_err()
                .to_string(),
            "Deployment has apiVersion apps/v1, not `extensions/v1beta1`"
        );
    }
}
