//! Tokens by which service accounts show who they are: signed, read, held against the state. Pure.
//!
//! A token is a JWT (RFC 7519) with Kubernetes' claims. Nothing of it is stored: the key is derived from the CA's, which
//! every member has, and what a token speaks of is looked up at each call, so that it ends with its account and its pod.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use model::{Kind, object};
use proto::v1::{ObjectMeta, Pod};
use ring::hkdf::{HKDF_SHA256, Salt};
use ring::hmac;
use serde::{Deserialize, Serialize};
use state::{State, rbac};

use super::identity::{Authenticated, Identity};
use super::{new_uuid, revoked};

/// How long a token is good when nothing is asked for, as in Kubernetes.
pub(crate) const LIFE_SECONDS: u32 = 60 * 60;
/// The shortest, as in Kubernetes.
pub(crate) const LIFE_SECONDS_MIN: u32 = 10 * 60;
/// The longest: what needs more asks again.
pub(crate) const LIFE_SECONDS_MAX: u32 = 24 * 60 * 60;
/// Longest token that is looked at: ours have half of it, with the longest names.
pub(crate) const TOKEN_BYTES_MAX: usize = 4 << 10;
/// Clocks of members may differ by this much, as Kubernetes allows too.
const LEEWAY_SECONDS: u64 = 60;

/// The only header there is. It is compared, never read: who presents a token does not choose how it is verified.
const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;
const ISSUER: &str = "bulkhead";
/// What the key is for; another purpose has another key.
const PURPOSE: &[u8] = b"bulkhead service account tokens 1";

/// Signs and verifies. Only members do either, so a MAC serves, and a forged token costs them a microsecond.
#[derive(Clone)]
pub(crate) struct AccountKey(hmac::Key);

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Claims {
    iss: String,
    sub: String,
    /// The cluster's id, alone.
    aud: [String; 1],
    exp: u64,
    iat: u64,
    nbf: u64,
    jti: String,
    #[serde(rename = "kubernetes.io")]
    about: About,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
    namespace: String,
    serviceaccount: Named,
    /// The token ends with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<Named>,
    /// Where the pod is: said to whoever reads the token. A pod has one node, so that its uid is enough to check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<Named>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    name: String,
    uid: String,
}

/// Why a token does not say who calls.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenRefused {
    /// Larger than any of ours.
    #[error("the bearer token has {bytes} bytes, more than {TOKEN_BYTES_MAX}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Not a token that this cluster makes, or one that was changed.
    #[error("the bearer token was not made by this cluster")]
    Foreign,
    /// For somebody else.
    #[error("the bearer token is not for this cluster")]
    Audience,
    /// Not yet.
    #[error("the bearer token is not valid yet: do the clocks differ?")]
    Early,
    /// No more.
    #[error("the bearer token of {name} has expired; ask for a new one")]
    Expired {
        /// Whose.
        name: String,
    },
    /// It was deleted; another one may have its name.
    #[error("the bearer token is of {name}, a service account that is no longer there")]
    Account {
        /// Whose.
        name: String,
    },
    /// It has ended.
    #[error("the bearer token of {name} was for the pod {pod}, which has ended")]
    Pod {
        /// Whose.
        name: String,
        /// Name of the pod.
        pod: String,
    },
    /// Somebody had it refused.
    #[error("the tokens of {name} that were issued so far were revoked; ask for a new one")]
    Revoked {
        /// Whose.
        name: String,
    },
}

/// Why there is no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotIssued {
    /// No settings yet.
    #[error("the cluster is still being set up")]
    Unready,
    /// There is none, or it is being deleted.
    #[error("serviceaccount \"{name}\" not found in namespace {namespace}")]
    NoAccount {
        /// Where.
        namespace: String,
        /// Which.
        name: String,
    },
    /// It runs as somebody else.
    #[error("pod {pod} runs as the service account {runs_as}, not as {name}")]
    OfAnother {
        /// Which.
        pod: String,
        /// The account that it names.
        runs_as: String,
        /// The one that was asked for.
        name: String,
    },
    /// Nothing of it is to run any more.
    #[error("pod {pod} has ended")]
    Ended {
        /// Which.
        pod: String,
    },
}

impl AccountKey {
    /// From the private key of the CA, DER.
    pub(crate) fn derive(ca_key: &[u8]) -> Self {
        let secret = Salt::new(HKDF_SHA256, &[]).extract(ca_key);
        let key = secret.expand(&[PURPOSE], hmac::HMAC_SHA256);
        Self(hmac::Key::from(key.expect("HKDF gives as much as one hash")))
    }

    /// The token that says this.
    pub(crate) fn sign(&self, claims: &Claims) -> String {
        let claims = serde_json::to_vec(claims).expect("texts and numbers are JSON");
        self.seal(HEADER.as_bytes(), &claims)
    }

    fn seal(&self, header: &[u8], claims: &[u8]) -> String {
        let signed = format!("{}.{}", BASE64URL.encode(header), BASE64URL.encode(claims));
        let signature = hmac::sign(&self.0, signed.as_bytes());
        format!("{signed}.{}", BASE64URL.encode(signature.as_ref()))
    }

