//! Trust in a CA of which only the hash of its key is known.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256};

/// SHA-256 of a certificate's SubjectPublicKeyInfo (RFC 5280, 4.1), as `openssl x509 -pubkey` and join tokens have it.
pub fn spki_sha256(certificate: &CertificateDer<'_>) -> Result<[u8; 32], Error> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone().into_owned())?;
    Ok(hash(&roots))
}

/// The root store keeps the value of the SEQUENCE without its header, which the hash includes.
fn hash(roots: &RootCertStore) -> [u8; 32] {
    let spki = roots.roots[0].subject_public_key_info.as_ref();
    let mut hasher = Sha256::new();
    hasher.update([0x30]);
    match spki.len() {
        // X.690, 8.1.3: lengths below 128 in one byte, longer ones as the count of bytes, then the bytes.
        len @ 0..128 => hasher.update([len as u8]),
        len => {
            let bytes = len.to_be_bytes();
            let significant = &bytes[len.leading_zeros() as usize / 8..];
            hasher.update([0x80 | significant.len() as u8]);
            hasher.update(significant);
        }
    }
    hasher.update(spki);
    hasher.finalize().into()
}

/// Takes as its root the certificate of the presented chain whose key has the pinned hash, then checks the chain, the
/// name and the times as always.
#[derive(Debug)]
pub(super) struct PinnedCa {
    sha256: [u8; 32],
    algorithms: WebPkiSupportedAlgorithms,
}

impl PinnedCa {
    pub(super) fn new(sha256: [u8; 32]) -> Self {
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        Self { sha256, algorithms }
    }
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        for candidate in intermediates {
            let mut roots = RootCertStore::empty();
            if roots.add(candidate.clone().into_owned()).is_err() || hash(&roots) != self.sha256 {
                continue;
            }
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|cause| Error::General(cause.to_string()))?;
            return verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        }
        Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)) // another cluster, or someone in between
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::pem::PemObject;

    /// `openssl x509 -in test_ca.pem -pubkey -noout | openssl pkey -pubin -outform DER | sha256sum`
    const HASH: &str = "1b53388046ad541834aceaaad62f327e0afbf9f3a9599d32c174ee77f2ae4fa6";

    #[test]
    fn hash_is_that_of_openssl() {
        let ca = CertificateDer::from_pem_slice(include_bytes!("test_ca.pem")).unwrap();
        assert_eq!(hex::encode(spki_sha256(&ca).unwrap()), HASH);
    }
}
