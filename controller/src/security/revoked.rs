//! Certificates and tokens that are refused before their end.
//!
//! What is revoked is everything that an identity was issued up to a time: nobody has to know serial numbers, and a
//! certificate that was stolen unseen is covered too. A new one, issued later, is good. TLS lets a revoked certificate in,
//! so that each call can say why it is refused; connections that were open before are cut.

use std::sync::Arc;

use proto::state::v1::Revocation;
use state::{Revocations, State};
use tokio::sync::watch;

use super::ca::ADMIN_LIFE;
use super::identity::Authenticated;

/// Clocks of members may differ by this much: what one of them issued just before, as its own clock has it, is revoked too.
const CLOCKS_APART_SECONDS: u64 = 60;

/// What this member knows to be revoked; clones follow the same.
#[derive(Clone)]
pub struct Revoked {
    known: watch::Receiver<Revocations>,
}

impl Revoked {
    /// As a member tells it.
    pub fn new(known: watch::Receiver<Revocations>) -> Self {
        Self { known }
    }

    /// For listeners before there is a state.
    #[cfg(test)]
    pub(crate) fn nothing() -> Self {
        Self {
            known: watch::channel(Revocations::default()).1,
        }
    }

    /// Whether this certificate is revoked.
    pub fn includes(&self, certificate: &Authenticated) -> bool {
        let known = self.known.borrow();
        !known.is_empty() && covers(&known, &certificate.identity.to_string(), certificate.issued)
    }

    /// Until this certificate is revoked.
    pub(super) async fn wait_for(mut self, certificate: Arc<Authenticated>) {
        while !self.includes(&certificate) {
            if self.known.changed().await.is_err() {
                return std::future::pending().await; // this member stops
            }
        }
    }
}

/// Whether what an identity was issued at this time is revoked.
pub(crate) fn covers(known: &Revocations, identity: &str, issued: u64) -> bool {
    let revocation = known.get(identity);
    revocation.is_some_and(|revocation| issued <= issued_until(revocation))
}

fn issued_until(revocation: &Revocation) -> u64 {
    let seconds = revocation.issued_until.as_ref().map_or(0, |until| until.seconds);
    u64::try_from(seconds).unwrap_or(0)
}

/// What revokes all that this identity has been issued.
pub(crate) fn revocation(identity: &str, now: u64) -> Revocation {
    let until = now + CLOCKS_APART_SECONDS;
    let timestamp = |seconds| {
        Some(proto::Timestamp {
            seconds: i64::try_from(seconds).unwrap_or(i64::MAX),
            nanos: 0,
        })
    };
    Revocation {
        identity: identity.to_owned(),
        issued_until: timestamp(until),
        // No certificate of ours lasts longer than an administrator's.
        expires: timestamp(until + ADMIN_LIFE.as_secs()),
    }
}

/// When a new certificate is to be issued, for this to be good: after what was revoked.
pub(crate) fn issuing_time(state: &State, identity: &str, now: u64) -> u64 {
    match state.revocations().get(identity) {
        Some(revocation) => now.max(issued_until(revocation) + 1),
        None => now,
    }
}
