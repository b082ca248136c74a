//! What a member keeps beside its log, and how it comes to be: `init` begins a cluster, `join` enters one.
//!
//! | file                    | what                                                          |
//! |-------------------------|---------------------------------------------------------------|
//! | `CONFIG/ca.pem`         | the CA's certificate                                          |
//! | `CONFIG/ca.key`         | its key: whoever has it is the cluster                        |
//! | `CONFIG/storage.keys`   | what log and snapshots are sealed with, see `storage_keys.rs` |
//! | `CONFIG/admin.yaml`     | client configuration of the first administrator (`init` only) |
//! | `DATA/member.json`      | who this member is; written last, so that a crash starts over |
//! | `DATA/log`, `snapshots` | the Raft log and snapshot                                     |
//! | `DATA/audit`            | the audit log, see `audit.rs`                                 |

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proto::state::v1::{ClusterSettings, Command, command, command_reply};
use rpc::tls::TlsError;
use rpc::token::{JoinToken, TokenError};
use rpc::v1::JoinMemberRequest;
use rpc::v1::join_client::JoinClient;
use serde::{Deserialize, Serialize};

use crate::audit::Audit;
use crate::raft::{Member, MemberId, Node, NodeConfig, ProposeError, StartError};
use crate::security::ca::{Authority, CaError, Subject};
use crate::security::live::LiveCertificate;
use crate::security::{new_uuid, unix_now};
use crate::storage_keys::StorageKeysError;
use crate::store::Disk;
use crate::store::os::OsDir;
use seal::Keys;

/// Nothing that we read here is larger.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Prefix length of a node's share of the pod network.
const NODE_PREFIX: u32 = 24;

