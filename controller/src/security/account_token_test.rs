//! What a token of a service account opens, and what takes it away.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use model::{Kind, object};
use proto::state::v1::command::Kind as Body;
use proto::state::v1::operation::Operation as Op;
use proto::state::v1::{
    Bind, ClusterSettings, Command, DeleteOp, NodeJoin, Operation, PodStatusUpdate, Put, StatusBatch,
    Transaction,
};
use proto::v1::{Container, Node, ObjectMeta, Pod, PodSpec, PodStatus, ServiceAccount};
use serde_json::{Value, json};
use state::State;

use super::account_token::{AccountKey, Claims, NotIssued, TOKEN_BYTES_MAX, TokenRefused, sealed};
use super::ca::Authority;
use super::identity::Identity;
use super::revoked::revocation;

const NOW: u64 = 1_700_000_000;
const ROBOT: &str = "system:serviceaccount:default:robot";

struct Cluster {
    state: State,
    key: AccountKey,
}

impl Cluster {
    /// With the account `robot`, and its pod `web` on n1.
    fn new() -> Self {
        let mut cluster = Self {
            state: State::new(),
            key: AccountKey::derive(b"the CA's key"),
        };
        cluster.tell(Body::Settings(ClusterSettings {
            cluster_id: "test".to_owned(),
            pod_cidr: "10.244.0.0/16".to_owned(),
            service_cidr: "10.96.0.0/16".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            node_prefix: 24,
        }));
        let node = Node {
            metadata: meta("n1", "uid-n1"),
            ..Default::default()
        };
        cluster.tell(Body::NodeJoin(NodeJoin { node: Some(node) }));
        cluster.make_account("uid-robot");
        cluster.make_pod("uid-web");
        cluster
    }

    fn tell(&mut self, kind: Body) {
        let outcome = self.state.apply(&Command {
            time: Some(proto::Timestamp {
                seconds: NOW as i64,
                nanos: 0,
            }),
            level: state::SCHEMA_LEVEL,
            kind: Some(kind),
            ..Default::default()
        });
        assert!(outcome.applied(), "{:?}", outcome.reply);
    }

    fn operate(&mut self, operation: Op) {
        self.tell(Body::Transaction(Transaction {
            operations: vec![Operation {
                operation: Some(operation),
            }],
            ..Default::default()
        }));
    }

    fn make_account(&mut self, uid: &str) {
        let account = ServiceAccount {
            metadata: meta("robot", uid),
            ..Default::default()
        };
        self.operate(Op::Put(Put {
            object: Some(object::from(account)),
        }));
    }

    fn make_pod(&mut self, uid: &str) {
        let pod = Pod {
            metadata: meta("web", uid),
            spec: Some(PodSpec {
                service_account_name: "robot".to_owned(),
                containers: vec![Container {
                    name: "main".to_owned(),
                    image: "web:1".to_owned(),
                    ..Default::default()
                }],
                ..Default::default()
            }),
            ..Default::default()
        };
        self.operate(Op::Put(Put {
            object: Some(object::from(pod)),
        }));
        self.operate(Op::Bind(Bind {
            pod: Some(object::key_of(Kind::Pod, "default", "web")),
            uid: uid.to_owned(),
            node: "n1".to_owned(),
        }));
    }

    fn delete(&mut self, kind: Kind, name: &str) {
        self.operate(Op::Delete(DeleteOp {
            key: Some(object::key_of(kind, "default", name)),
            ..Default::default()
        }));
    }

    fn pod(&self) -> Pod {
        let pod = self.state.get(&object::key_of(Kind::Pod, "default", "web"));
        pod.and_then(object::into).unwrap()
    }

    fn claims(&self, pod: Option<&Pod>) -> Claims {
        Claims::new(&self.state, "default", "robot", pod, 3600, NOW).unwrap()
    }

    fn token(&self) -> String {
        self.key.sign(&self.claims(None))
    }

    fn bound_token(&self) -> String {
        self.key.sign(&self.claims(Some(&self.pod())))
    }

    fn at(&self, token: &str, now: u64) -> Result<Claims, TokenRefused> {
        let claims = self.key.open(token.as_bytes())?;
        claims.check(&self.state, now)?;
        Ok(claims)
    }

    fn refused(&self, token: &str, now: u64) -> TokenRefused {
        self.at(token, now).unwrap_err()
    }
}

fn meta(name: &str, uid: &str) -> Option<ObjectMeta> {
    Some(ObjectMeta {
        name: name.to_owned(),
        namespace: if name == "n1" { "" } else { "default" }.to_owned(),
        uid: uid.to_owned(),
        ..Default::default()
    })
}

fn parts(token: &str) -> [&str; 3] {
    let parts: Vec<&str> = token.split('.').collect();
    parts.try_into().unwrap()
}

fn read(part: &str) -> Value {
    serde_json::from_slice(&BASE64URL.decode(part).unwrap()).unwrap()
}

fn whose() -> String {
    ROBOT.to_owned()
}

