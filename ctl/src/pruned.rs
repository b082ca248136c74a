//! What an apply removes: objects of a set that its manifests no longer name. As arguments of `apply` and `diff`.

use model::object;
use model::read::Manifest;
use rpc::v1::Prune;

use crate::error::CtlError;

/// By this label the objects of a named set are known.
const APPLYSET: &str = "bulkhead.io/applyset";

/// The set.
#[derive(clap::Args)]
pub(crate) struct Pruned {
    /// Remove what this field manager applied before and the manifests leave out; needs -l or --applyset
    #[arg(long)]
    prune: bool,
    /// With --prune: which labels say that an object belongs to the set; the manifests need them
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<String>,
    /// With --prune: the set's name, which every object gets as its label bulkhead.io/applyset
    #[arg(long, value_name = "NAME", conflicts_with = "selector")]
    applyset: Option<String>,
}

impl Pruned {
    /// As the cluster is asked; a named set's label comes into the manifests.
    pub(crate) fn request(&self, manifests: &mut [Manifest]) -> Result<Option<Prune>, CtlError> {
        let given = self.selector.is_some() || self.applyset.is_some();
        if self.prune != given {
            let words = match self.prune {
                true => {
                    "--prune needs -l SELECTOR or --applyset NAME: it removes what has these labels and is in no manifest"
                }
                false => "-l and --applyset say what --prune may remove: add --prune",
            };
            return Err(CtlError::Usage(words.to_owned()));
        }
        let label_selector = match (&self.selector, &self.applyset) {
            (Some(selector), _) => selector.clone(),
            (None, Some(name)) => {
                for manifest in manifests {
                    let labels = &mut object::meta_mut(&mut manifest.object).labels;
                    labels.insert(APPLYSET.to_owned(), name.clone());
                }
                format!("{APPLYSET}={name}")
            }
            (None, None) => return Ok(None),
        };
        Ok(Some(Prune {
            label_selector,
            namespaces: Vec::new(),
        }))
    }
}
