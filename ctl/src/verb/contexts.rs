//! `ctl config`: the clusters that this client knows.

use std::path::{Path, PathBuf};

use clap::Subcommand;

use crate::config::Config;
use crate::error::CtlError;
use crate::output::{Output, Table};

/// Arguments of `ctl config`.
#[derive(clap::Args)]
pub(crate) struct ConfigVerb {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// List the contexts
    #[command(visible_alias = "list")]
    GetContexts,
    /// Print the current context's name
    CurrentContext,
    /// Make another context the current one
    UseContext {
        /// Its name
        name: String,
    },
    /// Forget a context and its key
    DeleteContext {
        /// Its name
        name: String,
    },
    /// Take over the contexts of another file, as a controller's admin.yaml
    Import {
        /// The file
        file: PathBuf,
    },
}

/// Runs `ctl config`.
pub(crate) fn run(args: ConfigVerb, path: &Path, out: &mut Output) -> Result<(), CtlError> {
    let mut config = Config::read(path)?;
    match args.verb {
        Verb::GetContexts => {
            let mut table = Table::new(["CURRENT", "NAME", "ENDPOINTS"]);
            for context in &config.contexts {
                let current = if context.name == config.current { "*" } else { "" };
                table.row(vec![
                    current.to_owned(),
                    context.name.clone(),
                    context.endpoints.join(","),
                ]);
            }
            out.table(&table)
        }
        Verb::CurrentContext => {
            let current = config.context(None, path)?.name.clone();
            out.line(current)
        }
        Verb::UseContext { name } => {
            config.context(Some(&name), path)?;
            config.current.clone_from(&name);
            config.write(path)?;
            out.line(format_args!("context {name} is current"))
        }
        Verb::DeleteContext { name } => {
            config.context(Some(&name), path)?;
            config.forget(&name);
            config.write(path)?;
            out.line(format_args!("context {name} forgotten"))
        }
        Verb::Import { file } => {
            let other = Config::read(&file)?;
            if other.contexts.is_empty() {
                return Err(CtlError::refused(format!(
                    "{}: no contexts in it",
                    file.display()
                )));
            }
            for context in other.contexts {
                out.line(format_args!("context {} taken over", context.name))?;
                config.adopt(context);
            }
            config.write(path)
        }
    }
}