#[test]
fn a_token_says_what_kubernetes_tokens_say_and_who_bears_it() {
    let cluster = Cluster::new();
    let token = cluster.bound_token();
    assert!(token.len() < TOKEN_BYTES_MAX / 4);
    let [header, claims, _] = parts(&token);
    assert_eq!(read(header), json!({"alg": "HS256", "typ": "JWT"}));
    let mut said = read(claims);
    assert!(!said["jti"].as_str().unwrap().is_empty());
    said["jti"] = "id".into();
    assert_eq!(
        said,
        json!({
            "iss": "bulkhead", "sub": ROBOT, "aud": ["test"],
            "exp": NOW + 3600, "iat": NOW, "nbf": NOW, "jti": "id",
            "kubernetes.io": {
                "namespace": "default",
                "serviceaccount": {"name": "robot", "uid": "uid-robot"},
                "pod": {"name": "web", "uid": "uid-web"},
                "node": {"name": "n1", "uid": "uid-n1"},
            },
        })
    );
    let bearer = cluster.at(&token, NOW).unwrap().authenticated();
    let groups = ["system:serviceaccounts", "system:serviceaccounts:default"];
    let expected = Identity::User {
        name: whose(),
        groups: groups.map(str::to_owned).to_vec(),
    };
    assert_eq!(bearer.identity, expected);
    assert_eq!((bearer.not_after, bearer.issued), (NOW + 3600, NOW));
    let said = read(parts(&cluster.token())[1]);
    assert!(said["kubernetes.io"].get("pod").is_none());
}

