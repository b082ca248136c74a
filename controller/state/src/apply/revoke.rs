//! Certificates that are refused before their end.

use std::sync::Arc;

use prost::Message;
use proto::state::v1::Revocation;

use super::{Reason, Refusal, Trial, refuse};
use crate::record::millis;

/// Revocations kept. Beyond, those are dropped whose certificates have all ended by themselves.
const REVOCATIONS_MAX: usize = 10_000;
/// Bytes of one: a name and two times.
const REVOCATION_BYTES_MAX: usize = 512;

impl Trial {
    pub(super) fn revoke(&mut self, revocation: &Revocation) -> Result<(), Refusal> {
        if revocation.identity.is_empty()
            || revocation.issued_until.is_none()
            || revocation.expires.is_none()
            || revocation.encoded_len() > REVOCATION_BYTES_MAX
        {
            return refuse(Reason::Invalid, "a revocation needs an identity and two times");
        }
        let now = millis(Some(&self.time));
        let until = |revocation: &Revocation| millis(revocation.issued_until.as_ref());
        let kept = &self.state.revocations;
        match kept.get(&revocation.identity) {
            Some(known) if until(known) >= until(revocation) => return Ok(()),
            None if kept.len() >= REVOCATIONS_MAX => {
                let all = std::mem::take(&mut self.state.revocations).into_iter();
                let kept = all.filter(|(_, kept)| millis(kept.expires.as_ref()) > now);
                self.state.revocations = kept.collect();
            }
            _ => {}
        }
        let kept = &mut self.state.revocations;
        if kept.len() >= REVOCATIONS_MAX && !kept.contains_key(&revocation.identity) {
            return refuse(
                Reason::Forbidden,
                format!("{REVOCATIONS_MAX} revocations are in force; the first has to run out"),
            );
        }
        kept.insert(revocation.identity.clone(), Arc::new(revocation.clone()));
        Ok(())
    }
}
