//! `ctl auth issue|revoke|revocations|can-i|whoami`: certificates for people, and what they may.

use std::path::PathBuf;

use clap::Subcommand;
use model::Kind;
use rcgen::{CertificateParams, KeyPair};
use rpc::v1::{
    IssueCertificateRequest, ListRevocationsRequest, ReviewAccessRequest, RevokeCertificatesRequest,
    WhoAmIRequest,
};
use state::rbac;

use crate::age;
use crate::cluster::Cluster;
use crate::config::{Config, Context};
use crate::error::CtlError;
use crate::output::{Output, Table};

/// Before a node's name in its certificate.
const NODE: &str = "system:node:";

/// Arguments of `ctl auth`.
#[derive(clap::Args)]
pub(crate) struct Auth {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a key and have a certificate issued for it, as a configuration for its user
    Issue(Issue),
    /// Have every certificate or token refused that a user, a node or a service account was issued so far
    Revoke(Revoke),
    /// List whose certificates and tokens are refused
    Revocations,
    /// Say whether something may be done
    CanI(CanI),
    /// Say as whom the cluster knows you
    Whoami,
}

#[derive(clap::Args)]
struct Issue {
    /// The user: letters, digits and -._@:+/
    name: String,
    /// A group of the user's; more than one with more of them
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    /// How long the certificate is good, at most a year
    #[arg(long, default_value = "30d", value_name = "DURATION", value_parser = age::parse)]
    ttl: u64,
    /// Where to write the configuration, which must not be there [default: NAME.yaml]
    #[arg(short = 'f', long, value_name = "FILE", conflicts_with = "add_context")]
    file: Option<PathBuf>,
    /// Add it to your own configuration instead, as a context of this name
    #[arg(long, value_name = "CONTEXT")]
    add_context: Option<String>,
}

#[derive(clap::Args)]
struct Revoke {
    /// The user, node/NAME, or serviceaccount/NAME in the namespace
    #[arg(value_name = "USER | node/NAME | serviceaccount/NAME")]
    whose: String,
}

#[derive(clap::Args)]
struct CanI {
    /// get, list, create, delete, ...
    verb: String,
    /// RESOURCE or RESOURCE/NAME, as pods, secrets/db, deployments.apps; * for all
    #[arg(value_name = "RESOURCE[/NAME]")]
    resource: String,
    /// A part of the resource, as log, exec, scale
    #[arg(long, value_name = "PART", default_value = "", hide_default_value = true)]
    subresource: String,
    /// In all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Of this user instead of yourself, for those who may impersonate them
    #[arg(long = "as", value_name = "USER")]
    user: Option<String>,
    /// With these groups
    #[arg(long = "as-group", value_name = "GROUP", requires = "user")]
    groups: Vec<String>,
    /// Say nothing, only end with 0 or 1
    #[arg(short, long)]
    quiet: bool,
}

/// Runs `ctl auth`.
pub(crate) async fn run(
    args: Auth,
    cluster: &Cluster,
    config: &std::path::Path,
    out: &mut Output,
) -> Result<(), CtlError> {
    match args.verb {
        Verb::Issue(args) => issue(args, cluster, config, out).await,
        Verb::Revoke(args) => revoke(args, cluster, out).await,
        Verb::Revocations => revocations(cluster, out).await,
        Verb::CanI(args) => can_i(args, cluster, out).await,
        Verb::Whoami => whoami(cluster, out).await,
    }
}

async fn issue(
    args: Issue,
    cluster: &Cluster,
    config: &std::path::Path,
    out: &mut Output,
) -> Result<(), CtlError> {
    let file = args.file.unwrap_or_else(|| PathBuf::from(file_name(&args.name)));
    // Before anything is issued that nobody would get.
    if args.add_context.is_none() && file.exists() {
        return Err(CtlError::refused(format!(
            "{} exists; name another with -f",
            file.display()
        )));
    }
    let failed = |cause: rcgen::Error| CtlError::refused(format!("failed to make a key: {cause}"));
    // The key never leaves this machine: only its public half is signed.
    let key = KeyPair::generate().map_err(failed)?;
    let asked = CertificateParams::default()
        .serialize_request(&key)
        .map_err(failed)?;
    let request = IssueCertificateRequest {
        csr: asked.der().to_vec(),
        name: args.name.clone(),
        groups: args.groups,
        ttl_seconds: u32::try_from(args.ttl).unwrap_or(u32::MAX),
    };
    let answer = cluster.api.clone().issue_certificate(request).await;
    let answer = answer.map_err(|status| cluster.error(status))?.into_inner();
    let expires = answer.expires.as_ref().map(age::stamp).unwrap_or_default();
    let context = |name: String| Context {
        name,
        endpoints: answer.endpoints.clone(),
        ca: answer.ca.clone(),
        cert: answer.certificate.clone(),
        key: key.serialize_pem(),
        ..Context::default()
    };
    if let Some(name) = args.add_context {
        let mut mine = Config::read(config)?;
        if mine.contexts.iter().any(|known| known.name == name) {
            return Err(CtlError::refused(format!(
                "there is a context {name} already; `ctl config delete-context {name}` forgets it"
            )));
        }
        mine.contexts.push(context(name.clone()));
        mine.write(config)?;
        return out.line(format_args!(
            "context {name} is user {}, until {expires}; `ctl config use-context {name}` makes it current",
            args.name
        ));
    }
    let mut theirs = Config::default();
    theirs.adopt(context(args.name.clone()));
    theirs.write(&file)?;
    out.line(format_args!(
        "{} is for user {}, until {expires}: hand it over on a safe way; `ctl config import` takes it",
        file.display(),
        args.name
    ))
}

