//! `ctl create token`: what a service account shows in place of a certificate.

use clap::Subcommand;
use rpc::v1::CreateServiceAccountTokenRequest;

use crate::age;
use crate::cluster::Cluster;
use crate::error::CtlError;
use crate::output::Output;

/// Arguments of `ctl create`.
#[derive(clap::Args)]
pub(crate) struct Create {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a token of a service account and print it, this once
    Token(Token),
}

#[derive(clap::Args)]
struct Token {
    /// The service account
    name: String,
    /// How long it is good for, from 10 minutes to a day
    #[arg(long, default_value = "1h", value_name = "DURATION", value_parser = age::parse)]
    duration: u64,
    /// Kind of what the token ends with
    #[arg(long, value_name = "KIND", value_parser = ["Pod"], requires = "bound_object_name")]
    bound_object_kind: Option<String>,
    /// Its name: a pod that runs as the account
    #[arg(long, value_name = "NAME", requires = "bound_object_kind")]
    bound_object_name: Option<String>,
    /// Its uid, if it has to be that one
    #[arg(long, value_name = "UID", requires = "bound_object_name")]
    bound_object_uid: Option<String>,
}

/// Runs `ctl create`.
pub(crate) async fn run(args: Create, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    let Verb::Token(args) = args.verb;
    // To the server 0 would mean that nothing was asked for.
    if args.duration == 0 {
        return Err(CtlError::Usage("--duration 0 is no time at all".to_owned()));
    }
    let request = CreateServiceAccountTokenRequest {
        namespace: cluster.namespace.clone(),
        name: args.name,
        expiration_seconds: u32::try_from(args.duration).unwrap_or(u32::MAX),
        bound_pod: args.bound_object_name.unwrap_or_default(),
        bound_pod_uid: args.bound_object_uid.unwrap_or_default(),
    };
    // Nothing is kept of a token: one whose answer was lost may be made again.
    let answer = cluster
        .call(request, async |mut api, request| {
            api.create_service_account_token(request).await
        })
        .await
        .map_err(|status| cluster.error(status))?;
    out.line(&answer.token)
}
