//! The cluster's own certificate authority.

use std::net::IpAddr;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls_pki_types::CertificateSigningRequestDer;

use super::account_token::AccountKey;
use super::identity::{ADMINS, GROUP_SEPARATOR, MEMBERS, NODES, member_server_name};
use crate::raft::types::MemberId;

/// Clocks of nodes may be behind by this much.
pub const BACKDATE: Duration = Duration::from_secs(5 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Of nodes and members, which renew at half of it.
pub const SHORT_LIFE: Duration = DAY;
/// Of the first administrator, who has nobody to renew for them.
pub const ADMIN_LIFE: Duration = Duration::from_secs(365 * DAY.as_secs());
/// Of the CA: no rotation of roots yet.
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * DAY.as_secs());
/// Largest certificate signing request that is looked at.
pub const CSR_BYTES_MAX: usize = 8 << 10;
/// Longest name in a certificate: that of a DNS subdomain.
const NAME_BYTES_MAX: usize = 253;

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The certificate or the key of the CA can't be read.
    #[error("failed to read the CA's {what}")]
    Load {
        /// Which.
        what: &'static str,
        /// Cause.
        source: rcgen::Error,
    },
    /// The CA's certificate can't be read.
    #[error("failed to read the CA's certificate")]
    Certificate(#[source] rpc::tls::TlsError),
    /// Key and certificate are not of one CA.
    #[error("the CA's key does not belong to its certificate")]
    Mismatch,
    /// The request is damaged or not signed by its own key.
    #[error("the certificate signing request is not valid")]
    Request(#[source] rcgen::Error),
    /// Larger than any honest request.
    #[error("the certificate signing request has {bytes} bytes, more than {CSR_BYTES_MAX}")]
    RequestTooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Not a name that may stand in a certificate.
    #[error("`{name}` can't be a name here: expected lower-case letters, digits, `-` and `.`")]
    Name {
        /// The text.
        name: String,
    },
    /// Not a name of a user or a group.
    #[error(
        "`{name}` can't be the name of a user or group: expected up to {NAME_BYTES_MAX} letters, digits and -._@:+/"
    )]
    UserName {
        /// The text.
        name: String,
    },
    /// It means something to the cluster itself.
    #[error("`{name}` is a name of the cluster's own; choose another")]
    Reserved {
        /// The text.
        name: String,
    },
    /// Signing failed.
    #[error("failed to sign the certificate")]
    Sign(#[source] rcgen::Error),
}

/// Who a certificate is for. The role decides its organization and what it may be used for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A controller, reached at these hosts.
    Member {
        /// Its number.
        id: MemberId,
        /// Names or addresses of hosts, for people's own tools; ours look at the fixed names only.
        hosts: Vec<String>,
    },
    /// A node's agent.
    Node {
        /// Its name.
        name: String,
    },
    /// A person with every right.
    Admin {
        /// Their name.
        name: String,
    },
    /// A person or a program, with the rights that roles give.
    User {
        /// Their name.
        name: String,
        /// Their groups.
        groups: Vec<String>,
        /// How long the certificate is good.
        life: Duration,
    },
}

/// A certificate and its key, as PEM.
#[derive(Clone)]
pub struct Issued {
    /// The certificate, followed by the CA's.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

/// Certificate and key of the CA.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    key: String,
    sha256: [u8; 32],
    account_key: AccountKey,
}

