//! `ctl token create|list|revoke`: what lets a node or a controller join.

use clap::Subcommand;
use rpc::v1::{CreateTokenRequest, ListTokensRequest, RevokeTokenRequest};

use crate::age;
use crate::cluster::Cluster;
use crate::error::CtlError;
use crate::output::{Output, Table};

/// Arguments of `ctl token`.
#[derive(clap::Args)]
pub(crate) struct Token {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a token and print it, this once
    Create(Create),
    /// List tokens, without their secrets
    List,
    /// End a token before its time
    Revoke {
        /// Its id: the part after `bh1.`
        id: String,
    },
}

#[derive(clap::Args)]
struct Create {
    /// Who may join with it
    #[arg(long, default_value = "node", value_parser = ["node", "member"])]
    role: String,
    /// Only for the node or member of this name
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
    name: String,
    /// How long it is good for
    #[arg(long, default_value = "1h", value_name = "DURATION", value_parser = age::parse)]
    ttl: u64,
    /// How many may join with it
    #[arg(long, default_value_t = 1, value_name = "N")]
    uses: u32,
}

/// Runs `ctl token`.
pub(crate) async fn run(args: Token, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    let mut api = cluster.api.clone();
    match args.verb {
        Verb::Create(args) => {
            let request = CreateTokenRequest {
                role: args.role,
                name: args.name,
                ttl_seconds: u32::try_from(args.ttl).unwrap_or(u32::MAX),
                uses: args.uses,
            };
            let answer = api
                .create_token(request)
                .await
                .map_err(|status| cluster.error(status))?;
            out.line(&answer.get_ref().token)
        }
        Verb::List => {
            let answer = api
                .list_tokens(ListTokensRequest {})
                .await
                .map_err(|status| cluster.error(status))?;
            let mut table = Table::new(["ID", "ROLE", "NAME", "USES-LEFT", "EXPIRES"]);
            for token in &answer.get_ref().tokens {
                let left = age::until(token.expires.as_ref());
                let expires = if left.is_empty() {
                    "expired".to_owned()
                } else {
                    format!("in {left}")
                };
                table.row(vec![
                    token.id.clone(),
                    token.role.clone(),
                    token.name.clone(),
                    token.uses_left.to_string(),
                    expires,
                ]);
            }
            out.table(&table)
        }
        Verb::Revoke { id } => {
            // People paste the whole token too.
            let id = id
                .strip_prefix("bh1.")
                .and_then(|rest| rest.split('.').next())
                .unwrap_or(&id)
                .to_owned();
            let request = RevokeTokenRequest { id: id.clone() };
            api.revoke_token(request)
                .await
                .map_err(|status| cluster.error(status))?;
            out.line(format_args!("token {id} revoked"))
        }
    }
}
