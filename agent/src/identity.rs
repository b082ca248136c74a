//! Who this node is to the cluster: its name, key and certificate, the CA that it trusts, and where controllers are.
//!
//! All of it is one file, so that key and certificate always belong together.

use std::io;
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, KeyPair};
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::durable;

/// The file in the configuration directory.
pub(crate) const FILE: &str = "node.json";
/// It holds the node's key.
const MODE: u32 = 0o600;

/// Why there is no usable identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// `join` was never run, or with another directory.
    #[error(
        "{} is not there: this machine has not joined a cluster; run `bulkhead-agent join` with the same --config-dir",
        .path.display()
    )]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file failed.
    #[error("failed to {what} {}", .path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// It is not what `join` wrote.
    #[error("{} is damaged: {reason}; join again", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// No key could be made.
    #[error("failed to make a key")]
    Key(#[from] rcgen::Error),
}

/// What `join` got.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Identity {
    /// The node's name.
    pub name: String,
    /// Which cluster.
    pub cluster_id: String,
    /// HOST:PORT of every controller.
    pub endpoints: Vec<String>,
    /// PEM of the CA.
    pub ca: String,
    /// PEM of the certificate, followed by the CA's.
    pub certificate: String,
    /// PEM of its key.
    pub key: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("name", &self.name)
            .field("endpoints", &self.endpoints)
            .finish_non_exhaustive() // the key stays out of logs
    }
}

/// When a certificate is good, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) begin: i64,
    pub(crate) end: i64,
}

impl Validity {
    /// When it is renewed: after half of its time.
    pub(crate) fn half(self) -> i64 {
        self.begin + (self.end - self.begin) / 2
    }
}

impl Identity {
    /// Reads it from the configuration directory.
    pub fn load(config_dir: &Path) -> Result<Self, IdentityError> {
        let path = config_dir.join(FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(IdentityError::Missing { path });
            }
            Err(source) => {
                let what = "read";
                return Err(IdentityError::Io { what, path, source });
            }
        };
        serde_json::from_slice(&bytes).map_err(|error| IdentityError::Damaged {
            path,
            reason: error.to_string(),
        })
    }

    /// Puts it there.
    pub fn save(&self, config_dir: &Path) -> Result<(), IdentityError> {
        let path = config_dir.join(FILE);
        let bytes = serde_json::to_vec_pretty(self).map_err(|error| IdentityError::Damaged {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        durable::replace(&path, &bytes, MODE).map_err(|source| IdentityError::Io {
            what: "write",
            path,
            source,
        })
    }

    /// When the certificate is good.
    pub(crate) fn validity(&self) -> Result<Validity, String> {
        let der = rpc::tls::certificates(&self.certificate, "node's certificate");
        let der = der.map_err(|error| error.to_string())?;
        let first = der.first().ok_or("there is no certificate")?;
        let (_, certificate) = X509Certificate::from_der(first).map_err(|error| error.to_string())?;
        let validity = certificate.validity();
        Ok(Validity {
            begin: validity.not_before.timestamp(),
            end: validity.not_after.timestamp(),
        })
    }
}

/// A new key, and the request for a certificate of it; the CA takes nothing but the key from it.
pub(crate) struct Request {
    pub(crate) key: String,
    pub(crate) csr: Vec<u8>,
}

impl Request {
    pub(crate) fn new() -> Result<Self, IdentityError> {
        let key = KeyPair::generate()?; // ECDSA P-256
        let request = CertificateParams::default().serialize_request(&key)?;
        Ok(Self {
            key: key.serialize_pem(),
            csr: request.der().to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::default().self_signed(&key).unwrap();
        Identity {
            name: "n1".to_owned(),
            cluster_id: "c".to_owned(),
            endpoints: vec!["10.0.0.1:7443".to_owned()],
            ca: certificate.pem(),
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        }
    }

    #[test]
    fn what_was_saved_is_loaded_and_a_missing_one_says_what_to_do() {
        let top = tempfile::tempdir().unwrap();
        let missing = Identity::load(top.path()).unwrap_err().to_string();
        assert!(missing.contains("bulkhead-agent join"), "{missing}");
        let identity = identity();
        identity.save(top.path()).unwrap();
        assert_eq!(Identity::load(top.path()).unwrap(), identity);
        std::fs::write(top.path().join(FILE), "{").unwrap();
        assert!(matches!(
            Identity::load(top.path()),
            Err(IdentityError::Damaged { .. })
        ));
    }

    #[test]
    fn a_certificate_is_renewed_in_the_middle_of_its_time() {
        let validity = identity().validity().unwrap();
        assert!(validity.begin < validity.half() && validity.half() < validity.end);
        let mut damaged = identity();
        damaged.certificate = "nothing".to_owned();
        assert!(damaged.validity().is_err());
    }

    #[test]
    fn the_key_is_not_shown() {
        assert!(!format!("{:?}", identity()).contains("PRIVATE"));
    }
}
