//! Pulls images from registries that speak the OCI distribution protocol.
//!
//! `oci-client` does HTTP, tokens and manifests; what comes is checked again against the digests and sizes that the
//! manifest announces, and unpacked from a file: nothing is kept in memory that a registry sets the size of.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::{OciDescriptor, OciImageManifest};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use serde::Deserialize;
use tokio::io::AsyncWrite;

use super::import::check_layers;
use super::{DOCUMENT_BYTES_MAX, Digest, Document, Image, ImageError, Record, Store, document, now_ms};

/// Most bytes of one compressed layer.
const LAYER_BYTES_MAX: i64 = 32 << 30;
/// How long a registry may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may be silent in the middle of an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Why an image was not pulled. Nothing of it is left but whole layers that others may use.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// Not the name of an image.
    #[error("`{reference}` is not an image name: {reason}")]
    Name {
        /// The text.
        reference: String,
        /// Why not.
        reason: String,
    },
    /// The credentials file is unusable.
    #[error("{}: {reason}", .path.display())]
    Credentials {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The registry does not let us in.
    #[error(
        "{registry} refuses: not authorized to pull {reference}; are its credentials in registries/config.json?"
    )]
    Unauthorized {
        /// Host.
        registry: String,
        /// Image.
        reference: String,
    },
    /// There is no such image.
    #[error("{reference} not found in {registry}")]
    NotFound {
        /// Host.
        registry: String,
        /// Image.
        reference: String,
    },
    /// The registry could not be reached, or answered what it should not.
    #[error("failed to pull {reference} from {registry}")]
    Registry {
        /// Host.
        registry: String,
        /// Image.
        reference: String,
        /// Cause.
        source: Box<OciDistributionError>,
    },
    /// What came is not usable.
    #[error(transparent)]
    Image(#[from] ImageError),
}

impl PullError {
    /// The word that Kubernetes has for it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Name { .. } => "InvalidImageName",
            _ => "ErrImagePull",
        }
    }
}

/// Where credentials and certificates of registries are: `config.json` as docker writes it, `HOST/ca.crt` beside it.
#[derive(Clone, Debug)]
pub struct Registries {
    /// The directory, `registries` below the agent's configuration.
    pub dir: PathBuf,
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
}

#[derive(Deserialize)]
struct DockerAuth {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    /// A bearer token.
    #[serde(default)]
    registrytoken: String,
}

/// A reference in full: docker.io, `library/` and `latest` filled in as docker does.
pub fn normalize(reference: &str) -> Result<String, String> {
    Ok(full(reference)?.whole())
}

/// As oci-client reads it, without its regular expression, which takes 10 MiB that are never given back.
fn full(reference: &str) -> Result<Reference, String> {
    let parts = model::image::parse(reference)?;
    let registry = match parts.registry {
        None | Some("index.docker.io") => "docker.io",
        Some(registry) => registry,
    };
    let repository = match parts.repository {
        name if registry == "docker.io" && !name.contains('/') => format!("library/{name}"),
        name => name.to_owned(),
    };
    let registry = registry.to_owned();
    let owned = |text: &str| text.to_owned();
    Ok(match (parts.tag.map(owned), parts.digest.map(owned)) {
        (Some(tag), Some(digest)) => Reference::with_tag_and_digest(registry, repository, tag, digest),
        (None, Some(digest)) => Reference::with_digest(registry, repository, digest),
        (tag, None) => Reference::with_tag(registry, repository, tag.unwrap_or_else(|| "latest".to_owned())),
    })
}

