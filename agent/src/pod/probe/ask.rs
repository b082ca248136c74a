//! One question of a probe: by HTTP or TCP to the pod's address from the node's network, or by a process in the container.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use proto::v1::int_or_string::Value;
use proto::v1::{Container, HttpGetAction, IntOrString, Probe};
use runtime::monitor::frame::Stream;
use runtime::monitor::protocol::Request;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::pod::monitor::Client;

/// How much of an answer or of a process's output is looked at; Kubernetes' own limit.
const ANSWER_BYTES_MAX: usize = 10 << 10;
/// How much of it is told.
const TOLD_BYTES_MAX: usize = 256;
/// More than a probe's own time that its process may take to be ended and told of.
const END_WAIT: Duration = Duration::from_secs(5);

/// The run that a probe is about.
#[derive(Clone, Debug)]
pub(in crate::pod) struct Target {
    /// The pod's address.
    pub(in crate::pod) address: IpAddr,
    /// Its monitor's directory.
    pub(in crate::pod) monitor: PathBuf,
    /// The run's id.
    pub(in crate::pod) run: String,
}

/// Asks once; an error says what a person wants to know.
pub(super) async fn ask(
    probe: &Probe,
    container: &Container,
    target: &Target,
    timeout: Duration,
) -> Result<(), String> {
    if let Some(exec) = &probe.exec {
        let asked = tokio::time::timeout(timeout + END_WAIT, run(&exec.command, target, timeout));
        return asked.await.unwrap_or_else(|_| Err(timed_out(timeout)));
    }
    let asked = async {
        if let Some(get) = &probe.http_get {
            http(get, container, target).await
        } else if let Some(socket) = &probe.tcp_socket {
            let port = port(socket.port.as_ref(), container)?;
            connect(&socket.host, port, target).await.map(drop)
        } else {
            Ok(())
        }
    };
    tokio::time::timeout(timeout, asked)
        .await
        .unwrap_or_else(|_| Err(timed_out(timeout)))
}

fn timed_out(timeout: Duration) -> String {
    format!("no answer within {} s", timeout.as_secs())
}

/// A port by its number, or by its name among the container's.
fn port(port: Option<&IntOrString>, container: &Container) -> Result<u16, String> {
    let number = match port.and_then(|port| port.value.as_ref()) {
        Some(Value::Number(number)) => *number,
        Some(Value::Text(name)) => container
            .ports
            .iter()
            .find(|port| port.name == *name)
            .map(|port| port.container_port)
            .ok_or_else(|| format!("the container has no port named {name}"))?,
        None => return Err("no port".to_owned()),
    };
    u16::try_from(number).map_err(|_| format!("{number} is no port"))
}

async fn connect(host: &str, port: u16, target: &Target) -> Result<TcpStream, String> {
    let failed = |error: std::io::Error| format!("dial tcp {}:{port}: {error}", shown(host, target));
    match host {
        "" => TcpStream::connect(SocketAddr::new(target.address, port))
            .await
            .map_err(failed),
        host => TcpStream::connect((host, port)).await.map_err(failed),
    }
}

fn shown(host: &str, target: &Target) -> String {
    match host {
        "" => target.address.to_string(),
        host => host.to_owned(),
    }
}

async fn http(get: &HttpGetAction, container: &Container, target: &Target) -> Result<(), String> {
    let port = port(get.port.as_ref(), container)?;
    let stream = connect(&get.host, port, target).await?;
    let host = shown(&get.host, target);
    let request = request(get, &host, port);
    let status = if get.scheme == "HTTPS" {
        let name = ServerName::try_from(host.clone()).map_err(|error| error.to_string())?;
        let connector = tokio_rustls::TlsConnector::from(unverified()?);
        let stream = connector
            .connect(name, stream)
            .await
            .map_err(|error| format!("TLS with {host}:{port}: {error}"))?;
        exchange(stream, &request).await
    } else {
        exchange(stream, &request).await
    };
    match status.map_err(|error| format!("Get {host}:{port}{}: {error}", get.path))? {
        200..=399 => Ok(()),
        status => Err(format!("HTTP probe failed with statuscode: {status}")),
    }
}

fn request(get: &HttpGetAction, host: &str, port: u16) -> String {
    let path = match get.path.strip_prefix('/') {
        Some(_) => get.path.clone(),
        None => format!("/{}", get.path),
    };
    let has = |name: &str| {
        get.http_headers
            .iter()
            .any(|one| one.name.eq_ignore_ascii_case(name))
    };
    let mut request = format!("GET {path} HTTP/1.1\r\n");
    if !has("Host") {
        request.push_str(&format!("Host: {host}:{port}\r\n"));
    }
    if !has("User-Agent") {
        request.push_str("User-Agent: bulkhead-probe\r\n");
    }
    if !has("Accept") {
        request.push_str("Accept: */*\r\n");
    }
    for header in &get.http_headers {
        request.push_str(&format!("{}: {}\r\n", header.name, header.value));
    }
    request.push_str("Connection: close\r\n\r\n");
    request
}

/// Sends a request and reads the answer's status; its body is of no interest.
async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> Result<u16, String> {
    let io = |error: std::io::Error| error.to_string();
    stream.write_all(request.as_bytes()).await.map_err(io)?;
    let mut answer = Vec::new();
    loop {
        if let Some(line) = answer
            .split(|byte| *byte == b'\n')
            .next()
            .filter(|_| answer.contains(&b'\n'))
        {
            return status_of(&String::from_utf8_lossy(line));
        }
        if answer.len() >= ANSWER_BYTES_MAX {
            return Err("the answer is not HTTP".to_owned());
        }
        if stream.read_buf(&mut answer).await.map_err(io)? == 0 {
            return Err("the connection was closed without an answer".to_owned());
        }
    }
}

