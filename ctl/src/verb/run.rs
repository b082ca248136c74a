//! `ctl run --name web IMAGE`: a single container, a Pod of its own.
//!
//! Its host name is a random id of twelve hexadecimal digits, whatever its name.

use std::collections::BTreeMap;

use proto::v1::object::Object as Any;
use proto::v1::{
    Container, ContainerPort, EnvVar, Object, ObjectMeta, Pod, PodSpec, Quantity, ResourceRequirements,
};

use crate::cluster::Cluster;
use crate::error::CtlError;
use crate::output::Output;
use crate::verb::apply;
use crate::{target, waiting};

/// Arguments of `ctl run`.
#[derive(clap::Args)]
pub(crate) struct Run {
    /// The image; with `--image` the pod's name
    #[arg(value_name = "IMAGE")]
    image: String,
    /// The image, when the pod's name stands first: `ctl run web --image nginx`
    #[arg(long = "image", value_name = "IMAGE", conflicts_with = "name")]
    named_image: Option<String>,
    /// The pod's name [default: the image's, with a random ending]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// A variable of its environment; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// A label; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// A port that it listens on
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(i32).range(1..=65535))]
    port: Option<i32>,
    /// A limit, as cpu=500m or memory=64Mi; may be repeated
    #[arg(long, value_name = "NAME=AMOUNT")]
    limit: Vec<String>,
    /// Always, OnFailure or Never
    #[arg(long, value_name = "POLICY", default_value = "Always", value_parser = ["Always", "OnFailure", "Never"])]
    restart: String,
    /// Always, IfNotPresent or Never
    #[arg(long, value_name = "POLICY", value_parser = ["Always", "IfNotPresent", "Never"])]
    image_pull_policy: Option<String>,
    /// Take the words after `--` as the program, not as its arguments
    #[arg(long)]
    command: bool,
    /// Wait until it is ready
    #[arg(long)]
    wait: bool,
    /// Let the cluster decide and change nothing
    #[arg(long, value_name = "WHERE", value_parser = ["server", "none"], default_value = "none")]
    dry_run: String,
    /// Show the object
    #[arg(short, long, value_name = "FORMAT", value_parser = ["yaml", "name"])]
    output: Option<String>,
    /// Arguments of the image's program
    #[arg(last = true, value_name = "ARGUMENT")]
    args: Vec<String>,
}

/// Creates the pod; one of that name is not touched.
pub(crate) async fn run(args: Run, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    let id = apply::request_id().map_err(|status| cluster.error(status))?;
    let hostname: String = id.chars().take(12).collect();
    let (name, image) = match args.named_image {
        Some(image) => (args.image, image),
        None => {
            let name = args.name.unwrap_or_else(|| default_name(&args.image, &hostname));
            (name, args.image)
        }
    };
    let mut labels = pairs(&args.label, "--label")?;
    if labels.is_empty() {
        labels.insert("run".to_owned(), name.clone());
    }
    let quantities = pairs(&args.limit, "--limit")?;
    let resources = ResourceRequirements {
        limits: quantities
            .into_iter()
            .map(|(name, text)| (name, Quantity { text }))
            .collect(),
        ..ResourceRequirements::default()
    };
    let env = pairs(&args.env, "--env")?;
    let (command, arguments) = if args.command {
        (args.args, Vec::new())
    } else {
        (Vec::new(), args.args)
    };
    let container = Container {
        name: name.clone(),
        image,
        command,
        args: arguments,
        env: env
            .into_iter()
            .map(|(name, value)| EnvVar {
                name,
                value,
                value_from: None,
            })
            .collect(),
        ports: args
            .port
            .map(|port| ContainerPort {
                container_port: port,
                ..ContainerPort::default()
            })
            .into_iter()
            .collect(),
        resources: (!resources.limits.is_empty()).then_some(resources),
        image_pull_policy: args.image_pull_policy.unwrap_or_default(),
        ..Container::default()
    };
    let pod = Pod {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        metadata: Some(ObjectMeta {
            name,
            namespace: cluster.namespace.clone(),
            labels,
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            containers: vec![container],
            restart_policy: args.restart,
            hostname,
            ..PodSpec::default()
        }),
        status: None,
    };
    let dry_run = args.dry_run == "server";
    let object = Object {
        object: Some(Any::Pod(pod)),
    };
    let answer = apply::send(cluster, vec![object], "CREATE", "run", dry_run)
        .await
        .map_err(|status| cluster.error(status))?;
    for object in answer.results.into_iter().filter_map(|result| result.object) {
        let key = model::object::key(&object);
        match args.output.as_deref() {
            Some("yaml") => out.bytes(model::write::yaml(&object).as_bytes())?,
            Some(_) => out.line(target::shown(&key))?,
            None => out.line(format_args!(
                "{} created{}",
                target::shown(&key),
                if dry_run { " (server dry run)" } else { "" }
            ))?,
        }
        if args.wait && !dry_run {
            waiting::until_ready(cluster, &key, 300, out).await?;
        }
    }
    Ok(())
}

/// The image's last part as a name, made unique.
fn default_name(image: &str, id: &str) -> String {
    // Below the last slash: a registry's port has a colon too.
    let last = image.rsplit('/').next().unwrap_or_default();
    let base = last.split(['@', ':']).next().unwrap_or_default();
    let base: String = base
        .chars()
        .map(|letter| {
            if letter.is_ascii_alphanumeric() {
                letter.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .collect();
    let base = base.trim_matches('-');
    format!(
        "{}-{}",
        if base.is_empty() { "pod" } else { base },
        id.chars().take(5).collect::<String>()
    )
}

fn pairs(words: &[String], flag: &str) -> Result<BTreeMap<String, String>, CtlError> {
    words
        .iter()
        .map(|word| match word.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(CtlError::Usage(format!("{flag} {word}: expected NAME=VALUE"))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_gives_its_name() {
        assert_eq!(
            default_name("registry.example:5000/team/Web_App:1.2", "0123456789ab"),
            "web-app-01234"
        );
        assert_eq!(default_name("busybox@sha256:00", "0123456789ab"), "busybox-01234");
        assert_eq!(default_name(":", "0123456789ab"), "pod-01234");
    }
}