/// A user's name may have a slash.
fn file_name(user: &str) -> String {
    format!("{}.yaml", user.replace(['/', ':'], "-"))
}

async fn revoke(args: Revoke, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    let whose = &args.whose;
    let (identity, what, back) = match whose.split_once('/') {
        Some(("node", node)) => (
            format!("{NODE}{node}"),
            "certificates",
            format!("to let it join again: ctl token create --name {node}"),
        ),
        Some(("serviceaccount", name)) => {
            let namespace = &cluster.namespace;
            (
                rbac::account_user(namespace, name),
                "tokens",
                format!("for a new one: ctl create token {name} -n {namespace}"),
            )
        }
        _ => (
            whose.clone(),
            "certificates",
            format!("for a new one: ctl auth issue {whose}"),
        ),
    };
    let request = RevokeCertificatesRequest { identity };
    cluster
        .call(request, async |mut api, request| {
            api.revoke_certificates(request).await
        })
        .await
        .map_err(|status| cluster.error(status))?;
    out.line(format_args!(
        "the {what} of {whose} are refused from now on; {back}"
    ))
}

async fn revocations(cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    let answer = cluster
        .call(ListRevocationsRequest {}, async |mut api, request| {
            api.list_revocations(request).await
        })
        .await
        .map_err(|status| cluster.error(status))?;
    let mut table = Table::new(["WHOSE", "ISSUED-UNTIL", "KEPT-UNTIL"]);
    for revocation in answer.revocations {
        let identity = &revocation.identity;
        let whose = identity
            .strip_prefix(NODE)
            .map_or_else(|| identity.clone(), |node| format!("node/{node}"));
        let stamp = |time: Option<&_>| time.map(age::stamp).unwrap_or_default();
        table.row(vec![
            whose,
            stamp(revocation.issued_until.as_ref()),
            stamp(revocation.expires.as_ref()),
        ]);
    }
    out.table(&table)
}

async fn can_i(args: CanI, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    let (resource, name) = match args.resource.split_once('/') {
        Some((resource, name)) => (resource, name),
        None => (args.resource.as_str(), ""),
    };
    let meant = meant(resource);
    let part = match args.subresource.as_str() {
        "" => String::new(),
        part => format!("/{part}"),
    };
    let request = ReviewAccessRequest {
        verb: args.verb,
        group: meant.group,
        resource: format!("{}{part}", meant.resource),
        namespace: match args.all_namespaces || !meant.namespaced {
            true => String::new(),
            false => cluster.namespace.clone(),
        },
        name: name.to_owned(),
        user: args.user.unwrap_or_default(),
        groups: args.groups,
    };
    let answer = cluster
        .call(request, async |mut api, request| api.review_access(request).await)
        .await
        .map_err(|status| cluster.error(status))?;
    // As kubectl: the answer is `yes` or `no`, and the exit code says it too.
    if answer.allowed {
        return match args.quiet {
            true => Ok(()),
            false => out.line(format_args!("yes - {}", answer.reason)),
        };
    }
    if !args.quiet {
        out.line(format_args!("no - {}", answer.reason))?;
    }
    Err(CtlError::Exited(1))
}

struct Meant {
    group: String,
    resource: String,
    namespaced: bool,
}

/// A kind by any of its names; else a resource as it stands in rules, with its group behind a dot.
fn meant(text: &str) -> Meant {
    if let Ok(kind) = Kind::parse(text) {
        return Meant {
            group: kind.group().to_owned(),
            resource: kind.plural().to_owned(),
            namespaced: kind.namespaced(),
        };
    }
    let (resource, group) = match text {
        // Of all groups.
        "*" => ("*", "*"),
        _ => text.split_once('.').unwrap_or((text, "")),
    };
    Meant {
        group: group.to_owned(),
        resource: resource.to_owned(),
        namespaced: !group.ends_with("bulkhead.io") && !["users", "groups"].contains(&resource),
    }
}

async fn whoami(cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    let answer = cluster
        .call(WhoAmIRequest {}, async |mut api, request| {
            api.who_am_i(request).await
        })
        .await
        .map_err(|status| cluster.error(status))?;
    let mut table = Table::new(["ATTRIBUTE", "VALUE"]);
    let expires = answer.expires.as_ref().map(age::stamp).unwrap_or_default();
    for (attribute, value) in [
        ("Username", answer.name),
        ("Groups", answer.groups.join(", ")),
        ("Good until", expires),
    ] {
        table.row(vec![attribute.to_owned(), value]);
    }
    out.table(&table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_named_as_people_name_them() {
        for (text, group, resource, namespaced) in [
            ("po", "", "pods", true),
            ("deployments.apps", "apps", "deployments", true),
            ("nodes", "", "nodes", false),
            ("clusterrole", "rbac.authorization.k8s.io", "clusterroles", false),
            ("tokens.bulkhead.io", "bulkhead.io", "tokens", false),
            ("users", "", "users", false),
            ("*", "*", "*", true),
            ("things.example.com", "example.com", "things", true),
        ] {
            let meant = meant(text);
            let found = (meant.group.as_str(), meant.resource.as_str(), meant.namespaced);
            assert_eq!(found, (group, resource, namespaced), "{text}");
        }
        assert_eq!(file_name("team/ann@example.com"), "team-ann@example.com.yaml");
    }
}
