//! Which objects a verb is about: those that are named, those of a kind with some labels, or all of a kind.

use model::{Kind, object};
use proto::state::v1::Key;

use crate::cluster::{Cluster, Query};
use crate::error::CtlError;
use crate::target::{self, Targets};

/// The flags beside the names.
#[derive(clap::Args)]
pub(crate) struct Selected {
    /// All objects of the kind with these labels
    #[arg(
        short = 'l',
        long,
        value_name = "SELECTOR",
        default_value = "",
        hide_default_value = true
    )]
    selector: String,
    /// All objects of the kind in the namespace
    #[arg(long)]
    all: bool,
}

impl Selected {
    /// The objects that the words name, or those of the kinds there that the flags choose.
    pub(crate) async fn keys(&self, words: &[String], cluster: &Cluster) -> Result<Vec<Key>, CtlError> {
        let chosen = self.all || !self.selector.is_empty();
        let kinds = match target::parse(words)? {
            Targets::Named(_) if chosen => {
                let message = "name objects, or give -l SELECTOR or --all, not both";
                return Err(CtlError::Usage(message.to_owned()));
            }
            Targets::Named(named) => {
                let key = |(kind, name)| target::key(kind, &cluster.namespace, name);
                return Ok(named.into_iter().map(key).collect());
            }
            Targets::Kinds(kinds) => kinds,
        };
        if !chosen {
            let message = "name objects, or give -l SELECTOR or --all";
            return Err(CtlError::Usage(message.to_owned()));
        }
        let mut keys = Vec::new();
        for kind in kinds {
            if kind == Kind::Event {
                let message = "events are made by the cluster and go by themselves";
                return Err(CtlError::Usage(message.to_owned()));
            }
            let query = Query {
                kind: kind.as_str().to_owned(),
                namespace: match kind.namespaced() {
                    true => cluster.namespace.clone(),
                    false => String::new(),
                },
                labels: self.selector.clone(),
                fields: String::new(),
            };
            keys.extend(cluster.list(&query).await?.items.iter().map(object::key));
        }
        Ok(keys)
    }
}