/// Why there is no member.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// `init` or `join` was run before.
    #[error("{} exists: this controller is already set up; empty the data directory to begin anew", .path.display())]
    Exists {
        /// The file that says so.
        path: PathBuf,
    },
    /// Nothing is written over.
    #[error("{} exists; name another file", .path.display())]
    InTheWay {
        /// The file.
        path: PathBuf,
    },
    /// An `init` that was cut off, or a lost `member.json`: only a person can tell.
    #[error(
        "{} exists, but no member.json beside it: if an earlier `init` was cut off, empty the data directory and run \
         it again",
        .path.display()
    )]
    Leftover {
        /// The log that nobody owns.
        path: PathBuf,
    },
    /// Neither was run.
    #[error("{} does not exist: run `bulkhead-controller init` or `join` first", .path.display())]
    Missing {
        /// The file that should be there.
        path: PathBuf,
    },
    /// The operating system failed.
    #[error("failed to {what} {}", .path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Not the JSON that we wrote.
    #[error("{} is damaged", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: serde_json::Error,
    },
    /// The CA.
    #[error("the cluster's CA can't be used")]
    Ca(#[from] CaError),
    /// What this member seals its files with.
    #[error("the storage keys can't be used")]
    StorageKeys(#[from] StorageKeysError),
    /// TLS.
    #[error("TLS can't be set up")]
    Tls(#[from] TlsError),
    /// Consensus.
    #[error("the first member can't start")]
    Start(#[from] StartError),
    /// Its first write.
    #[error("the new cluster takes no writes")]
    Propose(#[from] ProposeError),
    /// Bad networks, for example.
    #[error("the settings are refused: {0}")]
    Settings(String),
    /// The token.
    #[error("the join token can't be read")]
    Token(#[from] TokenError),
    /// The cluster said no, or could not be reached.
    #[error("{server} did not let this controller join: {message}")]
    Refused {
        /// Whom we asked.
        server: String,
        /// Its answer.
        message: String,
    },
    /// The answer's CA is not that of the token.
    #[error("{server} answered with another CA than the token's")]
    OtherCa {
        /// Whom we asked.
        server: String,
    },
}

/// Directories of a member.
#[derive(Clone, Debug)]
pub struct Places {
    /// `--data-dir`.
    pub data: PathBuf,
    /// `--config-dir`.
    pub config: PathBuf,
}

/// Who this member is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster's id.
    pub cluster_id: String,
    /// Its own number.
    pub id: MemberId,
    /// Its name.
    pub name: String,
    /// HOST:PORT of its API, as others reach it.
    pub address: String,
    /// HOST:PORT of its members' port.
    pub peer_address: String,
    /// Its log had entries once: one that is empty now was lost, and such a member could vote twice.
    pub began: bool,
}

/// What a new cluster is to be.
#[derive(Clone, Debug)]
pub struct NewCluster {
    /// Name of the first member.
    pub name: String,
    /// HOST:PORT of its API.
    pub address: String,
    /// HOST:PORT of its members' port.
    pub peer_address: String,
    /// Addresses of pods.
    pub pod_cidr: String,
    /// Addresses of services.
    pub service_cidr: String,
    /// DNS domain of services and pods.
    pub cluster_domain: String,
}

impl Places {
    fn member_file(&self) -> PathBuf {
        self.data.join("member.json")
    }

    /// Where `init` leaves the first administrator's configuration.
    pub fn admin_file(&self) -> PathBuf {
        self.config.join("admin.yaml")
    }

    /// Directories of log and snapshots, locked.
    pub fn open_store(&self) -> Result<(Disk, Disk), SetupError> {
        let open = |name: &str| {
            let path = self.data.join(name);
            let opened = OsDir::open(&path).map(Disk::from);
            opened.map_err(|source| SetupError::Io {
                what: "open",
                path,
                source,
            })
        };
        Ok((open("log")?, open("snapshots")?))
    }

    /// The audit log of the member of this name.
    pub(crate) fn open_audit(&self, member: &str) -> Result<Audit, SetupError> {
        let path = self.data.join("audit");
        Audit::open(&path, member).map_err(|source| SetupError::Io {
            what: "open",
            path,
            source,
        })
    }

    /// Reads who this member is.
    pub fn identity(&self) -> Result<Identity, SetupError> {
        let path = self.member_file();
        let text = read(&path)?;
        serde_json::from_str(&text).map_err(|source| SetupError::Damaged { path, source })
    }

    /// Writes who this member is.
    pub fn write_identity(&self, identity: &Identity) -> Result<(), SetupError> {
        let path = self.member_file();
        let bytes = serde_json::to_vec_pretty(identity);
        let bytes = bytes.map_err(|source| SetupError::Damaged {
            path: path.clone(),
            source,
        })?;
        write(&path, &bytes)
    }

    /// Reads the CA with its key.
    pub fn authority(&self) -> Result<Authority, SetupError> {
        let certificate = read(&self.config.join("ca.pem"))?;
        Ok(Authority::load(
            &certificate,
            &read(&self.config.join("ca.key"))?,
        )?)
    }

    fn write_authority(&self, authority: &Authority) -> Result<(), SetupError> {
        write(&self.config.join("ca.key"), authority.key().as_bytes())?;
        write(&self.config.join("ca.pem"), authority.certificate().as_bytes())
    }

    /// Makes the directories; refuses where a member already is.
    fn begin(&self) -> Result<(), SetupError> {
        for path in [&self.data, &self.config] {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
            made.map_err(|source| SetupError::Io {
                what: "create",
                path: path.clone(),
                source,
            })?;
        }
        let path = self.member_file();
        if path.exists() {
            return Err(SetupError::Exists { path });
        }
        match self.stores().into_iter().find(|path| path.exists()) {
            Some(path) => Err(SetupError::Leftover { path }),
            None => Ok(()),
        }
    }

    pub(crate) fn stores(&self) -> [PathBuf; 2] {
        [self.data.join("log"), self.data.join("snapshots")]
    }

    /// Takes back what a failed `init` began.
    fn undo(&self) {
        for path in self.stores() {
            if let Err(cause) = fs::remove_dir_all(&path)
                && cause.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(error = %cause, path = %path.display(), "failed to remove what was begun");
            }
        }
    }
}

pub(crate) fn read(path: &Path) -> Result<String, SetupError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => SetupError::Missing {
            path: path.to_owned(),
        },
        _ => SetupError::Io {
            what: "read",
            path: path.to_owned(),
            source,
        },
    };
    let len = fs::metadata(path).map_err(failed)?.len();
    if len > FILE_BYTES_MAX {
        return Err(failed(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is too large",
        )));
    }
    fs::read_to_string(path).map_err(failed)
}

/// Whole or not at all, for its owner only.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), SetupError> {
    let tmp = path.with_added_extension("tmp");
    let directory = path.parent().expect("files of ours are in directories of ours");
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&tmp)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&tmp, path))
        .and_then(|()| fs::File::open(directory)?.sync_all());
    written.map_err(|source| SetupError::Io {
        what: "write",
        path: path.to_owned(),
        source,
    })
}

/// Host of HOST:PORT, for the certificate.
pub fn host_of(address: &str) -> String {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']').to_owned()
}

/// The certificate of a member, made by itself: it holds the CA's key.
pub fn member_subject(identity: &Identity) -> Subject {
    let mut hosts = vec![host_of(&identity.address), host_of(&identity.peer_address)];
    hosts.dedup();
    Subject::Member {
        id: identity.id,
        hosts,
    }
}

/// Begins a cluster of one: CA, log, settings, administrator. Gives the file with the client configuration.
pub async fn init(places: &Places, new: &NewCluster) -> Result<PathBuf, SetupError> {
    places.begin()?;
    let done = begin_cluster(places, new).await;
    if done.is_err() {
        places.undo();
    }
    done
}