#[test]
fn whatever_is_changed_about_a_token_makes_it_foreign() {
    let cluster = Cluster::new();
    let token = cluster.token();
    let [header, claims, signature] = parts(&token);
    let mut admin = read(claims);
    admin["sub"] = "system:serviceaccount:default:admin".into();
    let admin = BASE64URL.encode(admin.to_string());
    let with = |header: &str| BASE64URL.encode(header);
    let none = with(r#"{"alg":"none","typ":"JWT"}"#);
    let other = AccountKey::derive(b"another CA's key").sign(&cluster.claims(None));
    for changed in [
        String::new(),
        "a".to_owned(),
        "..".to_owned(),
        format!("{header}.{claims}"),
        format!("{header}.{claims}."),
        format!("{token}."),
        format!(".{token}"),
        format!("{token}="),
        format!(" {token}"),
        format!("{header}.{admin}.{signature}"),
        format!("{none}.{claims}."),
        format!("{none}.{claims}.{signature}"),
        other,
        // Signed with the very key, and not as this cluster signs.
        sealed(&cluster.key, r#"{"alg":"none","typ":"JWT"}"#, &read(claims)),
        sealed(&cluster.key, r#"{"alg":"ES256","typ":"JWT"}"#, &read(claims)),
        sealed(&cluster.key, r#"{"alg":"HS512","typ":"JWT"}"#, &read(claims)),
        sealed(&cluster.key, r#"{"typ":"JWT","alg":"HS256"}"#, &read(claims)),
    ] {
        assert_eq!(cluster.refused(&changed, NOW), TokenRefused::Foreign, "{changed}");
    }
    for at in 0..token.len() {
        let mut bytes = token.clone().into_bytes();
        bytes[at] ^= 1;
        assert_eq!(
            cluster.key.open(&bytes).unwrap_err(),
            TokenRefused::Foreign,
            "byte {at}"
        );
    }
    assert_eq!(
        cluster.refused(&"a".repeat(TOKEN_BYTES_MAX + 1), NOW),
        TokenRefused::TooLarge {
            bytes: TOKEN_BYTES_MAX + 1
        }
    );
    cluster.at(&token, NOW).unwrap();
}

#[test]
fn claims_are_read_strictly() {
    let cluster = Cluster::new();
    let claims = read(parts(&cluster.token())[1]);
    let with = |change: &dyn Fn(&mut Value)| {
        let mut claims = claims.clone();
        change(&mut claims);
        let token = sealed(&cluster.key, r#"{"alg":"HS256","typ":"JWT"}"#, &claims);
        cluster.at(&token, NOW).map(|_| ())
    };
    assert_eq!(with(&|_| {}), Ok(()));
    for (change, refused) in [
        (
            &(|claims: &mut Value| claims["aud"] = json!(["other"])) as &dyn Fn(&mut Value),
            TokenRefused::Audience,
        ),
        (&|claims| claims["iss"] = "other".into(), TokenRefused::Audience),
        (
            &|claims| claims["aud"] = json!(["test", "other"]),
            TokenRefused::Foreign,
        ),
        (&|claims| claims["aud"] = json!([]), TokenRefused::Foreign),
        (&|claims| claims["exp"] = "later".into(), TokenRefused::Foreign),
        (&|claims| claims["exp"] = (-1).into(), TokenRefused::Foreign),
        (&|claims| claims["groups"] = json!(["x"]), TokenRefused::Foreign),
        // Who is meant is said twice, in the same way.
        (
            &|claims| claims["sub"] = "system:serviceaccount:default:other".into(),
            TokenRefused::Foreign,
        ),
        (
            &|claims| claims["kubernetes.io"]["namespace"] = "other".into(),
            TokenRefused::Foreign,
        ),
    ] {
        let mut changed = claims.clone();
        change(&mut changed);
        assert_eq!(with(change), Err(refused), "{changed}");
    }
}

#[test]
fn a_token_has_its_time() {
    let cluster = Cluster::new();
    let token = cluster.token();
    let expired = TokenRefused::Expired { name: whose() };
    cluster.at(&token, NOW - 60).unwrap(); // a clock that is behind
    assert_eq!(cluster.refused(&token, NOW - 61), TokenRefused::Early);
    cluster.at(&token, NOW + 3599).unwrap();
    assert_eq!(cluster.refused(&token, NOW + 3600), expired);
    assert_eq!(cluster.refused(&token, u64::MAX - 100), expired);
}

#[test]
fn a_token_ends_with_its_account_also_when_another_takes_the_name() {
    let mut cluster = Cluster::new();
    let token = cluster.token();
    let gone = TokenRefused::Account { name: whose() };
    cluster.delete(Kind::ServiceAccount, "robot");
    assert_eq!(cluster.refused(&token, NOW), gone);
    cluster.make_account("uid-other");
    assert_eq!(cluster.refused(&token, NOW), gone);
    cluster.at(&cluster.token(), NOW).unwrap();
}

#[test]
fn a_bound_token_ends_with_its_pod() {
    let ended = TokenRefused::Pod {
        name: whose(),
        pod: "web".to_owned(),
    };
    // Deleted: it may say good-bye for as long as it may run.
    let mut cluster = Cluster::new();
    let (token, free) = (cluster.bound_token(), cluster.token());
    cluster.delete(Kind::Pod, "web");
    cluster.at(&token, NOW + 30 + 60).unwrap();
    assert_eq!(cluster.refused(&token, NOW + 30 + 61), ended);
    cluster.at(&free, NOW + 30 + 61).unwrap();
    let status = |phase: &str, gone| {
        Body::Status(StatusBatch {
            pods: vec![PodStatusUpdate {
                uid: "uid-web".to_owned(),
                node: "n1".to_owned(),
                status: Some(PodStatus {
                    phase: phase.to_owned(),
                    ..Default::default()
                }),
                gone,
            }],
            ..Default::default()
        })
    };
    cluster.tell(status("Failed", true));
    assert_eq!(cluster.refused(&token, NOW), ended);
    cluster.make_pod("uid-next");
    assert_eq!(cluster.refused(&token, NOW), ended);

    let mut cluster = Cluster::new();
    let token = cluster.bound_token();
    cluster.tell(status("Running", false));
    cluster.at(&token, NOW).unwrap();
    cluster.tell(status("Succeeded", false));
    assert_eq!(cluster.refused(&token, NOW), ended);
    let again = Claims::new(
        &cluster.state,
        "default",
        "robot",
        Some(&cluster.pod()),
        3600,
        NOW,
    );
    let pod = "web".to_owned();
    assert_eq!(again.unwrap_err(), NotIssued::Ended { pod });
}

#[test]
fn tokens_that_were_revoked_are_refused_and_later_ones_are_good() {
    let mut cluster = Cluster::new();
    let token = cluster.token();
    cluster.tell(Body::Revocation(revocation(ROBOT, NOW)));
    let revoked = TokenRefused::Revoked { name: whose() };
    assert_eq!(cluster.refused(&token, NOW), revoked);
    cluster.at(&cluster.token(), NOW).unwrap();
}

#[test]
fn tokens_are_made_for_accounts_that_are_there_and_pods_that_run_as_them() {
    let mut cluster = Cluster::new();
    let made = |cluster: &Cluster, namespace: &str, name: &str| {
        Claims::new(&cluster.state, namespace, name, Some(&cluster.pod()), 3600, NOW)
    };
    assert!(matches!(
        made(&cluster, "default", "nobody"),
        Err(NotIssued::NoAccount { name, .. }) if name == "nobody"
    ));
    assert!(made(&cluster, "other", "robot").is_err());
    let account = ServiceAccount {
        metadata: meta("other", "uid-other"),
        ..Default::default()
    };
    cluster.operate(Op::Put(Put {
        object: Some(object::from(account)),
    }));
    assert!(matches!(
        made(&cluster, "default", "other"),
        Err(NotIssued::OfAnother { runs_as, .. }) if runs_as == "robot"
    ));
}

#[test]
fn every_member_has_the_key_by_having_the_cas() {
    let cluster = Cluster::new();
    let claims = cluster.claims(None);
    let one = Authority::generate("test", NOW).unwrap();
    let token = one.account_key().sign(&claims);
    // As a member that joined has it, from text.
    let text = format!("\n{}\n", one.key());
    let same = Authority::load(one.certificate(), &text).unwrap();
    assert_eq!(same.account_key().open(token.as_bytes()), Ok(claims));
    let other = Authority::generate("test", NOW).unwrap();
    assert_eq!(
        other.account_key().open(token.as_bytes()),
        Err(TokenRefused::Foreign)
    );
}