impl Authority {
    /// Makes a new CA for a new cluster.
    pub fn generate(cluster_id: &str, now: u64) -> Result<Self, CaError> {
        let key = KeyPair::generate().map_err(CaError::Sign)?; // ECDSA P-256
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("bulkhead {cluster_id}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_life(&mut params, now, CA_LIFE);
        let certificate = params.self_signed(&key).map_err(CaError::Sign)?;
        Self::load(&certificate.pem(), &key.serialize_pem())
    }

    /// Reads a CA from PEM.
    pub fn load(certificate: &str, key: &str) -> Result<Self, CaError> {
        let pair = KeyPair::from_pem(key).map_err(|source| CaError::Load { what: "key", source })?;
        let der = rpc::tls::certificates(certificate, "CA certificate")
            .map_err(CaError::Certificate)?
            .remove(0);
        let sha256 = rpc::tls::spki_sha256(&der)
            .map_err(|source| rpc::tls::TlsError::Unusable {
                what: "CA certificate",
                source,
            })
            .map_err(CaError::Certificate)?;
        if sha256 != spki_of(&pair) {
            return Err(CaError::Mismatch);
        }
        let account_key = AccountKey::derive(&pair.serialize_der());
        let issuer = Issuer::from_ca_cert_pem(certificate, pair).map_err(|source| CaError::Load {
            what: "certificate",
            source,
        })?;
        Ok(Self {
            issuer,
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            sha256,
            account_key,
        })
    }

    /// Signs and verifies the tokens of service accounts.
    pub(crate) fn account_key(&self) -> &AccountKey {
        &self.account_key
    }

    /// The CA's certificate, PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// The CA's key, PEM: secret.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What join tokens pin: SHA-256 of the SubjectPublicKeyInfo.
    pub fn sha256(&self) -> [u8; 32] {
        self.sha256
    }

    /// A new key with its certificate.
    pub fn issue(&self, subject: &Subject, now: u64) -> Result<Issued, CaError> {
        let key = KeyPair::generate().map_err(CaError::Sign)?;
        let certificate = params_for(subject, now)?
            .signed_by(&key, &self.issuer)
            .map_err(CaError::Sign)?;
        Ok(Issued {
            certificate: self.chain(&certificate),
            key: key.serialize_pem(),
        })
    }

    /// A certificate for the key of a signing request, of which nothing else is taken. PEM, with the CA's behind it.
    pub fn sign(&self, request: &[u8], subject: &Subject, now: u64) -> Result<String, CaError> {
        if request.len() > CSR_BYTES_MAX {
            return Err(CaError::RequestTooLarge { bytes: request.len() });
        }
        let request = CertificateSigningRequestDer::from(request);
        let mut request = CertificateSigningRequestParams::from_der(&request).map_err(CaError::Request)?;
        request.params = params_for(subject, now)?;
        let certificate = request.signed_by(&self.issuer).map_err(CaError::Sign)?;
        Ok(self.chain(&certificate))
    }

    /// Servers send the CA's certificate too: who knows only its hash must see it.
    fn chain(&self, certificate: &rcgen::Certificate) -> String {
        format!("{}{}", certificate.pem(), self.certificate)
    }
}

fn spki_of(pair: &KeyPair) -> [u8; 32] {
    use rcgen::PublicKeyData;
    use sha2::{Digest, Sha256};
    Sha256::digest(pair.subject_public_key_info()).into()
}

fn set_life(params: &mut CertificateParams, now: u64, life: Duration) {
    let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(now);
    params.not_before = now - BACKDATE;
    params.not_after = now + life;
}

fn params_for(subject: &Subject, now: u64) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).expect("the kernel has random bytes once it has booted");
    serial[0] &= 0x7f; // RFC 5280, 4.1.2.2: positive
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    let (organizations, common, life) = match subject {
        Subject::Member { id, hosts } => {
            params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ServerAuth);
            let own = [
                rpc::tls::CONTROLLER_NAME.to_owned(),
                member_server_name(*id),
                "localhost".to_owned(),
            ];
            for name in own.iter().chain(hosts) {
                params.subject_alt_names.push(alternative_name(name)?);
            }
            for loopback in ["127.0.0.1", "::1"] {
                params.subject_alt_names.push(alternative_name(loopback)?);
            }
            (MEMBERS.to_owned(), format!("system:member:{id}"), SHORT_LIFE)
        }
        Subject::Node { name } => {
            let common = format!("system:node:{}", checked(name)?);
            (NODES.to_owned(), common, SHORT_LIFE)
        }
        Subject::Admin { name } => (ADMINS.to_owned(), checked(name)?.to_owned(), ADMIN_LIFE),
        Subject::User { name, groups, life } => {
            for text in groups.iter().chain([name]) {
                user_name(text)?;
            }
            // These make a node or a controller of whoever bears them.
            if let Some(taken) = groups
                .iter()
                .find(|group| [MEMBERS, NODES].contains(&group.as_str()))
            {
                return Err(CaError::Reserved { name: taken.clone() });
            }
            let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
            let separator = GROUP_SEPARATOR.to_string();
            (groups.join(&separator), name.clone(), *life)
        }
    };
    if !organizations.is_empty() {
        params
            .distinguished_name
            .push(DnType::OrganizationName, organizations);
    }
    params.distinguished_name.push(DnType::CommonName, common);
    set_life(&mut params, now, life);
    Ok(params)
}

/// Of a user or a group: an address of mail, say. What begins with `system:` is the cluster's own.
pub(crate) fn user_name(name: &str) -> Result<(), CaError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._@:+/".contains(&b);
    if name.starts_with("system:") {
        return Err(CaError::Reserved {
            name: name.chars().take(NAME_BYTES_MAX).collect(),
        });
    }
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(plain) {
        return Err(CaError::UserName {
            name: name.chars().take(NAME_BYTES_MAX).collect(),
        });
    }
    Ok(())
}

/// Names become part of a certificate: nothing that could be read as more than a name.
fn checked(name: &str) -> Result<&str, CaError> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    let edges = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let good = name.len() <= NAME_BYTES_MAX
        && name.bytes().all(plain)
        && edges(name.bytes().next())
        && edges(name.bytes().last());
    if good {
        Ok(name)
    } else {
        Err(CaError::Name {
            name: name.chars().take(NAME_BYTES_MAX).collect(),
        })
    }
}

fn alternative_name(host: &str) -> Result<SanType, CaError> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let name = host.to_ascii_lowercase();
    let name = checked(&name)?.to_owned();
    Ok(SanType::DnsName(name.try_into().map_err(CaError::Sign)?))
}
