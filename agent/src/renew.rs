//! A new certificate before the old one ends, while everything goes on.

use std::sync::Arc;
use std::time::Duration;

use rpc::v1::RenewRequest;
use rpc::v1::node_client::NodeClient;

use crate::identity::{IdentityError, Request};
use crate::link::{Link, random};

/// The clock of the wall is looked at this often: it may be set, and sleep does not count the time of a suspended machine.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// After a failure; half a certificate's life is hours.
const RETRY: Duration = Duration::from_secs(60);
/// How long a controller may take to sign.
const RENEW_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
enum RenewError {
    #[error("failed to set up a channel")]
    Tls(#[from] rpc::tls::TlsError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("{}", .0.message())]
    Refused(tonic::Status),
    #[error("no answer within {} s", RENEW_TIMEOUT.as_secs())]
    Silent,
}

/// Renews at half of each certificate's life, until the task is dropped.
pub(crate) async fn run(link: Arc<Link>) {
    loop {
        let pause = match link.identity().validity() {
            Ok(validity) => {
                let now = jiff::Timestamp::now().as_second();
                match u64::try_from(validity.half() - now) {
                    Ok(left) if left > 0 => Duration::from_secs(left).min(LOOK_INTERVAL),
                    _ => attempt(&link, validity.end <= now).await,
                }
            }
            Err(reason) => {
                tracing::error!(reason, "the node's certificate is not readable");
                RETRY
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// One renewal; when to look again.
async fn attempt(link: &Link, expired: bool) -> Duration {
    match renew(link).await {
        Ok(()) => {
            tracing::info!("the node's certificate is renewed");
            Duration::ZERO
        }
        Err(error) => {
            let cause = runtime::monitor::chain(&error);
            if expired {
                let name = link.identity().name;
                tracing::error!(
                    cause,
                    "the node's certificate has expired; join again with a token from `ctl token create --name {name}`"
                );
            } else {
                tracing::warn!(cause, "failed to renew the node's certificate; trying again");
            }
            // Spread: after an outage all nodes are due at once.
            RETRY / 2 + Duration::from_millis(u64::from(random()) % (RETRY.as_millis() as u64))
        }
    }
}

async fn renew(link: &Link) -> Result<(), RenewError> {
    let request = Request::new()?;
    let mut client = NodeClient::new(link.channel(random() as usize)?);
    let call = client.renew(RenewRequest {
        csr: request.csr.clone(),
    });
    let answer = tokio::time::timeout(RENEW_TIMEOUT, call).await;
    let answer = answer
        .map_err(|_| RenewError::Silent)?
        .map_err(RenewError::Refused)?;
    let answer = answer.into_inner();
    link.update(|identity| {
        identity.certificate = answer.certificate;
        identity.ca = answer.ca;
        identity.key = request.key;
        if !answer.endpoints.is_empty() {
            identity.endpoints = answer.endpoints;
        }
    })?;
    Ok(())
}
