//! Join tokens: made, used, revoked.

use std::sync::Arc;

use prost::Message;
use proto::state::v1::token_change::Change;
use proto::state::v1::{Token, TokenChange, UseToken};

use super::{Reason, Refusal, Trial, refuse};
use crate::record::millis;

/// Tokens kept; more than any cluster has joins in an hour. What has expired is dropped first.
const TOKENS_MAX: usize = 10_000;
/// Bytes of one token: an id, a hash, a name.
const TOKEN_BYTES_MAX: usize = 1024;

impl Trial {
    pub(super) fn token(&mut self, change: &TokenChange) -> Result<(), Refusal> {
        match &change.change {
            Some(Change::Create(token)) => self.create_token(token),
            Some(Change::Use(usage)) => self.use_token(usage),
            Some(Change::Revoke(id)) => match self.state.tokens.remove(id) {
                Some(_) => Ok(()),
                None => refuse(Reason::NotFound, "the token does not exist"),
            },
            None => refuse(Reason::Invalid, "the change of a token says nothing"),
        }
    }

    fn create_token(&mut self, token: &Token) -> Result<(), Refusal> {
        let role = matches!(token.role.as_str(), "member" | "node");
        if token.id.is_empty()
            || token.secret_hash.is_empty()
            || !role
            || token.encoded_len() > TOKEN_BYTES_MAX
        {
            return refuse(
                Reason::Invalid,
                "a token needs an id, a hash and the role member or node",
            );
        }
        if self.state.tokens.contains_key(&token.id) {
            return refuse(Reason::AlreadyExists, "the token exists already");
        }
        if self.state.tokens.len() >= TOKENS_MAX {
            let now = millis(Some(&self.time));
            self.state.tokens = std::mem::take(&mut self.state.tokens)
                .into_iter()
                .filter(|(_, token)| !expired(token, now))
                .collect();
            if self.state.tokens.len() >= TOKENS_MAX {
                return refuse(
                    Reason::Forbidden,
                    format!("there are {TOKENS_MAX} tokens; revoke some"),
                );
            }
        }
        self.state
            .tokens
            .insert(token.id.clone(), Arc::new(token.clone()));
        Ok(())
    }

    fn use_token(&mut self, usage: &UseToken) -> Result<(), Refusal> {
        let Some(token) = self.state.tokens.get(&usage.id).cloned() else {
            return refuse(Reason::NotFound, "the token is unknown or was revoked");
        };
        if expired(&token, millis(Some(&self.time))) {
            return refuse(Reason::Expired, "the token has expired");
        }
        if token.uses_left == 0 {
            return refuse(Reason::Forbidden, "the token has been used");
        }
        if token.role != usage.role {
            return refuse(
                Reason::Forbidden,
                format!("the token is for a {}, not for a {}", token.role, usage.role),
            );
        }
        if !token.name.is_empty() && token.name != usage.name {
            return refuse(
                Reason::Forbidden,
                format!("the token is for {}, not for {}", token.name, usage.name),
            );
        }
        let mut used = token.as_ref().clone();
        used.uses_left -= 1;
        self.state.tokens.insert(usage.id.clone(), Arc::new(used));
        Ok(())
    }
}

/// A token without an end has none.
fn expired(token: &Token, now: i64) -> bool {
    token.expires.as_ref().is_some_and(|end| millis(Some(end)) <= now)
}
