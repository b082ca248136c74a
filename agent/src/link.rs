//! The way to the controllers: the identity as it is now, and channels made with it.

use std::path::PathBuf;

use rpc::tls::{ENDPOINTS_MAX, TlsError};
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::identity::{Identity, IdentityError};

/// One for the process, in an `Arc`.
#[derive(Debug)]
pub(crate) struct Link {
    config_dir: PathBuf,
    identity: watch::Sender<Identity>,
}

impl Link {
    pub(crate) fn load(config_dir: PathBuf) -> Result<Self, IdentityError> {
        let identity = Identity::load(&config_dir)?;
        Ok(Self {
            config_dir,
            identity: watch::Sender::new(identity),
        })
    }

    pub(crate) fn identity(&self) -> Identity {
        self.identity.borrow().clone()
    }

    /// Tells of renewals and of controllers that come and go.
    pub(crate) fn changes(&self) -> watch::Receiver<Identity> {
        self.identity.subscribe()
    }

    /// A new channel; its first try is the endpoint of this number, counted round.
    pub(crate) fn channel(&self, first: usize) -> Result<Channel, TlsError> {
        let identity = self.identity.borrow();
        let endpoints = rotated(&identity.endpoints, first);
        rpc::tls::channel(
            &endpoints,
            &identity.ca,
            Some((&identity.certificate, &identity.key)),
        )
    }

    /// Changes what is known, on disk first.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Identity)) -> Result<(), IdentityError> {
        let mut identity = self.identity();
        change(&mut identity);
        if *self.identity.borrow() == identity {
            return Ok(());
        }
        identity.save(&self.config_dir)?;
        self.identity.send_replace(identity);
        Ok(())
    }
}

fn rotated(endpoints: &[String], first: usize) -> Vec<String> {
    let mut all = endpoints.to_vec();
    if !all.is_empty() {
        let count = all.len();
        all.rotate_left(first % count);
    }
    all.truncate(ENDPOINTS_MAX);
    all
}

/// A number that differs from node to node and from time to time, for jitter.
pub(crate) fn random() -> u32 {
    let mut bytes = [0; 4];
    match getrandom::fill(&mut bytes) {
        Ok(()) => u32::from_le_bytes(bytes),
        // Jitter only: the process's id differs between nodes, too.
        Err(_) => std::process::id().wrapping_mul(2_654_435_761),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_try_begins_at_another_controller() {
        let all: Vec<String> = ["a", "b", "c"].map(str::to_owned).into();
        assert_eq!(rotated(&all, 1), ["b", "c", "a"]);
        assert_eq!(rotated(&all, 5), ["c", "a", "b"]);
        assert!(rotated(&[], 5).is_empty());
    }
}
