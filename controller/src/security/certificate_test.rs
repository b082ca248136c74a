//! Real handshakes over loopback: who gets in, who does not, and what a certificate can be made to say.

use std::sync::Arc;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_stream::StreamExt;

use super::ca::{Authority, Issued, SHORT_LIFE, Subject};
use super::identity::{ADMINS, Authenticated, Identity, member_server_name};
use super::listen::{self, Caller};
use super::live::{ClientAuth, Keeper, LiveCertificate};
use super::revoked::Revoked;
use super::unix_now;

fn authority() -> Authority {
    Authority::generate("test", unix_now()).unwrap()
}

fn member(id: u64) -> Subject {
    Subject::Member {
        id,
        hosts: vec!["10.1.2.3".into(), "c1.example".into()],
    }
}

fn node(name: &str) -> Subject {
    Subject::Node { name: name.into() }
}

fn identity(issued: &Issued) -> (&str, &str) {
    (&issued.certificate, &issued.key)
}

/// A listener of member 1; each connection that gets in is told who it is.
struct Server {
    address: String,
    live: LiveCertificate,
}

async fn serve(ca: &Authority, shown: &Issued, auth: ClientAuth) -> Server {
    let live = LiveCertificate::new(shown).unwrap();
    let config = Arc::new(live.server_config(ca.certificate(), auth).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut connections = listen::accept(listener, config, 16, Revoked::nothing());
    tokio::spawn(async move {
        while let Some(connection) = connections.next().await {
            let mut connection = connection.unwrap();
            use tonic::transport::server::Connected;
            let Caller { authenticated, .. } = connection.connect_info();
            connection
                .write_all(authenticated.identity.to_string().as_bytes())
                .await
                .unwrap();
            connection.shutdown().await.unwrap();
        }
    });
    Server { address, live }
}

/// Connects, and reads what the listener takes us for.
async fn connect(server: &Server, config: ClientConfig, name: &str) -> Result<String, std::io::Error> {
    let stream = TcpStream::connect(&server.address).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

const NAME: &str = rpc::tls::CONTROLLER_NAME;

#[tokio::test]
async fn each_role_is_recognised_by_its_certificate() {
    let ca = authority();
    let server = serve(
        &ca,
        &ca.issue(&member(1), unix_now()).unwrap(),
        ClientAuth::Optional,
    )
    .await;
    for (subject, expected) in [
        (member(7), "system:member:7"),
        (node("n1"), "system:node:n1"),
        (Subject::Admin { name: "admin".into() }, "admin"),
    ] {
        let issued = ca.issue(&subject, unix_now()).unwrap();
        let config = rpc::tls::client_config(ca.certificate(), Some(identity(&issued))).unwrap();
        assert_eq!(connect(&server, config, NAME).await.unwrap(), expected);
    }
    let anonymous = rpc::tls::client_config(ca.certificate(), None).unwrap();
    assert_eq!(
        connect(&server, anonymous, NAME).await.unwrap(),
        "system:anonymous"
    );
}

#[tokio::test]
async fn members_port_lets_nobody_in_without_a_certificate_of_this_ca() {
    let (ca, other) = (authority(), authority());
    let server = serve(
        &ca,
        &ca.issue(&member(1), unix_now()).unwrap(),
        ClientAuth::Required,
    )
    .await;
    let anonymous = rpc::tls::client_config(ca.certificate(), None).unwrap();
    connect(&server, anonymous, NAME).await.unwrap_err();
    let foreign = other.issue(&member(1), unix_now()).unwrap();
    let config = rpc::tls::client_config(ca.certificate(), Some(identity(&foreign))).unwrap();
    connect(&server, config, NAME).await.unwrap_err();
    let long_ago = unix_now() - 2 * SHORT_LIFE.as_secs();
    let expired = ca.issue(&member(1), long_ago).unwrap();
    let config = rpc::tls::client_config(ca.certificate(), Some(identity(&expired))).unwrap();
    let refused = connect(&server, config, NAME).await.unwrap_err().to_string();
    assert!(refused.contains("CertificateExpired"), "{refused}");
}

#[tokio::test]
async fn callers_trust_members_of_their_cluster_only() {
    let (ca, other) = (authority(), authority());
    let good = serve(
        &ca,
        &ca.issue(&member(1), unix_now()).unwrap(),
        ClientAuth::Optional,
    )
    .await;
    let trusting = |ca: &Authority| rpc::tls::client_config(ca.certificate(), None).unwrap();
    connect(&good, trusting(&ca), NAME).await.unwrap();
    connect(&good, trusting(&other), NAME).await.unwrap_err();
    // The right member, not just any.
    connect(&good, trusting(&ca), &member_server_name(1))
        .await
        .unwrap();
    connect(&good, trusting(&ca), &member_server_name(2))
        .await
        .unwrap_err();
    // A node can't pose as a controller.
    let posing = serve(
        &ca,
        &ca.issue(&node("n1"), unix_now()).unwrap(),
        ClientAuth::Optional,
    )
    .await;
    connect(&posing, trusting(&ca), NAME).await.unwrap_err();
}

#[tokio::test]
async fn a_new_certificate_is_shown_without_a_restart() {
    let ca = authority();
    let server = serve(
        &ca,
        &ca.issue(&node("n1"), unix_now()).unwrap(),
        ClientAuth::Optional,
    )
    .await;
    let trusting = || rpc::tls::client_config(ca.certificate(), None).unwrap();
    connect(&server, trusting(), NAME).await.unwrap_err();
    server
        .live
        .replace(&ca.issue(&member(1), unix_now()).unwrap())
        .unwrap();
    connect(&server, trusting(), NAME).await.unwrap();
    let mismatched = Issued {
        certificate: ca.issue(&member(1), unix_now()).unwrap().certificate,
        key: ca.issue(&member(1), unix_now()).unwrap().key,
    };
    server.live.replace(&mismatched).unwrap_err();
}

#[test]
fn a_certificate_is_replaced_in_time_whatever_the_clock_does() {
    const HOUR: u64 = 60 * 60;

    let ca = authority();
    let start = unix_now();
    let live = LiveCertificate::new(&ca.issue(&member(1), start).unwrap()).unwrap();
    let mut keeper = Keeper {
        live: live.clone(),
        issue: |now| ca.issue(&member(1), now),
        made: start,
    };
    assert!(
        !keeper.look(start + 11 * HOUR).unwrap(),
        "in the first half of its life"
    );
    let before = shown(&live);
    assert!(keeper.look(start + 13 * HOUR).unwrap());
    assert_ne!(shown(&live), before, "the new one is shown");
    assert!(!keeper.look(start + 24 * HOUR).unwrap());
    assert!(keeper.look(start + 26 * HOUR).unwrap());
    // Set back: the one that is shown has not begun yet.
    assert!(keeper.look(start).unwrap());
    assert_eq!(keeper.made, start);
}

/// The bytes of the certificate that a listener would show.
fn shown(live: &LiveCertificate) -> Vec<u8> {
    live.0.load().cert[0].to_vec()
}

#[tokio::test]
async fn the_pin_of_a_token_decides_whom_to_trust() {
    let (ca, other) = (authority(), authority());
    let live = LiveCertificate::new(&ca.issue(&member(1), unix_now()).unwrap()).unwrap();
    let config = Arc::new(
        live.server_config(ca.certificate(), ClientAuth::Optional)
            .unwrap(),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let incoming = listen::accept(listener, config, 16, Revoked::nothing());
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_routes(tonic::service::Routes::default())
            .serve_with_incoming(incoming),
    );
    let call = async |pin| {
        let channel = rpc::tls::channel_pinned(&address, pin).unwrap();
        let mut client = rpc::v1::join_client::JoinClient::new(channel);
        client
            .join_node(rpc::v1::JoinNodeRequest::default())
            .await
            .unwrap_err()
            .code()
    };
    assert_eq!(call(ca.sha256()).await, tonic::Code::Unimplemented); // reached
    assert_eq!(call(other.sha256()).await, tonic::Code::Unavailable);
}

#[test]
fn nothing_of_a_request_is_signed_but_its_key() {
    let ca = authority();
    let key = KeyPair::generate().unwrap();
    let mut asked = CertificateParams::new(vec![NAME.to_owned(), "evil.example".to_owned()]).unwrap();
    asked.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    asked.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::Any];
    asked
        .distinguished_name
        .push(rcgen::DnType::OrganizationName, ADMINS);
    let request = asked.serialize_request(&key).unwrap();
    let signed = ca.sign(request.der(), &node("n1"), unix_now()).unwrap();
    let der = rpc::tls::certificates(&signed, "").unwrap().remove(0);
    assert_eq!(
        Authenticated::from_certificate(&der).unwrap().identity,
        Identity::Node("n1".into())
    );
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
    assert!(!certificate.is_ca());
    assert!(certificate.subject_alternative_name().unwrap().is_none());
    let usage = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth && !usage.any);
    let mut damaged = request.der().to_vec();
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    ca.sign(&damaged, &node("n1"), unix_now()).unwrap_err();
}

