//! What outlives the agent's process: what is desired on this node, and what its pods hold of the machine.
//!
//! One file, synced with every change; a second process that opens it is refused. A user-id range, an address or a pair of
//! SELinux categories has one holder at most, from `allot` to `release`, whatever crashes meanwhile. Ranges and pairs
//! come out of a part of the machine's that this ledger has claimed for itself (`claim`), so that two agents of one
//! machine never hand out the same.

mod allot;
mod claim;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;

use prost::Message;
use proto::v1::{ConfigMap, Pod, Secret};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use rpc::v1::{Desired, Peer};
use runtime::spec::IdRange;
use serde::{Deserialize, Serialize};

pub use allot::Want;
pub use claim::{CLAIMS, ClaimError};

use self::allot::{Pool, Taken};
use crate::configs::key_of;
use crate::node::ClusterFacts;

/// Single values by name.
const VALUES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("values");
/// Desired pods by uid.
const PODS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("pods");
/// ConfigMaps by NAMESPACE/NAME.
const CONFIG_MAPS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("config-maps");
/// What pods hold of the machine, by uid.
const SLOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("slots");
/// Actors' own records, by uid.
const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");

const REVISION: &str = "revision";
const FACTS: &str = "facts";
const PEERS: &str = "peers";
const PART: &str = "part";
const CLUSTER: &str = "cluster";
/// Last address handed out: the next search begins behind it.
const ADDRESS: &str = "address";

/// Memory for pages of the file: a node's whole ledger is some hundred kilobytes.
const CACHE_BYTES: usize = 512 << 10;

/// Why the ledger did not do it. Nothing was changed then.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Another process has it open.
    #[error("{path} is in use: another agent runs with this data directory")]
    InUse {
        /// The file.
        path: String,
    },
    /// The file or the disk.
    #[error("the ledger failed")]
    Database(#[source] Box<redb::Error>),
    /// What is in it is not what was put there.
    #[error("the ledger's {what} is damaged: {reason}")]
    Damaged {
        /// Which entry.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No part of the machine's ids could be claimed.
    #[error("failed to claim user ids")]
    Claim(#[from] ClaimError),
    /// Nothing is left to hand out.
    #[error("this node has no free {what} for another pod")]
    Exhausted {
        /// Of what.
        what: &'static str,
    },
    /// Addresses are not known yet.
    #[error("this node has no range of pod addresses yet: no controller has told it one")]
    NoRange,
}

impl<E: Into<redb::Error>> From<E> for LedgerError {
    fn from(source: E) -> Self {
        Self::Database(Box::new(source.into()))
    }
}

/// What a pod holds of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Slot {
    /// Its user ids.
    pub ids: Option<IdRange>,
    /// Its address.
    pub address: Option<Ipv4Addr>,
    /// Its SELinux categories, the smaller one first.
    pub categories: Option<(u16, u16)>,
}

/// A change of what is desired: all of it or nothing is in the ledger afterwards.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change {
    /// Revision that is complete with it.
    pub revision: Option<u64>,
    /// New or changed pods.
    pub pods: Vec<Pod>,
    /// Uids of pods that are to go.
    pub removed: Vec<String>,
    /// New or changed ConfigMaps.
    pub config_maps: Vec<ConfigMap>,
    /// NAMESPACE/NAME of those that are gone.
    pub removed_config_maps: Vec<String>,
    /// New or changed Secrets: they do not come into the ledger.
    pub secrets: Vec<Secret>,
    /// NAMESPACE/NAME of those that are gone.
    pub removed_secrets: Vec<String>,
    /// All other nodes.
    pub peers: Option<Vec<Peer>>,
}

/// The open ledger.
#[derive(Debug)]
pub struct Ledger {
    database: Database,
    pool: Pool,
}

