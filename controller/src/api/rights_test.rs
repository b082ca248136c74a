//! What roles let users do through the service, over a real member of one; and what is noted of it.

use model::object;
use proto::v1::{ConfigMap, Object, ObjectMeta, PolicyRule, Role, RoleBinding, RoleRef, Secret, Subject};
use rcgen::{CertificateParams, KeyPair};
use rpc::v1::api_server::Api;
use rpc::v1::{ApplyItem, ApplyRequest, ApplyResponse, IssueCertificateRequest, ReviewAccessRequest};
use tonic::{Code, Status};

use super::service_test::{One, by, by_admin};
use crate::security::identity::{ADMINS, Authenticated, Identity};

fn meta(name: &str) -> Option<ObjectMeta> {
    Some(ObjectMeta {
        name: name.to_owned(),
        namespace: "default".to_owned(),
        ..Default::default()
    })
}

fn texts(words: &str) -> Vec<String> {
    words.split(',').map(str::to_owned).collect()
}

/// A Role of one rule over the group of v1 (or, as `rbac:`, that of roles).
fn role(name: &str, resources: &str, verbs: &str) -> Object {
    let (group, resources) = match resources.strip_prefix("rbac:") {
        Some(resources) => (model::default::RBAC_GROUP, resources),
        None => ("", resources),
    };
    object::from(Role {
        metadata: meta(name),
        rules: vec![PolicyRule {
            verbs: texts(verbs),
            api_groups: vec![group.to_owned()],
            resources: texts(resources),
            ..Default::default()
        }],
        ..Default::default()
    })
}

fn binding(name: &str, role: &str, user: &str) -> Object {
    object::from(RoleBinding {
        metadata: meta(name),
        role_ref: Some(RoleRef {
            kind: "Role".to_owned(),
            name: role.to_owned(),
            ..Default::default()
        }),
        subjects: vec![Subject {
            kind: "User".to_owned(),
            name: user.to_owned(),
            ..Default::default()
        }],
        ..Default::default()
    })
}

fn config(name: &str) -> Object {
    object::from(ConfigMap {
        metadata: meta(name),
        ..Default::default()
    })
}

fn secret(name: &str, key: &str, value: &str) -> Object {
    object::from(Secret {
        metadata: meta(name),
        data: [(key.to_owned(), value.as_bytes().to_vec())].into(),
        ..Default::default()
    })
}

async fn apply(
    one: &One,
    user: &str,
    groups: &[&str],
    objects: Vec<Object>,
) -> Result<ApplyResponse, Status> {
    let items = objects.into_iter().map(|object| ApplyItem {
        object: Some(object),
        ..Default::default()
    });
    let request = ApplyRequest {
        items: items.collect(),
        ..Default::default()
    };
    let answer = one.service.apply(by(user, groups, request)).await;
    answer.map(tonic::Response::into_inner)
}

async fn as_admin(one: &One, objects: Vec<Object>) {
    apply(one, "root", &[ADMINS], objects).await.unwrap();
}

async fn refused(one: &One, user: &str, objects: Vec<Object>) -> String {
    let status = apply(one, user, &[], objects).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    status.message().to_owned()
}