impl Registries {
    /// Credentials for a host; anonymous when there are none.
    fn auth(&self, registry: &str) -> Result<RegistryAuth, PullError> {
        let path = self.dir.join("config.json");
        let refused = |reason: String| PullError::Credentials {
            path: path.clone(),
            reason,
        };
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(RegistryAuth::Anonymous),
            Err(error) => return Err(refused(error.to_string())),
        };
        let config: DockerConfig =
            serde_json::from_slice(&bytes).map_err(|error| refused(error.to_string()))?;
        let host = |key: &str| {
            let key = key.trim_start_matches("https://").trim_start_matches("http://");
            let key = key.split('/').next().unwrap_or(key).to_owned();
            if key == "index.docker.io" {
                "docker.io".to_owned()
            } else {
                key
            }
        };
        let Some((_, entry)) = config.auths.iter().find(|(key, _)| host(key) == registry) else {
            return Ok(RegistryAuth::Anonymous);
        };
        if !entry.registrytoken.is_empty() {
            return Ok(RegistryAuth::Bearer(entry.registrytoken.clone()));
        }
        if entry.auth.is_empty() {
            return Ok(RegistryAuth::Basic(
                entry.username.clone(),
                entry.password.clone(),
            ));
        }
        let decoded = STANDARD
            .decode(&entry.auth)
            .map_err(|error| refused(format!("auth of {registry}: {error}")))?;
        let decoded =
            String::from_utf8(decoded).map_err(|_| refused(format!("auth of {registry}: not UTF-8")))?;
        match decoded.split_once(':') {
            Some((name, password)) => Ok(RegistryAuth::Basic(name.to_owned(), password.to_owned())),
            None => Err(refused(format!(
                "auth of {registry}: expected USER:PASSWORD in base64"
            ))),
        }
    }

    /// A CA of the host's own, PEM.
    fn ca(&self, registry: &str) -> Result<Option<Vec<u8>>, PullError> {
        let path = self.dir.join(registry).join("ca.crt");
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(PullError::Credentials {
                path,
                reason: error.to_string(),
            }),
        }
    }

    fn client(&self, registry: &str, plain: bool) -> Result<Client, PullError> {
        // Fine when it is installed already: every part of the process uses the same one.
        drop(rustls::crypto::ring::default_provider().install_default());
        let certificates = self.ca(registry)?.into_iter();
        let config = ClientConfig {
            protocol: if plain {
                ClientProtocol::Http
            } else {
                ClientProtocol::Https
            },
            extra_root_certificates: certificates
                .map(|data| Certificate {
                    encoding: CertificateEncoding::Pem,
                    data,
                })
                .collect(),
            platform_resolver: Some(Box::new(oci_client::client::linux_amd64_resolver)),
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            user_agent: concat!("bulkhead/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        Ok(Client::new(config))
    }
}

/// One pull under way.
struct Pull<'a> {
    store: &'a Arc<Store>,
    client: Client,
    reference: Reference,
    auth: RegistryAuth,
}

impl Store {
    /// Pulls an image. Several callers of one reference wait for the first; each layer is fetched once.
    pub async fn pull(
        self: &Arc<Self>,
        reference: &str,
        registries: &Registries,
    ) -> Result<Image, PullError> {
        let parsed = full(reference).map_err(|reason| PullError::Name {
            reference: reference.to_owned(),
            reason,
        })?;
        let name = parsed.whole();
        let turn = {
            let mut pulls = self.pulls.lock().await;
            pulls.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(pulls.entry(name.clone()).or_default())
        };
        let began = now_ms();
        let _turn = turn.lock().await;
        // Whoever held the turn before has just pulled it.
        if let Some(image) = self.resolve(&name)?.filter(|image| image.created_ms >= began) {
            return Ok(image);
        }
        let registry = parsed.registry().to_owned();
        let auth = registries.auth(&registry)?;
        let attempt = |plain: bool| -> Result<Pull, PullError> {
            let client = registries.client(&registry, plain)?;
            Ok(Pull {
                store: self,
                client,
                reference: parsed.clone(),
                auth: auth.clone(),
            })
        };
        match attempt(false)?.run(&name).await {
            // Plain HTTP is for this machine alone, and only where TLS is not spoken.
            Err(PullError::Registry { source, .. }) if is_loopback(&registry) && speaks_no_tls(&*source) => {
                attempt(true)?.run(&name).await
            }
            other => other,
        }
    }
}