impl Ledger {
    /// Opens or makes the ledger. `claims` is the directory that all agents of the machine share.
    pub fn open(path: &Path, claims: &Path) -> Result<Self, LedgerError> {
        let opened = Database::builder().set_cache_size(CACHE_BYTES).create(path);
        let database = opened.map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => LedgerError::InUse {
                path: path.display().to_string(),
            },
            error => error.into(),
        })?;
        let transaction = database.begin_write()?;
        for table in [VALUES, PODS, CONFIG_MAPS, SLOTS, RECORDS] {
            transaction.open_table(table)?;
        }
        let known = value(&transaction, PART)?
            .map(|bytes| number(&bytes, PART))
            .transpose()?;
        let known = known.and_then(|part| u32::try_from(part).ok());
        let part = claim::claim(claims, path, known)?;
        put_value(&transaction, PART, &u64::from(part).to_le_bytes())?;
        transaction.commit()?;
        Ok(Self {
            database,
            pool: Pool::of_part(part),
        })
    }

    /// The cluster that this node is in. When it is another one than before, what that one desired is forgotten: its pods
    /// are no longer listed, and whoever clears up finds what they hold.
    pub fn enter_cluster(&self, id: &str) -> Result<(), LedgerError> {
        let transaction = self.database.begin_write()?;
        let before = value(&transaction, CLUSTER)?;
        if before.as_deref() == Some(id.as_bytes()) {
            return Ok(());
        }
        if before.is_some() {
            transaction.open_table(PODS)?.retain(|_, _| false)?;
            transaction.open_table(CONFIG_MAPS)?.retain(|_, _| false)?;
            let mut values = transaction.open_table(VALUES)?;
            for name in [REVISION, FACTS, PEERS] {
                values.remove(name)?;
            }
        }
        put_value(&transaction, CLUSTER, id.as_bytes())?;
        Ok(transaction.commit()?)
    }

    /// Pods that are to be here.
    pub fn pods(&self) -> Result<Vec<Pod>, LedgerError> {
        self.messages(PODS)
    }

    /// ConfigMaps of this node's pods, by NAMESPACE/NAME.
    pub fn config_maps(&self) -> Result<BTreeMap<String, ConfigMap>, LedgerError> {
        let maps: Vec<ConfigMap> = self.messages(CONFIG_MAPS)?;
        Ok(maps
            .into_iter()
            .map(|map| (key_of(map.metadata.as_ref()), map))
            .collect())
    }

    /// Revision up to which the agent knows what is desired.
    pub fn revision(&self) -> Result<u64, LedgerError> {
        let bytes = self.read_value(REVISION)?;
        bytes.map_or(Ok(0), |bytes| number(&bytes, REVISION))
    }

    /// The other nodes, as last told.
    pub fn peers(&self) -> Result<Vec<Peer>, LedgerError> {
        let Some(bytes) = self.read_value(PEERS)? else {
            return Ok(Vec::new());
        };
        Ok(decode::<Desired>(PEERS, &bytes)?.peers)
    }

    /// The cluster, as last told.
    pub fn facts(&self) -> Result<Option<ClusterFacts>, LedgerError> {
        let bytes = self.read_value(FACTS)?;
        bytes.map(|bytes| read_facts(&bytes)).transpose()
    }

    /// Remembers what a controller said of the cluster.
    pub fn put_facts(&self, facts: &ClusterFacts) -> Result<(), LedgerError> {
        let stored = StoredFacts {
            pod_range: facts.pod_range.to_string(),
            cluster_range: facts.cluster_range.to_string(),
            domain: facts.domain.clone(),
        };
        let transaction = self.database.begin_write()?;
        put_value(&transaction, FACTS, &to_json(FACTS, &stored)?)?;
        Ok(transaction.commit()?)
    }

    /// Takes over a change of what is desired.
    pub fn commit(&self, change: &Change) -> Result<(), LedgerError> {
        let transaction = self.database.begin_write()?;
        {
            let mut pods = transaction.open_table(PODS)?;
            for pod in &change.pods {
                let uid = pod.metadata.as_ref().map(|meta| &*meta.uid).unwrap_or_default();
                pods.insert(uid, &*pod.encode_to_vec())?;
            }
            for uid in &change.removed {
                pods.remove(&**uid)?;
            }
            let mut maps = transaction.open_table(CONFIG_MAPS)?;
            for map in &change.config_maps {
                maps.insert(&*key_of(map.metadata.as_ref()), &*map.encode_to_vec())?;
            }
            for key in &change.removed_config_maps {
                maps.remove(&**key)?;
            }
        }
        if let Some(peers) = &change.peers {
            let message = Desired {
                peers: peers.clone(),
                ..Desired::default()
            };
            put_value(&transaction, PEERS, &message.encode_to_vec())?;
        }
        if let Some(revision) = change.revision {
            put_value(&transaction, REVISION, &revision.to_le_bytes())?;
        }
        Ok(transaction.commit()?)
    }

    /// Gives a pod what it wants and does not have yet. It keeps what it has, until `release`.
    pub fn allot(&self, uid: &str, want: Want) -> Result<Slot, LedgerError> {
        let transaction = self.database.begin_write()?;
        let slot = {
            let mut slots = transaction.open_table(SLOTS)?;
            let mut have = Slot::default();
            let mut taken = Taken::default();
            for entry in slots.iter()? {
                let (holder, bytes) = entry?;
                let slot: Slot = from_json(SLOTS_NAME, bytes.value())?;
                if holder.value() == uid {
                    have = slot;
                } else {
                    taken.add(&slot);
                }
            }
            let range = match value(&transaction, FACTS)? {
                Some(bytes) => Some(read_facts(&bytes)?.pod_range),
                None => None,
            };
            let last = value(&transaction, ADDRESS)?;
            let last = last.map_or(Ok(0), |bytes| number(&bytes, ADDRESS))?;
            let (slot, last) = allot::allot(
                have,
                want,
                &taken,
                &self.pool,
                range,
                u32::try_from(last).unwrap_or_default(),
            )?;
            if slot == have {
                return Ok(slot); // nothing new: nothing to sync
            }
            slots.insert(uid, &*to_json(SLOTS_NAME, &slot)?)?;
            put_value(&transaction, ADDRESS, &u64::from(last).to_le_bytes())?;
            slot
        };
        transaction.commit()?;
        Ok(slot)
    }

    /// What a pod holds.
    pub fn slot(&self, uid: &str) -> Result<Option<Slot>, LedgerError> {
        let bytes = self.read(SLOTS, uid)?;
        bytes.map(|bytes| from_json(SLOTS_NAME, &bytes)).transpose()
    }

    /// Takes back what a pod holds and forgets its actor's record: nothing of it is on the machine any more.
    pub fn release(&self, uid: &str) -> Result<(), LedgerError> {
        let transaction = self.database.begin_write()?;
        for table in [SLOTS, RECORDS] {
            transaction.open_table(table)?.remove(uid)?;
        }
        Ok(transaction.commit()?)
    }

    /// What a pod's actor put down.
    pub fn record(&self, uid: &str) -> Result<Option<Vec<u8>>, LedgerError> {
        self.read(RECORDS, uid)
    }

    /// Puts down what a pod's actor must not forget; `release` removes it.
    pub fn put_record(&self, uid: &str, bytes: &[u8]) -> Result<(), LedgerError> {
        let transaction = self.database.begin_write()?;
        transaction.open_table(RECORDS)?.insert(uid, bytes)?;
        Ok(transaction.commit()?)
    }

    /// Pods that hold something or have a record: they are, or were, on this machine.
    pub fn uids(&self) -> Result<Vec<String>, LedgerError> {
        let transaction = self.database.begin_read()?;
        let mut uids = Vec::new();
        for table in [SLOTS, RECORDS] {
            for entry in transaction.open_table(table)?.iter()? {
                uids.push(entry?.0.value().to_owned());
            }
        }
        uids.sort();
        uids.dedup();
        Ok(uids)
    }

    fn read(
        &self,
        table: TableDefinition<'_, &'static str, &'static [u8]>,
        key: &str,
    ) -> Result<Option<Vec<u8>>, LedgerError> {
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(table)?;
        Ok(table.get(key)?.map(|bytes| bytes.value().to_vec()))
    }

    fn read_value(&self, name: &str) -> Result<Option<Vec<u8>>, LedgerError> {
        self.read(VALUES, name)
    }

    fn messages<M: Message + Default>(
        &self,
        table: TableDefinition<'_, &'static str, &'static [u8]>,
    ) -> Result<Vec<M>, LedgerError> {
        let transaction = self.database.begin_read()?;
        let mut messages = Vec::new();
        for entry in transaction.open_table(table)?.iter()? {
            let (key, bytes) = entry?;
            messages.push(decode(key.value(), bytes.value())?);
        }
        Ok(messages)
    }
}

