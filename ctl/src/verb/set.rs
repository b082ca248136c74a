//! `ctl set image KIND/NAME CONTAINER=IMAGE...`: the images of a Deployment's or a Pod's containers.

use clap::Subcommand;
use proto::v1::object::Object as Any;
use proto::v1::{Object, PodSpec};

use crate::cluster::Cluster;
use crate::error::CtlError;
use crate::output::Output;
use crate::{change, target};

/// Arguments of `ctl set`.
#[derive(clap::Args)]
pub(crate) struct Set {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Set the images of containers
    Image {
        /// The Deployment or Pod, as deployment/web, then CONTAINER=IMAGE; * for every container
        #[arg(required = true, value_name = "KIND/NAME CONTAINER=IMAGE")]
        words: Vec<String>,
        /// server: let the cluster decide everything and change nothing
        #[arg(long, value_name = "WHERE", value_parser = ["server", "none"], default_value = "none")]
        dry_run: String,
    },
}

/// Sets and says so.
pub(crate) async fn run(args: Set, cluster: &Cluster, out: &mut Output) -> Result<(), CtlError> {
    let What::Image { words, dry_run } = args.what;
    let first = words
        .iter()
        .position(|word| word.contains('='))
        .unwrap_or(words.len());
    let (resources, pairs) = words.split_at(first);
    let key = target::one(resources, &cluster.namespace)?;
    let pairs = pairs.iter().map(|word| match word.split_once('=') {
        Some((container, image)) if !container.is_empty() && !image.is_empty() => {
            Ok((container.to_owned(), image.to_owned()))
        }
        _ => Err(CtlError::Usage(format!("`{word}` is not CONTAINER=IMAGE"))),
    });
    let pairs: Vec<(String, String)> = pairs.collect::<Result<_, _>>()?;
    if pairs.is_empty() {
        return Err(CtlError::Usage("say which image: CONTAINER=IMAGE".to_owned()));
    }
    let dry_run = dry_run == "server";
    let set = |object: &mut Object| images(object, &pairs);
    let changed = change::one(cluster, &key, "set image", dry_run, set).await?;
    let suffix = if dry_run { " (server dry run)" } else { "" };
    if changed {
        out.line(format_args!("{} image updated{suffix}", target::shown(&key)))?;
    }
    Ok(())
}

fn images(object: &mut Object, pairs: &[(String, String)]) -> Result<(), CtlError> {
    let spec =
        pod_spec(object).ok_or_else(|| CtlError::refused("only Deployments and Pods have images to set"))?;
    for (name, image) in pairs {
        let mut found = false;
        let containers = spec.init_containers.iter_mut().chain(&mut spec.containers);
        for container in containers.filter(|container| name == "*" || container.name == *name) {
            container.image.clone_from(image);
            found = true;
        }
        if !found {
            return Err(CtlError::refused(format!("there is no container named `{name}`")));
        }
    }
    Ok(())
}

fn pod_spec(object: &mut Object) -> Option<&mut PodSpec> {
    match &mut object.object {
        Some(Any::Pod(pod)) => pod.spec.as_mut(),
        Some(Any::Deployment(deployment)) => deployment.spec.as_mut()?.template.as_mut()?.spec.as_mut(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proto::v1::{Container, Pod};

    use super::*;

    #[test]
    fn images_are_set_by_container_and_by_star() {
        let container = |name: &str| Container {
            name: name.to_owned(),
            image: "old:1".to_owned(),
            ..Container::default()
        };
        let spec = PodSpec {
            init_containers: vec![container("first")],
            containers: vec![container("a"), container("b")],
            ..PodSpec::default()
        };
        let mut pod = Object {
            object: Some(Any::Pod(Pod {
                spec: Some(spec),
                ..Pod::default()
            })),
        };
        let pair = |name: &str, image: &str| [(name.to_owned(), image.to_owned())];
        images(&mut pod, &pair("b", "new:2")).unwrap();
        let of = |pod: &mut Object| {
            let spec = pod_spec(pod).unwrap();
            let all = spec.init_containers.iter().chain(&spec.containers);
            all.map(|container| container.image.clone()).collect::<Vec<_>>()
        };
        assert_eq!(of(&mut pod), ["old:1", "old:1", "new:2"]);
        images(&mut pod, &pair("*", "new:3")).unwrap();
        assert_eq!(of(&mut pod), ["new:3", "new:3", "new:3"]);
        assert!(images(&mut pod, &pair("c", "new:2")).is_err());
        assert!(images(&mut Object::default(), &pair("*", "new:2")).is_err());
    }
}
