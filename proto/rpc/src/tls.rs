//! Connections of clients: TLS 1.3, the cluster's own CA, our own certificate; several addresses with failover.
//!
//! A controller is recognised by the name [`CONTROLLER_NAME`] in its certificate, which the CA gives to members only,
//! whatever the address: so clusters move between addresses, tunnels and test networks without new certificates.

mod connect;
mod pin;

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tonic::transport::{Channel, Endpoint};

pub use connect::ConnectError;
pub use pin::spki_sha256;

/// The name in every member's server certificate.
pub const CONTROLLER_NAME: &str = "controller.bulkhead";
/// How long one address may take to accept, TLS included, before the next one is tried.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// An idle connection is probed this often, so that a host that vanished is noticed and the next address tried.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// And given up when a probe is not answered in this time.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// Most addresses of one cluster that are tried; more are refused.
pub const ENDPOINTS_MAX: usize = 16;

/// Why no channel could be set up. Network failures come later, from the calls.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No address, or too many.
    #[error("expected 1 to {ENDPOINTS_MAX} controller addresses, found {count}")]
    Endpoints {
        /// How many were given.
        count: usize,
    },
    /// Not HOST:PORT.
    #[error("`{endpoint}` is not an address: expected HOST:PORT")]
    Endpoint {
        /// The text.
        endpoint: String,
    },
    /// No certificate or key could be read from PEM.
    #[error("failed to read the {what} from PEM")]
    Pem {
        /// Which file or field.
        what: &'static str,
        /// Cause.
        source: rustls::pki_types::pem::Error,
    },
    /// There was PEM but nothing of the kind in it.
    #[error("no {what} in the PEM text")]
    Empty {
        /// Which file or field.
        what: &'static str,
    },
    /// Certificates or key were refused by the TLS library.
    #[error("the {what} is not usable")]
    Unusable {
        /// Which.
        what: &'static str,
        /// Cause.
        source: rustls::Error,
    },
}

/// The CA's certificates as roots of trust.
pub fn roots(ca_pem: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca_pem, "CA certificate")? {
        roots.add(certificate).map_err(|source| TlsError::Unusable {
            what: "CA certificate",
            source,
        })?;
    }
    Ok(roots)
}

/// Certificates of a PEM text, in order, at least one.
pub fn certificates(pem: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| TlsError::Pem { what, source })?;
    if certificates.is_empty() {
        return Err(TlsError::Empty { what });
    }
    Ok(certificates)
}

/// The private key of a PEM text.
pub fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|source| TlsError::Pem {
        what: "private key",
        source,
    })
}

/// A TLS configuration that trusts this CA alone, with a certificate of our own if given as (certificate, key) in PEM.
pub fn client_config(ca_pem: &str, identity: Option<(&str, &str)>) -> Result<ClientConfig, TlsError> {
    let builder = builder().with_root_certificates(roots(ca_pem)?);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => builder
            .with_client_auth_cert(
                certificates(certificate, "client certificate")?,
                private_key(key)?,
            )
            .map_err(|source| TlsError::Unusable {
                what: "client certificate",
                source,
            })?,
    };
    finish(&mut config);
    Ok(config)
}

/// A channel to whichever of the controllers at `endpoints` (HOST:PORT) answers, reconnecting by itself. Connects at the
/// first call. Build a new one when the certificate is renewed.
pub fn channel(
    endpoints: &[String],
    ca_pem: &str,
    identity: Option<(&str, &str)>,
) -> Result<Channel, TlsError> {
    let config = client_config(ca_pem, identity)?;
    channel_with(endpoints, Arc::new(config), CONTROLLER_NAME)
}

/// A channel to one controller whose CA is known only by the SHA-256 of its SubjectPublicKeyInfo, as in a join token.
pub fn channel_pinned(endpoint: &str, ca_spki_sha256: [u8; 32]) -> Result<Channel, TlsError> {
    let mut config = builder()
        .dangerous() // the verifier below checks the chain in full, from a root that the pin decides
        .with_custom_certificate_verifier(Arc::new(pin::PinnedCa::new(ca_spki_sha256)))
        .with_no_client_auth();
    finish(&mut config);
    channel_with(&[endpoint.to_owned()], Arc::new(config), CONTROLLER_NAME)
}

/// A channel with a TLS configuration of the caller's; the server must have `name` in its certificate.
pub fn channel_with(
    endpoints: &[String],
    config: Arc<ClientConfig>,
    name: &str,
) -> Result<Channel, TlsError> {
    if endpoints.is_empty() || endpoints.len() > ENDPOINTS_MAX {
        return Err(TlsError::Endpoints {
            count: endpoints.len(),
        });
    }
    let endpoints = endpoints
        .iter()
        .map(|text| address(text))
        .collect::<Result<Vec<_>, _>>()?;
    let name = ServerName::try_from(name.to_owned()).map_err(|_| TlsError::Endpoint {
        endpoint: name.to_owned(),
    })?;
    let connector = connect::Connector::new(endpoints, config, name);
    // The scheme is http because the connector speaks TLS itself; the authority is only shown.
    Ok(Endpoint::from_static("http://controller.bulkhead")
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(connector))
}

/// TLS 1.3 only: every peer is of this project.
fn builder() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the ring provider has TLS 1.3")
}

fn finish(config: &mut ClientConfig) {
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = rustls::client::Resumption::disabled(); // a resumed session keeps the identity of the old one
}

/// HOST:PORT, with or without `https://`.
fn address(text: &str) -> Result<String, TlsError> {
    let refused = || TlsError::Endpoint {
        endpoint: text.to_owned(),
    };
    let address = text.trim().trim_start_matches("https://").trim_end_matches('/');
    let (host, port) = address.rsplit_once(':').ok_or_else(refused)?;
    port.parse::<u16>().map_err(|_| refused())?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    if host.is_empty() || host.contains(['/', '@', ' ']) || (host.contains(':') && !bracketed) {
        return Err(refused());
    }
    Ok(address.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_host_and_port() {
        for good in [
            "10.0.0.1:7443",
            "https://c1.example:7443/",
            "[::1]:7443",
            "localhost:1",
        ] {
            assert!(address(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            ":7443",
            "c1",
            "c1:",
            "c1:99999",
            "::1:7443",
            "http://c1:7443",
            "a b:1",
            "u@h:1",
        ] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn text_without_certificates_is_refused() {
        assert!(matches!(
            channel(&["c:1".into()], "", None),
            Err(TlsError::Empty { .. })
        ));
        assert!(matches!(
            channel(&["c:1".into()], "-----BEGIN CERTIFICATE-----\n", None),
            Err(TlsError::Pem { .. })
        ));
        assert!(matches!(
            channel_pinned("c", [0; 32]),
            Err(TlsError::Endpoint { .. })
        ));
        let config = Arc::new(client_config(CA, None).unwrap());
        assert!(matches!(
            channel_with(&[], config, "x"),
            Err(TlsError::Endpoints { count: 0 })
        ));
    }

    const CA: &str = include_str!("tls/test_ca.pem");
}