#[test]
fn names_that_are_more_than_names_are_refused() {
    let ca = authority();
    for name in [
        "",
        "n1,O=bulkhead:admins",
        "N1",
        "n1\0",
        "-n",
        "n.",
        &"n".repeat(254),
    ] {
        assert!(ca.issue(&node(name), unix_now()).is_err(), "{name}");
    }
}

#[test]
fn a_subject_that_we_never_give_is_nobody() {
    let key = KeyPair::generate().unwrap();
    let read = |organizations: &[&str], name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for organization in organizations {
            params
                .distinguished_name
                .push(rcgen::DnType::OrganizationName, *organization);
        }
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        Authenticated::from_certificate(params.self_signed(&key).unwrap().der())
    };
    read(&["bulkhead:nodes"], "n1").unwrap_err();
    read(&["bulkhead:nodes"], "system:node:").unwrap_err();
    read(&["bulkhead:members"], "system:member:x").unwrap_err();
    read(&[ADMINS], "system:node:n1").unwrap_err();
    let admin = read(&[ADMINS], "admin").unwrap();
    assert!(admin.identity.is_admin());
    assert!(admin.current(admin.not_after).is_ok());
    assert!(
        admin.current(admin.not_after + 1).is_err(),
        "a connection outlives its certificate: each request is checked"
    );
}