async fn begin_cluster(places: &Places, new: &NewCluster) -> Result<PathBuf, SetupError> {
    let cluster_id = new_uuid();
    let authority = Authority::generate(&cluster_id, unix_now())?;
    let identity = Identity {
        cluster_id: cluster_id.clone(),
        id: 1,
        name: new.name.clone(),
        address: new.address.clone(),
        peer_address: new.peer_address.clone(),
        began: true,
    };
    let live = LiveCertificate::new(&authority.issue(&member_subject(&identity), unix_now())?)?;
    places.write_authority(&authority)?;
    let keys = places.storage_keys()?;

    let (log, snapshots) = places.open_store()?;
    let tls = live.client_config(authority.certificate())?;
    let node = Node::start(NodeConfig::new(identity.id, keys), log, snapshots, tls).await?;
    let member = Member {
        name: identity.name.clone(),
        address: identity.address.clone(),
        peer_address: identity.peer_address.clone(),
    };
    node.initialize(member).await?;
    let settings = ClusterSettings {
        cluster_id,
        pod_cidr: new.pod_cidr.clone(),
        service_cidr: new.service_cidr.clone(),
        cluster_domain: new.cluster_domain.clone(),
        node_prefix: NODE_PREFIX,
    };
    let command = Command {
        request_id: new_uuid(),
        time: Some(pbjson_types::Timestamp {
            seconds: unix_now() as i64,
            nanos: 0,
        }),
        kind: Some(command::Kind::Settings(settings)),
        ..Default::default()
    };
    let reply = node.propose(command).await;
    node.shutdown().await;
    if let Some(command_reply::Reply::Refused(refused)) = reply?.reply {
        return Err(SetupError::Settings(refused.message));
    }
    let file = places.admin_file();
    write_admin(&authority, &identity.address, "admin", &file)?;
    places.write_identity(&identity)?;
    Ok(file)
}

/// Makes an administrator with what this member has on its disk: the way back in when nobody has a certificate any more.
pub fn issue_admin(places: &Places, name: &str, file: &Path) -> Result<(), SetupError> {
    if file.exists() {
        return Err(SetupError::InTheWay {
            path: file.to_owned(),
        });
    }
    write_admin(&places.authority()?, &places.identity()?.address, name, file)
}

fn write_admin(authority: &Authority, address: &str, name: &str, file: &Path) -> Result<(), SetupError> {
    let subject = Subject::Admin {
        name: name.to_owned(),
    };
    let admin = authority.issue(&subject, unix_now())?;
    let config = client_config(address, authority.certificate(), &admin.certificate, &admin.key);
    write(file, config.as_bytes())
}

/// A client configuration, as `ctl` reads it.
fn client_config(address: &str, ca: &str, certificate: &str, key: &str) -> String {
    let block = |pem: &str| {
        pem.lines()
            .map(|line| format!("      {line}\n"))
            .collect::<String>()
    };
    format!(
        "current-context: bulkhead\ncontexts:\n  - name: bulkhead\n    endpoints:\n      - \"{address}\"\n    ca: |\n{}    \
         cert: |\n{}    key: |\n{}",
        block(ca),
        block(certificate),
        block(key)
    )
}

/// Enters the cluster that `server` belongs to.
pub async fn join(
    places: &Places,
    server: &str,
    token: &str,
    name: &str,
    address: &str,
    peer_address: &str,
) -> Result<Identity, SetupError> {
    places.begin()?;
    let parsed: JoinToken = token.parse()?;
    let channel = rpc::tls::channel_pinned(server, parsed.ca_sha256)?;
    let request = JoinMemberRequest {
        token: token.trim().to_owned(),
        name: name.to_owned(),
        address: address.to_owned(),
        peer_address: peer_address.to_owned(),
        schema_level: state::SCHEMA_LEVEL,
    };
    let answer = JoinClient::new(channel).join_member(request).await;
    let answer = answer
        .map_err(|status| SetupError::Refused {
            server: server.to_owned(),
            message: status_text(&status),
        })?
        .into_inner();
    let authority = Authority::load(&answer.ca, &answer.ca_key)?;
    if authority.sha256() != parsed.ca_sha256 {
        return Err(SetupError::OtherCa {
            server: server.to_owned(),
        });
    }
    places.write_authority(&authority)?;
    places.storage_keys()?;
    let identity = Identity {
        cluster_id: answer.cluster_id,
        id: answer.member_id,
        name: name.to_owned(),
        address: address.to_owned(),
        peer_address: peer_address.to_owned(),
        began: false,
    };
    places.write_identity(&identity)?;
    Ok(identity)
}

/// What a call failed with, down to the cause when no answer came.
fn status_text(status: &tonic::Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        text = cause.to_string();
        source = cause.source();
    }
    text
}

/// What `run` needs of all this.
pub struct Loaded {
    /// Who this member is.
    pub identity: Identity,
    /// The CA.
    pub authority: Arc<Authority>,
    /// Its own certificate, fresh.
    pub live: LiveCertificate,
    /// What its files are sealed with.
    pub keys: Keys,
}

impl Places {
    /// Reads everything and makes this member a fresh certificate.
    pub fn load(&self) -> Result<Loaded, SetupError> {
        let identity = self.identity()?;
        let authority = Arc::new(self.authority()?);
        let live = LiveCertificate::new(&authority.issue(&member_subject(&identity), unix_now())?)?;
        Ok(Loaded {
            identity,
            authority,
            live,
            keys: self.storage_keys()?,
        })
    }
}