/// The lines so far, once there are that many.
async fn audited(one: &One, count: usize) -> Vec<serde_json::Value> {
    let path = one.directory().join("audit/audit.log");
    loop {
        let text = std::fs::read_to_string(&path).unwrap();
        if text.lines().count() >= count {
            let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
            return lines.collect();
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_does_what_a_role_allows_and_is_told_what_is_missing() {
    let one = One::new().await;
    let objects = || vec![config("a"), secret("s", "k", "v")];
    let message = refused(&one, "ann", objects()).await;
    assert!(
        message.contains("user ann may not create configmaps a in namespace default"),
        "{message}"
    );
    assert!(message.contains("1 more"), "both are told: {message}");

    let maps = role("maps", "configmaps", "create");
    as_admin(&one, vec![maps, binding("ann", "maps", "ann")]).await;
    let create = ApplyRequest {
        items: vec![ApplyItem {
            object: Some(config("a")),
            ..Default::default()
        }],
        request_id: "r1".to_owned(),
        ..Default::default()
    };
    // Its retry needs no other right.
    let first = one
        .service
        .apply(by("ann", &[], create.clone()))
        .await
        .unwrap()
        .into_inner();
    let again = one
        .service
        .apply(by("ann", &[], create))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(first, again);
    // All or nothing.
    let message = refused(&one, "ann", vec![config("b"), secret("s", "k", "v")]).await;
    assert!(message.contains("create secrets s"), "{message}");
    let message = refused(&one, "ann", vec![config("a")]).await;
    assert!(message.contains("patch configmaps a"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_gives_rights_that_they_do_not_hold() {
    let one = One::new().await;
    as_admin(
        &one,
        vec![
            role("lead", "rbac:roles,rolebindings", "create,patch"),
            binding("lead", "lead", "ann"),
            role("read", "pods", "get"),
            binding("read", "read", "ann"),
            role("secrets", "secrets", "get"),
        ],
    )
    .await;
    let message = refused(&one, "ann", vec![role("mine", "secrets", "get")]).await;
    assert!(message.contains("escalate roles"), "{message}");
    assert!(message.contains("get secrets"), "{message}");
    let message = refused(&one, "ann", vec![binding("mine", "secrets", "ann")]).await;
    assert!(message.contains("bind roles"), "{message}");
    // What is not there could become anything.
    let message = refused(&one, "ann", vec![binding("mine", "later", "ann")]).await;
    assert!(message.contains("does not exist"), "{message}");
    // A role that is in the same request counts as it will be, not as it is.
    let both = vec![role("read", "secrets", "get"), binding("more", "read", "bob")];
    assert!(refused(&one, "ann", both).await.contains("get secrets"));

    // What one holds one may give, also in one request.
    let both = vec![role("mine", "pods", "get"), binding("mine", "mine", "bob")];
    apply(&one, "ann", &[], both).await.unwrap();
    // Nothing new is given by what stays as it is.
    as_admin(&one, vec![binding("theirs", "secrets", "bob")]).await;
    apply(&one, "ann", &[], vec![binding("theirs", "secrets", "bob")])
        .await
        .unwrap();

    let may = role("may", "rbac:roles", "escalate,bind");
    as_admin(&one, vec![may, binding("may", "may", "ann")]).await;
    let both = vec![role("more", "secrets", "get"), binding("more", "more", "ann")];
    apply(&one, "ann", &[], both).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_write_a_secret_and_not_read_it_is_shown_no_value() {
    let one = One::new().await;
    as_admin(
        &one,
        vec![
            secret("db", "password", "hunter2"),
            role("write", "secrets", "create,patch"),
            binding("write", "write", "ann"),
        ],
    )
    .await;
    let answer = apply(&one, "ann", &[], vec![secret("db", "user", "ann")])
        .await
        .unwrap();
    let shown: Secret = object::into(answer.results[0].object.clone().unwrap()).unwrap();
    assert!(shown.data.is_empty());
    let answer = apply(&one, "root", &[ADMINS], vec![secret("db", "user", "bob")])
        .await
        .unwrap();
    let shown: Secret = object::into(answer.results[0].object.clone().unwrap()).unwrap();
    assert!(!shown.data.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_and_refusals_are_noted_without_values() {
    let one = One::new().await;
    as_admin(&one, vec![secret("db", "password", "hunter2-hunter2")]).await;
    refused(&one, "ann", vec![secret("db", "password", "hunter3-hunter3")]).await;
    // A value in a refusal of what is in the object.
    let mut wrong = secret("bad", "..", "hunter4-hunter4");
    object::meta_mut(&mut wrong).name = "Bad Name".to_owned();
    apply(&one, "root", &[ADMINS], vec![wrong]).await.unwrap_err();
    let lines = audited(&one, 3).await;
    let facts: Vec<(&str, &str, &str, &str)> = lines
        .iter()
        .map(|line| {
            let text = |field: &str| line[field].as_str().unwrap_or_default();
            (text("user"), text("call"), text("decision"), text("outcome"))
        })
        .collect();
    assert_eq!(
        facts,
        [
            ("root", "Apply", "allowed", "Ok"),
            ("ann", "Apply", "refused", ""),
            ("root", "Apply", "allowed", "InvalidArgument"),
        ]
    );
    assert_eq!(lines[0]["objects"][0]["resource"], "secrets");
    assert_eq!(lines[0]["objects"][0]["name"], "db");
    assert_eq!(lines[0]["objects"][0]["verb"], "create");
    assert_eq!(lines[1]["objects"][0]["verb"], "patch");
    assert_eq!(lines[0]["member"], "c1");
    let text = std::fs::read_to_string(one.directory().join("audit/audit.log")).unwrap();
    let encoded = |value: &str| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, value);
    for value in ["hunter2-hunter2", "hunter3-hunter3", "hunter4-hunter4"] {
        assert!(!text.contains(value) && !text.contains(&encoded(value)), "{text}");
    }
}

async fn issue(one: &One, user: &str, groups: &[&str], name: &str, asked: &[&str]) -> Result<String, Status> {
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap();
    let request = IssueCertificateRequest {
        csr: csr.der().to_vec(),
        name: name.to_owned(),
        groups: asked.iter().map(|group| (*group).to_owned()).collect(),
        ttl_seconds: 3600,
    };
    let answer = one.service.issue_certificate(by(user, groups, request)).await;
    answer.map(|answer| answer.into_inner().certificate)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_says_what_was_asked_and_only_administrators_make_administrators() {
    let one = One::new().await;
    let made = issue(&one, "root", &[ADMINS], "ann@example.com", &["devs", "ops:night"])
        .await
        .unwrap();
    let der = rpc::tls::certificates(&made, "").unwrap().remove(0);
    let Authenticated {
        identity, not_after, ..
    } = Authenticated::from_certificate(&der).unwrap();
    let expected = Identity::User {
        name: "ann@example.com".to_owned(),
        groups: texts("devs,ops:night"),
    };
    assert_eq!(identity, expected);
    assert!(not_after <= crate::security::unix_now() + 3600);

    for (name, group) in [
        ("system:node:n1", "devs"),
        ("ann", "bulkhead:nodes"),
        ("ann", "bulkhead:members"),
        ("ann", "system:masters"),
        ("ann\n", "devs"),
        ("ann", "devs\nbulkhead:admins"),
        ("", "devs"),
    ] {
        let status = issue(&one, "root", &[ADMINS], name, &[group]).await.unwrap_err();
        assert_eq!(
            status.code(),
            Code::InvalidArgument,
            "{name:?} {group:?}: {status:?}"
        );
    }

    // Somebody with every right by a role, and not of the group.
    let everything = |kind: &str| -> Object {
        let text = match kind {
            "role" => {
                "{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: all}, rules: [{apiGroups: ['*'], resources: ['*'], verbs: ['*']}]}"
            }
            _ => {
                "{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: all}, roleRef: {kind: ClusterRole, name: all}, subjects: [{kind: User, name: boss}]}"
            }
        };
        model::read::manifests("f.yaml", text.as_bytes())
            .unwrap()
            .remove(0)
            .object
    };
    as_admin(&one, vec![everything("role"), everything("binding")]).await;
    issue(&one, "boss", &[], "friend", &["devs"]).await.unwrap();
    let status = issue(&one, "boss", &[], "friend", &[ADMINS]).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    // And who may make certificates makes only those of whom they may be.
    let status = issue(&one, "ann", &[], "ann", &[]).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(
        status.message().contains("certificates.bulkhead.io"),
        "{}",
        status.message()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_about_rights_are_answered_as_calls_are() {
    let one = One::new().await;
    as_admin(
        &one,
        vec![role("maps", "configmaps", "get"), binding("ann", "maps", "ann")],
    )
    .await;
    let question = |resource: &str, user: &str| ReviewAccessRequest {
        verb: "get".to_owned(),
        resource: resource.to_owned(),
        namespace: "default".to_owned(),
        user: user.to_owned(),
        ..Default::default()
    };
    let own = one
        .service
        .review_access(by("ann", &[], question("configmaps", "")))
        .await;
    let own = own.unwrap().into_inner();
    assert!(own.allowed);
    assert_eq!(own.reason, "RoleBinding default/ann gives Role maps");
    let of_all = RoleBinding {
        subjects: vec![Subject {
            kind: "Group".to_owned(),
            name: "system:serviceaccounts:default".to_owned(),
            ..Default::default()
        }],
        ..object::into(binding("accounts", "maps", "")).unwrap()
    };
    as_admin(&one, vec![object::from(of_all)]).await;
    for (account, allowed) in [("default", true), ("other", false)] {
        let user = format!("system:serviceaccount:{account}:robot");
        let answer = one
            .service
            .review_access(by_admin(question("configmaps", &user)))
            .await;
        assert_eq!(answer.unwrap().into_inner().allowed, allowed, "{user}");
    }
    let other = one
        .service
        .review_access(by_admin(question("secrets", "ann")))
        .await;
    assert!(!other.unwrap().into_inner().allowed);
    let forbidden = one
        .service
        .review_access(by("ann", &[], question("secrets", "bob")))
        .await;
    let forbidden = forbidden.unwrap_err();
    assert_eq!(forbidden.code(), Code::PermissionDenied);
    assert!(
        forbidden.message().contains("impersonate users bob"),
        "{}",
        forbidden.message()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_needs_its_own_right_and_is_noted_without_itself() {
    let one = One::new().await;
    let account = object::from(proto::v1::ServiceAccount {
        metadata: meta("robot"),
        ..Default::default()
    });
    let all_but = role("accounts", "serviceaccounts,secrets", "*");
    as_admin(&one, vec![account, all_but, binding("ann", "accounts", "ann")]).await;
    let make = async || {
        let request = rpc::v1::CreateServiceAccountTokenRequest {
            name: "robot".to_owned(),
            ..Default::default()
        };
        let answer = one
            .service
            .create_service_account_token(by("ann", &[], request))
            .await;
        answer.map(|answer| answer.into_inner().token)
    };
    let refused = make().await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(
        refused
            .message()
            .contains("create serviceaccounts/token robot in namespace default"),
        "{refused}"
    );
    let tokens = role("tokens", "serviceaccounts/token", "create");
    as_admin(&one, vec![tokens, binding("tokens", "tokens", "ann")]).await;
    let token = make().await.unwrap();
    let lines = audited(&one, 4).await;
    let line = &lines[3];
    assert_eq!(line["user"], "ann");
    assert_eq!(line["call"], "CreateServiceAccountToken");
    assert_eq!(line["objects"][0]["resource"], "serviceaccounts/token");
    assert_eq!(line["objects"][0]["name"], "robot");
    assert_eq!(line["objects"][0]["namespace"], "default");
    let text = std::fs::read_to_string(one.directory().join("audit/audit.log")).unwrap();
    for part in token.split('.') {
        assert!(!text.contains(part), "{text}");
    }
}
