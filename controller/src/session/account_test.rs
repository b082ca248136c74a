//! Service accounts that show a token in place of a certificate, over real TLS.

use std::time::Duration;

use model::object;
use proto::v1::{ConfigMap, Object, PolicyRule, Role, RoleBinding, RoleRef, ServiceAccount, Subject};
use rpc::v1::api_client::ApiClient;
use rpc::v1::{
    CreateServiceAccountTokenRequest, GetRequest, RevokeCertificatesRequest, VersionRequest, WatchRequest,
    WhoAmIRequest,
};
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::cluster_test::{Controller, cluster, key, meta};
use crate::security::account_token::{Claims, LIFE_SECONDS_MAX};
use crate::security::ca::{Authority, Subject as Certified};
use crate::security::unix_now;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
const ROBOT: &str = "system:serviceaccount:default:robot";

fn connect(ca: &Authority, controller: &Controller, admin: bool) -> ApiClient<Channel> {
    let root = Certified::Admin {
        name: "root".to_owned(),
    };
    let issued = admin.then(|| ca.issue(&root, unix_now()).unwrap());
    let identity = issued
        .as_ref()
        .map(|issued| (issued.certificate.as_str(), issued.key.as_str()));
    let endpoints = [controller.api.clone()];
    ApiClient::new(rpc::tls::channel(&endpoints, ca.certificate(), identity).unwrap())
}

fn with<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value: AsciiMetadataValue = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

fn account() -> Object {
    object::from(ServiceAccount {
        metadata: meta("robot"),
        ..Default::default()
    })
}

fn wanted(name: &str, seconds: u32) -> CreateServiceAccountTokenRequest {
    CreateServiceAccountTokenRequest {
        namespace: "default".to_owned(),
        name: name.to_owned(),
        expiration_seconds: seconds,
        ..Default::default()
    }
}

fn get(kind: &str) -> GetRequest {
    GetRequest {
        key: Some(key(kind, "default", "a")),
        stale: false,
    }
}