    /// What a token says that was made with this key, whatever became of that meanwhile.
    pub(crate) fn open(&self, token: &[u8]) -> Result<Claims, TokenRefused> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenRefused::TooLarge { bytes: token.len() });
        }
        let mut parts = token.split(|byte| *byte == b'.');
        let (Some(header), Some(claims), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenRefused::Foreign);
        };
        if header != BASE64URL.encode(HEADER).as_bytes() {
            return Err(TokenRefused::Foreign);
        }
        let foreign = |_| TokenRefused::Foreign;
        let signed = &token[..header.len() + 1 + claims.len()];
        let signature = BASE64URL.decode(signature).map_err(foreign)?;
        hmac::verify(&self.0, signed, &signature).map_err(|_| TokenRefused::Foreign)?;
        let claims = BASE64URL.decode(claims).map_err(foreign)?;
        serde_json::from_slice(&claims).map_err(|_| TokenRefused::Foreign)
    }
}

impl Claims {
    /// For an account as the state has it, and one of its pods.
    pub(crate) fn new(
        state: &State,
        namespace: &str,
        name: &str,
        pod: Option<&Pod>,
        life_seconds: u32,
        now: u64,
    ) -> Result<Self, NotIssued> {
        let audience = state.settings().ok_or(NotIssued::Unready)?.cluster_id.clone();
        let account = account(state, namespace, name).ok_or_else(|| NotIssued::NoAccount {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })?;
        let mut about = About {
            namespace: namespace.to_owned(),
            serviceaccount: named(&account),
            pod: None,
            node: None,
        };
        if let Some(pod) = pod {
            let meta = pod.metadata.clone().unwrap_or_default();
            if has_ended(pod, now) {
                return Err(NotIssued::Ended { pod: meta.name });
            }
            let spec = pod.spec.clone().unwrap_or_default();
            if spec.service_account_name != name {
                return Err(NotIssued::OfAnother {
                    pod: meta.name,
                    runs_as: spec.service_account_name,
                    name: name.to_owned(),
                });
            }
            about.pod = Some(named(&meta));
            let node = state.get(&object::key_of(Kind::Node, "", &spec.node_name));
            about.node = node.map(|node| named(object::meta(&node)));
        }
        let sub = rbac::account_user(namespace, name);
        Ok(Self {
            iss: ISSUER.to_owned(),
            aud: [audience],
            exp: now + u64::from(life_seconds),
            // Behind what was revoked, or it would be too. It is good from now on all the same.
            iat: revoked::issuing_time(state, &sub, now),
            nbf: now,
            jti: new_uuid(),
            sub,
            about,
        })
    }

    /// Seconds since 1970.
    pub(crate) fn expires(&self) -> u64 {
        self.exp
    }

    /// Whether the token is good, as the state is now.
    pub(crate) fn check(&self, state: &State, now: u64) -> Result<(), TokenRefused> {
        let About {
            namespace,
            serviceaccount: its,
            pod: bound,
            ..
        } = &self.about;
        let audience = state.settings().map(|settings| &settings.cluster_id);
        if self.iss != ISSUER || audience != Some(&self.aud[0]) {
            return Err(TokenRefused::Audience);
        }
        if self.sub != rbac::account_user(namespace, &its.name) {
            return Err(TokenRefused::Foreign);
        }
        if now + LEEWAY_SECONDS < self.nbf {
            return Err(TokenRefused::Early);
        }
        let name = self.sub.clone();
        if now >= self.exp {
            return Err(TokenRefused::Expired { name });
        }
        if revoked::covers(state.revocations(), &self.sub, self.iat) {
            return Err(TokenRefused::Revoked { name });
        }
        if account(state, namespace, &its.name).is_none_or(|account| account.uid != its.uid) {
            return Err(TokenRefused::Account { name });
        }
        let Some(bound) = bound else { return Ok(()) };
        let pod = state.get(&object::key_of(Kind::Pod, namespace, &bound.name));
        let pod = pod.and_then(object::into::<Pod>);
        let same = |pod: &Pod| pod.metadata.as_ref().is_some_and(|meta| meta.uid == bound.uid);
        if pod.is_none_or(|pod| !same(&pod) || has_ended(&pod, now)) {
            let pod = bound.name.clone();
            return Err(TokenRefused::Pod { name, pod });
        }
        Ok(())
    }

    /// Who bears the token.
    pub(crate) fn authenticated(&self) -> Authenticated {
        Authenticated {
            identity: Identity::User {
                name: self.sub.clone(),
                groups: rbac::account_groups(&self.about.namespace),
            },
            not_after: self.exp,
            issued: self.iat,
            revoked: false,
        }
    }
}

fn named(meta: &ObjectMeta) -> Named {
    Named {
        name: meta.name.clone(),
        uid: meta.uid.clone(),
    }
}

fn account(state: &State, namespace: &str, name: &str) -> Option<ObjectMeta> {
    let found = state.get(&object::key_of(Kind::ServiceAccount, namespace, name))?;
    let meta = object::meta(&found);
    meta.deletion_timestamp.is_none().then(|| meta.clone())
}

/// Whether nothing of a pod is to run any more: a deleted one has its time of grace, in which it may say good-bye.
fn has_ended(pod: &Pod, now: u64) -> bool {
    let phase = pod.status.as_ref().map_or("", |status| &status.phase);
    if ["Succeeded", "Failed"].contains(&phase) {
        return true;
    }
    let meta = pod.metadata.as_ref();
    let deleted = meta.and_then(|meta| Some((meta.deletion_timestamp?, meta.deletion_grace_period_seconds)));
    deleted.is_some_and(|(since, grace)| {
        let end = since.seconds.saturating_add(i64::from(grace.unwrap_or(0).max(0)));
        u64::try_from(end).unwrap_or(0) + LEEWAY_SECONDS < now
    })
}

#[cfg(test)]
pub(super) fn sealed(key: &AccountKey, header: &str, claims: &serde_json::Value) -> String {
    key.seal(header.as_bytes(), claims.to_string().as_bytes())
}