const SLOTS_NAME: &str = "slots";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredFacts {
    pod_range: String,
    cluster_range: String,
    domain: String,
}

fn read_facts(bytes: &[u8]) -> Result<ClusterFacts, LedgerError> {
    let stored: StoredFacts = from_json(FACTS, bytes)?;
    let range = |text: &str| {
        text.parse().map_err(|error| LedgerError::Damaged {
            what: FACTS.to_owned(),
            reason: format!("{text}: {error}"),
        })
    };
    Ok(ClusterFacts {
        pod_range: range(&stored.pod_range)?,
        cluster_range: range(&stored.cluster_range)?,
        domain: stored.domain,
    })
}

fn value(transaction: &WriteTransaction, name: &str) -> Result<Option<Vec<u8>>, LedgerError> {
    let table = transaction.open_table(VALUES)?;
    let bytes = table.get(name)?.map(|bytes| bytes.value().to_vec());
    Ok(bytes)
}

fn put_value(transaction: &WriteTransaction, name: &str, bytes: &[u8]) -> Result<(), LedgerError> {
    transaction.open_table(VALUES)?.insert(name, bytes)?;
    Ok(())
}

fn number(bytes: &[u8], what: &str) -> Result<u64, LedgerError> {
    let bytes = bytes.try_into().map_err(|_| LedgerError::Damaged {
        what: what.to_owned(),
        reason: format!("{} bytes instead of 8", bytes.len()),
    })?;
    Ok(u64::from_le_bytes(bytes))
}

fn decode<M: Message + Default>(what: &str, bytes: &[u8]) -> Result<M, LedgerError> {
    M::decode(bytes).map_err(|error| LedgerError::Damaged {
        what: what.to_owned(),
        reason: error.to_string(),
    })
}

fn to_json(what: &str, value: &impl Serialize) -> Result<Vec<u8>, LedgerError> {
    serde_json::to_vec(value).map_err(|error| LedgerError::Damaged {
        what: what.to_owned(),
        reason: error.to_string(),
    })
}

fn from_json<T: for<'a> Deserialize<'a>>(what: &str, bytes: &[u8]) -> Result<T, LedgerError> {
    serde_json::from_slice(bytes).map_err(|error| LedgerError::Damaged {
        what: what.to_owned(),
        reason: error.to_string(),
    })
}

#[cfg(test)]
#[path = "ledger_test.rs"]
mod tests;