impl Pull<'_> {
    async fn run(&self, name: &str) -> Result<Image, PullError> {
        let failed = |error| self.error(error);
        let (manifest, digest) = self
            .client
            .pull_image_manifest(&self.reference, &self.auth)
            .await
            .map_err(failed)?;
        let config = self.document(&manifest.config).await?;
        let parsed: Document = document(&config, || format!("configuration of {name}"))?;
        let diff_ids = parsed.rootfs.diff_ids;
        check_layers(name, diff_ids.len(), manifest.layers.len())?;
        let _hold = self.store.hold(&diff_ids);
        let size_bytes = self.layers(&manifest, &diff_ids).await?;
        let record = Record {
            digest,
            config: Digest::of(&config),
            layers: diff_ids,
            size_bytes,
            created_ms: now_ms(),
        };
        Ok(self.store.add(name, record, &config)?)
    }

    async fn layers(&self, manifest: &OciImageManifest, diff_ids: &[Digest]) -> Result<u64, PullError> {
        let mut total = 0;
        for (descriptor, diff_id) in manifest.layers.iter().zip(diff_ids) {
            let digest =
                Digest::try_from(descriptor.digest.clone()).map_err(|reason| ImageError::Invalid {
                    what: "manifest".to_owned(),
                    reason,
                })?;
            let spool = self.store.spool()?;
            let size = announced(descriptor, LAYER_BYTES_MAX)?;
            if !self.store.layer(diff_id).is_dir() {
                let file = spool
                    .file
                    .try_clone()
                    .map_err(ImageError::io("open", &self.store.dir))?;
                let sink = Capped {
                    file: tokio::fs::File::from_std(file),
                    left: size,
                };
                self.client
                    .pull_blob(&self.reference, descriptor, sink)
                    .await
                    .map_err(|error| self.error(error))?;
            }
            let (store, diff_id) = (Arc::clone(self.store), diff_id.clone());
            let unpacked = tokio::task::spawn_blocking(move || {
                use std::io::Seek;
                let mut file = &spool.file;
                file.rewind().map_err(ImageError::io("read", &store.dir))?;
                store.ensure_layer(file, size, Some(&digest), &diff_id)
            });
            let unpacked = unpacked.await.map_err(|error| {
                let source = io::Error::other(error);
                ImageError::io("unpack a layer in", &self.store.dir)(source)
            })?;
            total += unpacked?;
        }
        Ok(total)
    }

    /// A configuration, checked against its digest.
    async fn document(&self, descriptor: &OciDescriptor) -> Result<Vec<u8>, PullError> {
        let limit = i64::try_from(DOCUMENT_BYTES_MAX).unwrap_or(i64::MAX);
        let mut bytes = CappedVec {
            bytes: Vec::new(),
            left: announced(descriptor, limit)?,
        };
        self.client
            .pull_blob(&self.reference, descriptor, &mut bytes)
            .await
            .map_err(|error| self.error(error))?;
        Ok(bytes.bytes)
    }

    fn error(&self, error: OciDistributionError) -> PullError {
        let registry = self.reference.registry().to_owned();
        let reference = self.reference.whole();
        let has = |wanted: &[OciErrorCode]| match &error {
            OciDistributionError::RegistryError { envelope, .. } => {
                envelope.errors.iter().any(|error| wanted.contains(&error.code))
            }
            _ => false,
        };
        let unauthorized = has(&[OciErrorCode::Unauthorized, OciErrorCode::Denied])
            || matches!(
                error,
                OciDistributionError::UnauthorizedError { .. }
                    | OciDistributionError::AuthenticationFailure(_)
            )
            || matches!(error, OciDistributionError::ServerError { code: 401 | 403, .. });
        if unauthorized {
            return PullError::Unauthorized { registry, reference };
        }
        let missing = has(&[
            OciErrorCode::ManifestUnknown,
            OciErrorCode::NameUnknown,
            OciErrorCode::NotFound,
        ]) || matches!(error, OciDistributionError::ImageManifestNotFoundError(_))
            || matches!(error, OciDistributionError::ServerError { code: 404, .. });
        if missing {
            return PullError::NotFound { registry, reference };
        }
        PullError::Registry {
            registry,
            reference,
            source: Box::new(error),
        }
    }
}