/// RFC 9112, section 4: `HTTP/1.1 200 OK`.
fn status_of(line: &str) -> Result<u16, String> {
    let mut words = line.split_whitespace();
    let version = words.next().unwrap_or_default();
    let status = words.next().and_then(|word| word.parse().ok());
    match status {
        Some(status) if version.starts_with("HTTP/") => Ok(status),
        _ => Err("the answer is not HTTP".to_owned()),
    }
}

async fn run(command: &[String], target: &Target, timeout: Duration) -> Result<(), String> {
    let failed = |error: &dyn std::error::Error| runtime::monitor::chain(error);
    let client = Client::connect(&target.monitor)
        .await
        .map_err(|error| failed(&error))?;
    let request = Request::Exec {
        id: target.run.clone(),
        args: command.to_vec(),
        stdin: false,
        tty: false,
        timeout_ms: u64::try_from(timeout.as_millis()).ok(),
    };
    let mut session = client.stream(&request).await.map_err(|error| failed(&error))?;
    let mut output = Vec::new();
    loop {
        match session.receive().await.map_err(|error| failed(&error))? {
            Stream::Stdout(bytes) | Stream::Stderr(bytes) => {
                let room = ANSWER_BYTES_MAX.saturating_sub(output.len());
                output.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
            Stream::Exit(ended) => {
                if let Some(error) = ended.error {
                    return Err(format!("command {}: {error}", command.join(" ")));
                }
                if ended.code == 0 {
                    return Ok(());
                }
                let text = String::from_utf8_lossy(&output);
                let told: String = text.trim().chars().take(TOLD_BYTES_MAX).collect();
                return Err(format!("exit code {}: {told}", ended.code));
            }
            Stream::Stdin(_) | Stream::Resize { .. } => {}
        }
    }
}

/// TLS without a look at the certificate, as Kubernetes' probes: they ask whether it answers, not who.
fn unverified() -> Result<Arc<rustls::ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(Unverified(Arc::clone(&provider)));
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct Unverified(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &rustls_pki_types::CertificateDer<'_>,
        _intermediates: &[rustls_pki_types::CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &rustls_pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &rustls_pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::{ContainerPort, HttpHeader, TcpSocketAction};
    use tokio::net::TcpListener;

    async fn serve(answer: &'static [u8]) -> (u16, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let count = stream.read(&mut request).await.unwrap();
            stream.write_all(answer).await.unwrap();
            String::from_utf8_lossy(&request[..count]).into_owned()
        });
        (port, served)
    }

    fn here() -> Target {
        Target {
            address: IpAddr::from([127, 0, 0, 1]),
            monitor: "/nonexistent".into(),
            run: "x-0".into(),
        }
    }

    fn number(port: u16) -> Option<IntOrString> {
        Some(IntOrString {
            value: Some(Value::Number(port.into())),
        })
    }

    fn get(port: u16) -> Probe {
        Probe {
            http_get: Some(HttpGetAction {
                path: "/health".into(),
                port: number(port),
                scheme: "HTTP".into(),
                http_headers: vec![HttpHeader {
                    name: "X-Probe".into(),
                    value: "yes".into(),
                }],
                ..HttpGetAction::default()
            }),
            ..Probe::default()
        }
    }

    const SECOND: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn http_succeeds_from_200_to_399() {
        for (answer, success) in [
            (&b"HTTP/1.1 200 OK\r\n\r\n"[..], true),
            (b"HTTP/1.0 302 Found\r\n\r\n", true),
            (b"HTTP/1.1 404 Not Found\r\n\r\n", false),
            (b"HTTP/1.1 500\r\n\r\n", false),
            (b"SSH-2.0-x\r\n", false),
            (b"", false),
        ] {
            let (port, served) = serve(answer).await;
            let asked = ask(&get(port), &Container::default(), &here(), SECOND).await;
            assert_eq!(asked.is_ok(), success, "{asked:?}");
            let request = served.await.unwrap();
            assert!(request.starts_with("GET /health HTTP/1.1\r\n"), "{request}");
            assert!(request.contains("\r\nX-Probe: yes\r\n"), "{request}");
        }
    }

    #[tokio::test]
    async fn tcp_asks_whether_somebody_listens_also_by_a_ports_name() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let container = Container {
            ports: vec![ContainerPort {
                name: "web".into(),
                container_port: listener.local_addr().unwrap().port().into(),
                ..ContainerPort::default()
            }],
            ..Container::default()
        };
        let probe = Probe {
            tcp_socket: Some(TcpSocketAction {
                port: Some(IntOrString {
                    value: Some(Value::Text("web".into())),
                }),
                host: String::new(),
            }),
            ..Probe::default()
        };
        ask(&probe, &container, &here(), SECOND).await.unwrap();
        drop(listener);
        let error = ask(&probe, &container, &here(), SECOND).await.unwrap_err();
        assert!(error.contains("127.0.0.1"), "{error}");
    }

    #[tokio::test]
    async fn who_does_not_answer_in_time_has_failed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = ask(
            &get(port),
            &Container::default(),
            &here(),
            Duration::from_millis(50),
        )
        .await;
        assert!(asked.unwrap_err().contains("no answer"));
    }
}