#[test]
fn a_key_of_another_ca_is_noticed() {
    let (ca, other) = (authority(), authority());
    assert!(Authority::load(ca.certificate(), other.key()).is_err());
    assert_eq!(
        Authority::load(ca.certificate(), ca.key()).unwrap().sha256(),
        ca.sha256()
    );
}

#[tokio::test]
async fn a_controller_of_another_ca_hears_nothing_of_a_token() {
    let (ca, evil) = (authority(), authority());
    let own = evil.issue(&member(1), unix_now()).unwrap();
    let leaf = own
        .certificate
        .split_inclusive("-----END CERTIFICATE-----\n")
        .next()
        .unwrap();
    // The cluster's certificate is no secret: it can be shown behind a leaf that it did not sign.
    let dressed_up = Issued {
        certificate: format!("{leaf}{}", ca.certificate()),
        key: own.key.clone(),
    };
    for shown in [own, dressed_up] {
        let live = LiveCertificate::new(&shown).unwrap();
        let config = live
            .server_config(evil.certificate(), ClientAuth::Optional)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let heard = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut heard = Vec::new();
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
            let ended = match acceptor.accept(stream).await {
                Ok(mut stream) => stream.read_to_end(&mut heard).await.map(|_| ()),
                Err(refused) => Err(refused),
            };
            (ended, heard)
        });
        let channel = rpc::tls::channel_pinned(&address, ca.sha256()).unwrap();
        let request = rpc::v1::JoinNodeRequest {
            token: "the-token".to_owned(),
            ..Default::default()
        };
        let mut client = rpc::v1::join_client::JoinClient::new(channel);
        let refused = client.join_node(request).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused:?}");
        let (ended, heard) = heard.await.unwrap();
        assert!(heard.is_empty(), "{ended:?}: {heard:?}");
    }
}