/// The size that a descriptor announces, when it is one that is taken.
fn announced(descriptor: &OciDescriptor, limit: i64) -> Result<u64, ImageError> {
    let refused = || ImageError::Invalid {
        what: format!("blob {}", descriptor.digest),
        reason: format!("its size {} is not between 0 and {limit}", descriptor.size),
    };
    if descriptor.size > limit {
        return Err(refused());
    }
    u64::try_from(descriptor.size).map_err(|_| refused())
}

/// Whether a registry answered a TLS handshake as one that has never heard of TLS: with something else, or not at all. A
/// certificate that is not trusted is no such answer.
fn speaks_no_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return matches!(tls, rustls::Error::InvalidMessage(_));
        }
        // What an I/O error holds is not among its sources: `source` gives what comes after that.
        cause = match error
            .downcast_ref::<io::Error>()
            .map(|error| (error.get_ref(), error.kind()))
        {
            Some((Some(held), _)) => Some(held),
            Some((None, kind)) => {
                return matches!(
                    kind,
                    io::ErrorKind::UnexpectedEof
                        | io::ErrorKind::ConnectionReset
                        | io::ErrorKind::ConnectionAborted
                );
            }
            None => error.source(),
        };
    }
    false
}

fn is_loopback(registry: &str) -> bool {
    let host = match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => registry.split(':').next().unwrap_or_default(),
    };
    host == "localhost"
        || host
            .parse()
            .is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

fn too_much() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the registry sends more than the manifest announces",
    )
}

/// A file that takes so many bytes and no more.
struct Capped {
    file: tokio::fs::File,
    left: u64,
}

impl AsyncWrite for Capped {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.len() as u64 > self.left {
            return Poll::Ready(Err(too_much()));
        }
        let result = Pin::new(&mut self.file).poll_write(context, bytes);
        if let Poll::Ready(Ok(count)) = result {
            self.left -= count as u64;
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.file).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.file).poll_shutdown(context)
    }
}

/// Memory that takes so many bytes and no more.
struct CappedVec {
    bytes: Vec<u8>,
    left: u64,
}

impl AsyncWrite for CappedVec {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.left.checked_sub(bytes.len() as u64) {
            None => Poll::Ready(Err(too_much())),
            Some(left) => {
                self.left = left;
                self.bytes.extend_from_slice(bytes);
                Poll::Ready(Ok(bytes.len()))
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_filled_in_as_docker_does() {
        for (name, full) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("a/b:1", "docker.io/a/b:1"),
            ("127.0.0.1:5000/x", "127.0.0.1:5000/x:latest"),
        ] {
            assert_eq!(normalize(name).unwrap(), full);
        }
        assert!(normalize("A B").is_err() && normalize("").is_err());
    }

    #[test]
    fn names_are_read_as_oci_client_reads_them() {
        let digest = format!("sha256:{}", "0f".repeat(32));
        for name in [
            "busybox",
            "busybox:1.36",
            "library/busybox",
            "index.docker.io/busybox",
            "docker.io/team/app:v1",
            "localhost/x",
            "localhost:5000/x/y/z:latest",
            "registry.example.com/team/app",
            &format!("busybox@{digest}"),
            &format!("registry.example.com:443/team/app:1@{digest}"),
        ] {
            assert_eq!(full(name), Ok(name.parse().unwrap()), "{name}");
        }
    }

    #[test]
    fn a_certificate_that_is_not_trusted_is_no_plain_registry() {
        let wrapped = |error: rustls::Error| io::Error::other(io::Error::other(error));
        let corrupt = rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType);
        assert!(speaks_no_tls(&wrapped(corrupt)));
        assert!(speaks_no_tls(&io::Error::from(io::ErrorKind::UnexpectedEof)));
        let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        assert!(!speaks_no_tls(&wrapped(unknown)));
        assert!(!speaks_no_tls(&io::Error::from(io::ErrorKind::ConnectionRefused)));
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for host in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:5000",
            "127.1.2.3",
            "[::1]:5000",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "localhost.example",
            "10.0.0.1:5000",
            "example.com",
            "[2001:db8::1]:5000",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
