//! A container's image: on the node already, or from its registry.

use std::sync::Arc;
use std::time::Instant;

use proto::v1::Pod;
use runtime::monitor::chain;
use tokio_util::task::AbortOnDropHandle;

use super::backoff::Backoff;
use crate::image::{Image, normalize};
use crate::node::Node;

/// Why there is no image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ImageFailure {
    /// ErrImagePull, ErrImageNeverPull, InvalidImageName.
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// A container's image as its pod's actor has it.
#[derive(Debug, Default)]
pub(super) enum Fetched {
    #[default]
    Wanted,
    Pulling {
        /// Ends with the wish for the image.
        _task: AbortOnDropHandle<()>,
    },
    Here(Arc<Image>),
    Failed(ImageFailure),
}

/// What a look at the node's own images says.
pub(super) enum Look {
    Here(Box<Image>),
    Pull,
    Failed(ImageFailure),
}

/// Looks for an image on the node, as its pull policy wants it.
pub(super) fn look(node: &Node, pod: &Pod, reference: &str, policy: &str) -> Look {
    if let Err(reason) = normalize(reference) {
        return Look::Failed(ImageFailure {
            reason: "InvalidImageName",
            message: format!("Failed to apply default image tag \"{reference}\": {reason}"),
        });
    }
    if policy == "Always" {
        return Look::Pull;
    }
    match node.images.resolve(reference) {
        Ok(Some(image)) => {
            let message = format!("Container image \"{reference}\" already present on machine");
            node.events.record(pod, "Normal", "Pulled", message);
            Look::Here(Box::new(image))
        }
        Ok(None) if policy == "Never" => Look::Failed(ImageFailure {
            reason: "ErrImageNeverPull",
            message: format!("Container image \"{reference}\" is not present with pull policy of Never"),
        }),
        Ok(None) => Look::Pull,
        Err(error) => Look::Failed(ImageFailure {
            reason: "ErrImagePull",
            message: chain(&error),
        }),
    }
}

/// Pulls an image.
pub(super) async fn pull(node: &Node, pod: &Pod, reference: &str) -> Result<Image, ImageFailure> {
    let message = format!("Pulling image \"{reference}\"");
    node.events.record(pod, "Normal", "Pulling", message);
    let began = Instant::now();
    match node.images.pull(reference, &node.registries).await {
        Ok(image) => {
            let took = began.elapsed().as_millis();
            let message = format!("Successfully pulled image \"{reference}\" in {took}ms");
            node.events.record(pod, "Normal", "Pulled", message);
            Ok(image)
        }
        Err(error) => {
            let message = format!("Failed to pull image \"{reference}\": {}", chain(&error));
            let reason = error.reason();
            node.events.record(pod, "Warning", "Failed", message.clone());
            node.events
                .record(pod, "Warning", "Failed", format!("Error: {reason}"));
            Err(ImageFailure { reason, message })
        }
    }
}

/// What a container that waits for its image says: the failure itself at first, then that it backs off.
pub(super) fn waiting(reference: &str, failure: &ImageFailure, backoff: &Backoff) -> (String, String) {
    if failure.reason == "ErrImagePull" && backoff.delay_ms > 1_000 {
        let seconds = backoff.delay_ms / 1_000;
        let message = format!(
            "back-off {seconds}s pulling image \"{reference}\": {}",
            failure.message
        );
        return ("ImagePullBackOff".to_owned(), message);
    }
    (failure.reason.to_owned(), failure.message.clone())
}

/// `NAME@sha256:...`
pub(super) fn id(image: &Image) -> String {
    let name = image.reference.split('@').next().unwrap_or_default();
    let slash = name.rfind('/').map_or(0, |at| at + 1);
    let end = name[slash..].find(':').map_or(name.len(), |at| slash + at);
    format!("{}@{}", &name[..end], image.digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_images_id_is_its_name_with_the_digest() {
        let image = |reference: &str| Image {
            reference: reference.into(),
            digest: "sha256:ab".into(),
            config: Default::default(),
            layers: Vec::new(),
            size_bytes: 0,
            created_ms: 0,
        };
        for (reference, expected) in [
            ("docker.io/library/hello:1", "docker.io/library/hello@sha256:ab"),
            (
                "127.0.0.1:5000/team/hello:1",
                "127.0.0.1:5000/team/hello@sha256:ab",
            ),
            ("h:5000/x@sha256:cd", "h:5000/x@sha256:ab"),
        ] {
            assert_eq!(id(&image(reference)), expected);
        }
    }

    #[test]
    fn a_pull_that_fails_again_says_that_it_backs_off() {
        let failure = ImageFailure {
            reason: "ErrImagePull",
            message: "registry 127.0.0.1:1 refused".into(),
        };
        let mut backoff = Backoff::default();
        backoff.failed(0);
        assert_eq!(waiting("x", &failure, &backoff).0, "ErrImagePull");
        backoff.failed(0);
        let (reason, message) = waiting("x", &failure, &backoff);
        assert_eq!(reason, "ImagePullBackOff");
        assert!(message.starts_with("back-off 2s") && message.contains("127.0.0.1:1"));
        let never = ImageFailure {
            reason: "ErrImageNeverPull",
            ..failure
        };
        assert_eq!(waiting("x", &never, &backoff).0, "ErrImageNeverPull");
    }
}