/// With a ConfigMap, and an account that may get and watch ConfigMaps.
async fn with_robot(members: u64) -> (std::sync::Arc<Authority>, Vec<Controller>) {
    let (ca, controllers) = cluster(members).await;
    let role = Role {
        metadata: meta("maps"),
        rules: vec![PolicyRule {
            verbs: ["get", "watch"].map(str::to_owned).to_vec(),
            api_groups: vec![String::new()],
            resources: vec!["configmaps".to_owned()],
            ..Default::default()
        }],
        ..Default::default()
    };
    let binding = RoleBinding {
        metadata: meta("maps"),
        role_ref: Some(RoleRef {
            api_group: model::default::RBAC_GROUP.to_owned(),
            kind: "Role".to_owned(),
            name: "maps".to_owned(),
        }),
        subjects: vec![Subject {
            kind: "ServiceAccount".to_owned(),
            namespace: "default".to_owned(),
            name: "robot".to_owned(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let map = ConfigMap {
        metadata: meta("a"),
        ..Default::default()
    };
    for object in [
        object::from(role),
        object::from(binding),
        object::from(map),
        account(),
    ] {
        controllers[0].put(object).await;
    }
    (ca, controllers)
}

async fn ended(stream: &mut tonic::Streaming<rpc::v1::WatchEvent>) -> Status {
    let cut = async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended well"),
                Err(status) => return status,
            }
        }
    };
    tokio::time::timeout(PATIENCE, cut).await.expect("it is cut")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_opens_what_roles_give_its_account_at_any_member_until_the_account_goes() {
    let (ca, controllers) = with_robot(2).await;
    let mut root = connect(&ca, &controllers[0], true);
    let made = root.create_service_account_token(wanted("robot", 0)).await;
    let made = made.unwrap().into_inner();
    let left = made.expires.unwrap().seconds - i64::try_from(unix_now()).unwrap();
    assert!((3590..=3600).contains(&left), "{left}");
    let token = made.token.as_str();

    // At a member that did not make it.
    let mut robot = connect(&ca, &controllers[1], false);
    let who = robot.who_am_i(with(token, WhoAmIRequest {})).await.unwrap();
    let who = who.into_inner();
    assert_eq!((who.name.as_str(), who.expires), (ROBOT, made.expires));
    assert_eq!(
        who.groups,
        [
            "system:serviceaccounts",
            "system:serviceaccounts:default",
            "system:authenticated"
        ]
    );
    robot.get(with(token, get("ConfigMap"))).await.unwrap();
    let refused = robot.get(with(token, get("Secret"))).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains(ROBOT), "{refused}");
    // Another call on the same connection is nobody's again.
    let nobody = robot.get(get("ConfigMap")).await.unwrap_err();
    assert_eq!(nobody.code(), Code::Unauthenticated);

    let watch = WatchRequest {
        kind: "ConfigMap".to_owned(),
        namespace: "default".to_owned(),
        ..Default::default()
    };
    let mut watching = robot.watch(with(token, watch)).await.unwrap().into_inner();
    watching.message().await.unwrap().unwrap();
    controllers[0].delete("ServiceAccount", "robot").await;
    let refused = robot.get(with(token, get("ConfigMap"))).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("no longer there"), "{refused}");
    let cut = ended(&mut watching).await;
    assert_eq!(cut.code(), Code::Unauthenticated, "{cut}");
    assert!(cut.message().contains("no longer there"), "{cut}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_open_ends_with_its_token() {
    let (ca, controllers) = with_robot(1).await;
    let controller = &controllers[0];
    let mut robot = connect(&ca, controller, false);
    let watch = WatchRequest {
        kind: "ConfigMap".to_owned(),
        namespace: "default".to_owned(),
        ..Default::default()
    };
    // As short as nobody is given one.
    let state = controller.node.stale();
    let short = Claims::new(&state, "default", "robot", None, 2, unix_now()).unwrap();
    let short = ca.account_key().sign(&short);
    let long = Claims::new(&state, "default", "robot", None, 3600, unix_now()).unwrap();
    let long = ca.account_key().sign(&long);
    let mut brief = robot
        .watch(with(&short, watch.clone()))
        .await
        .unwrap()
        .into_inner();
    let mut other = robot.watch(with(&long, watch)).await.unwrap().into_inner();
    assert!(ended(&mut brief).await.message().contains("expired"));
    other.message().await.unwrap().unwrap();
    let request = RevokeCertificatesRequest {
        identity: ROBOT.to_owned(),
    };
    connect(&ca, controller, true)
        .revoke_certificates(request)
        .await
        .unwrap();
    assert!(ended(&mut other).await.message().contains("revoked"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_not_good_alone_opens_nothing() {
    let (ca, controllers) = with_robot(1).await;
    let controller = &controllers[0];
    let state = controller.node.stale();
    let claims = Claims::new(&state, "default", "robot", None, 3600, unix_now()).unwrap();
    let good = ca.account_key().sign(&claims);
    let forged = Authority::generate("other", unix_now())
        .unwrap()
        .account_key()
        .sign(&claims);
    let mut robot = connect(&ca, controller, false);
    let code = async |robot: &mut ApiClient<Channel>, request: Request<VersionRequest>| {
        let answer = robot.version(request).await;
        answer.map(|_| Code::Ok).unwrap_or_else(|status| status.code())
    };
    let large = "a".repeat(5000);
    for token in [forged.as_str(), "", "a.b.c", &large] {
        let found = code(&mut robot, with(token, VersionRequest {})).await;
        assert_eq!(found, Code::Unauthenticated, "{token}");
    }
    let mut two = with(&good, VersionRequest {});
    two.metadata_mut()
        .append("authorization", "Bearer x".parse().unwrap());
    assert_eq!(code(&mut robot, two).await, Code::Unauthenticated);
    let mut basic = Request::new(VersionRequest {});
    basic
        .metadata_mut()
        .insert("authorization", "Basic cm9vdDo=".parse().unwrap());
    assert_eq!(code(&mut robot, basic).await, Code::Unauthenticated);
    assert_eq!(code(&mut robot, with(&good, VersionRequest {})).await, Code::Ok);

    // Whose rights would it be?
    let mut root = connect(&ca, controller, true);
    let both = root.version(with(&good, VersionRequest {})).await.unwrap_err();
    assert_eq!(both.code(), Code::Unauthenticated);
    assert!(both.message().contains("show one of them"), "{both}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_made_within_their_limits_only() {
    let (ca, controllers) = with_robot(1).await;
    let mut root = connect(&ca, &controllers[0], true);
    for (request, code) in [
        (wanted("robot", 599), Code::InvalidArgument),
        (wanted("robot", LIFE_SECONDS_MAX + 1), Code::InvalidArgument),
        (wanted("nobody", 0), Code::NotFound),
        (wanted("", 0), Code::InvalidArgument),
        (
            CreateServiceAccountTokenRequest {
                bound_pod: "absent".to_owned(),
                ..wanted("robot", 0)
            },
            Code::NotFound,
        ),
        (
            CreateServiceAccountTokenRequest {
                bound_pod_uid: "u".to_owned(),
                ..wanted("robot", 0)
            },
            Code::InvalidArgument,
        ),
    ] {
        let status = root.create_service_account_token(request.clone()).await;
        assert_eq!(status.unwrap_err().code(), code, "{request:?}");
    }
    for seconds in [600, LIFE_SECONDS_MAX] {
        root.create_service_account_token(wanted("robot", seconds))
            .await
            .unwrap();
    }
}
