//! Our own certificate, replaced while connections are open: new ones show the new one.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rpc::tls::TlsError;
use rustls::client::ResolvesClientCert;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SignatureScheme};

use super::ca::{BACKDATE, CaError, Issued, SHORT_LIFE};

/// The clock of the wall is looked at this often: it may be set, and sleep does not count the time of a suspended machine.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// Why the certificate that is shown is still the old one.
#[derive(Debug, thiserror::Error)]
pub(super) enum RenewError {
    #[error(transparent)]
    Issue(#[from] CaError),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// After half of its life, and where the clock was set back to before it begins.
fn is_due(made: u64, now: u64) -> bool {
    now >= made + SHORT_LIFE.as_secs() / 2 || now + BACKDATE.as_secs() < made
}

/// One look at the clock after the other.
pub(super) struct Keeper<I> {
    pub(super) live: LiveCertificate,
    pub(super) issue: I,
    /// When the certificate that is shown was made.
    pub(super) made: u64,
}

impl<I: Fn(u64) -> Result<Issued, CaError>> Keeper<I> {
    /// Whether a new one was due, and is shown from now on.
    pub(super) fn look(&mut self, now: u64) -> Result<bool, RenewError> {
        if !is_due(self.made, now) {
            return Ok(false);
        }
        self.live.replace(&(self.issue)(now)?)?;
        self.made = now;
        Ok(true)
    }
}

/// A certificate with its key that can be exchanged.
#[derive(Debug, Clone)]
pub struct LiveCertificate(pub(super) Arc<ArcSwap<CertifiedKey>>);

/// Whether a listener lets callers in who show no certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// Of members: everyone shows one.
    Required,
    /// Of the API: who has none yet may join.
    Optional,
}

fn certified(issued: &Issued) -> Result<CertifiedKey, TlsError> {
    let chain = rpc::tls::certificates(&issued.certificate, "certificate")?;
    let key = rpc::tls::private_key(&issued.key)?;
    let key = any_supported_type(&key).map_err(|source| TlsError::Unusable {
        what: "private key",
        source,
    })?;
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match().map_err(|source| TlsError::Unusable {
        what: "certificate",
        source,
    })?;
    Ok(certified)
}

impl LiveCertificate {
    /// Begins with this one.
    pub fn new(issued: &Issued) -> Result<Self, TlsError> {
        Ok(Self(Arc::new(ArcSwap::from_pointee(certified(issued)?))))
    }

    /// From now on this one is shown.
    pub fn replace(&self, issued: &Issued) -> Result<(), TlsError> {
        self.0.store(Arc::new(certified(issued)?));
        Ok(())
    }

    /// Replaces it in time by what `issue` makes, until the task is dropped. The first one was made just now.
    pub async fn keep(self, issue: impl Fn(u64) -> Result<Issued, CaError>, clock: impl Fn() -> u64) {
        let made = clock();
        let mut keeper = Keeper {
            live: self,
            issue,
            made,
        };
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            match keeper.look(clock()) {
                Ok(true) => tracing::info!("the own certificate is renewed"),
                Ok(false) => {}
                Err(cause) => tracing::error!(%cause, "failed to renew the own certificate; trying again"),
            }
        }
    }

    /// For a listener that shows this certificate and trusts callers of this CA.
    pub fn server_config(&self, ca: &str, client_auth: ClientAuth) -> Result<ServerConfig, TlsError> {
        let unusable = |source| TlsError::Unusable {
            what: "CA certificate",
            source,
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots: Arc<RootCertStore> = Arc::new(rpc::tls::roots(ca)?);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone());
        let verifier = match client_auth {
            ClientAuth::Required => verifier,
            ClientAuth::Optional => verifier.allow_unauthenticated(),
        };
        let verifier = verifier
            .build()
            .map_err(|cause| unusable(rustls::Error::General(cause.to_string())))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(self.clone()));
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.send_tls13_tickets = 0; // a resumed session would keep the identity of an old certificate
        Ok(config)
    }

    /// For connections to members that show this certificate.
    pub fn client_config(&self, ca: &str) -> Result<ClientConfig, TlsError> {
        let mut config = rpc::tls::client_config(ca, None)?;
        config.client_auth_cert_resolver = Arc::new(self.clone());
        Ok(config)
    }
}

impl ResolvesServerCert for LiveCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl ResolvesClientCert for LiveCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
