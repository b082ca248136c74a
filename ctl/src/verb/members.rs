//! `ctl cluster members`: the controllers, their roles and how far each has come. `ctl cluster remove`: takes one out. What is
//! done with backups stands in `backup.rs`.

use clap::Subcommand;
use rpc::v1::{MembersRequest, RemoveMemberRequest};

use super::backup;
use crate::cluster::Cluster;
use crate::error::CtlError;
use crate::output::{Output, Table};

/// Arguments of `ctl cluster`.
#[derive(clap::Args)]
pub(crate) struct ClusterVerb {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// List the members
    Members,
    /// Take a controller out of the cluster, dead or alive; another can join under its name
    Remove(Remove),
    /// Write everything that the cluster has replicated into one sealed file
    Backup(backup::Backup),
    /// Check a backup and show what it is of; asks no cluster
    Verify(backup::Verify),
    /// Put a backup into a new cluster, before anything is applied to it
    Restore(backup::Restore),
}

#[derive(clap::Args)]
struct Remove {
    /// The controller, as `ctl cluster members` names it
    name: String,
    /// Also when fewer than a majority of those that stay answer
    #[arg(long)]
    force: bool,
}

/// Runs `ctl cluster`.
pub(crate) async fn run(
    args: ClusterVerb,
    open: impl FnOnce() -> Result<Cluster, CtlError>,
    out: &mut Output,
) -> Result<(), CtlError> {
    match args.verb {
        Verb::Members => members(&open()?, out).await,
        Verb::Remove(args) => remove(args, &open()?, out).await,
        Verb::Backup(args) => backup::backup(args, &open()?, out).await,
        Verb::Verify(args) => backup::verify(&args, out),
        Verb::Restore(args) => backup::restore(args, &open()?, out).await,
    }
}

async fn remove(args: Remove, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    let request = RemoveMemberRequest {
        name: args.name.clone(),
        force: args.force,
    };
    cluster
        .api
        .clone()
        .remove_member(request)
        .await
        .map_err(|status| cluster.error(status))?;
    out.line(format_args!("controller {} removed from the cluster", args.name))
}

async fn members(cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    let answer = cluster
        .call(MembersRequest {}, async |mut api, request| {
            api.members(request).await
        })
        .await
        .map_err(|status| cluster.error(status))?;
    let members = answer.members;
    let newest = members
        .iter()
        .map(|member| member.last_log_index)
        .max()
        .unwrap_or_default();
    let mut table = Table::new([
        "ID",
        "NAME",
        "ROLE",
        "ADDRESS",
        "PEER-ADDRESS",
        "APPLIED",
        "LAG",
        "LEVEL",
        "HEALTH",
    ]);
    for member in members {
        let known = member.role != "unreachable";
        let number = |number: u64| if known { number.to_string() } else { String::new() };
        table.row(vec![
            member.id.to_string(),
            member.name,
            member.role.clone(),
            member.address,
            member.peer_address,
            number(member.applied_index),
            number(newest.saturating_sub(member.applied_index)),
            number(member.schema_level.into()),
            match (known, member.nearly_full) {
                (false, _) => "unreachable",
                (true, true) => "disk nearly full",
                (true, false) => "ok",
            }
            .to_owned(),
        ]);
    }
    out.table(&table)
}
