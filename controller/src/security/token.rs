//! Join tokens on the controllers' side: made, stored as a hash, checked.

use proto::state::v1::Token;
use rpc::token::JoinToken;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::random_bytes;

/// What a token lets its bearer become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A controller.
    Member,
    /// A node.
    Node,
}

/// How long a token lasts when nothing is asked for.
pub const LIFE_SECONDS: u32 = 60 * 60;
/// The longest that may be asked for: a week.
pub const LIFE_SECONDS_MAX: u32 = 7 * 24 * 60 * 60;
/// Most uses of one token: a rack being set up.
pub const USES_MAX: u32 = 1000;

impl Role {
    /// As in the schema.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Node => "node",
        }
    }

    /// From the schema.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "member" => Some(Self::Member),
            "node" => Some(Self::Node),
            _ => None,
        }
    }
}

/// Why a token does not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefused {
    /// Unknown id or wrong secret: the same answer for both.
    #[error("the join token is not known: was it revoked, or made by another cluster?")]
    Unknown,
    /// Its time is over.
    #[error("the join token has expired; make a new one with `ctl token create`")]
    Expired,
    /// It was used as often as it may be.
    #[error("the join token was already used; make a new one with `ctl token create`")]
    Used,
    /// It is for another role.
    #[error("the join token is for a {role}")]
    Role {
        /// Which.
        role: String,
    },
    /// It is bound to another name.
    #[error("the join token is bound to the name `{name}`")]
    Name {
        /// Which.
        name: String,
    },
}

/// Makes a token; the second half is what the replicated state stores.
pub fn create(
    role: Role,
    name: &str,
    life_seconds: u32,
    uses: u32,
    ca_sha256: [u8; 32],
    now: u64,
) -> (JoinToken, Token) {
    let random: [u8; 26] = random_bytes();
    let (id, secret) = random.split_at(10);
    // 32 letters, so that each of them is as likely.
    let id = id
        .iter()
        .map(|b| char::from(b"abcdefghijkmnpqrstuvwxyz23456789"[usize::from(b % 32)]))
        .collect();
    let token = JoinToken {
        id,
        secret: hex::encode(secret),
        ca_sha256,
    };
    let at = |seconds: u64| pbjson_types::Timestamp {
        seconds: seconds as i64,
        nanos: 0,
    };
    let stored = Token {
        id: token.id.clone(),
        secret_hash: hash(&token.id, &token.secret).to_vec(),
        role: role.as_str().to_owned(),
        name: name.to_owned(),
        expires: Some(at(now + u64::from(life_seconds))),
        uses_left: uses,
        created: Some(at(now)),
    };
    (token, stored)
}

/// With 128 random bits in the secret one round of a plain hash is enough.
fn hash(id: &str, secret: &str) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(b"bulkhead join token\0");
    hasher.update(id.as_bytes());
    hasher.update(b"\0");
    hasher.update(secret.as_bytes());
    hasher.finalize().into()
}

/// Checks a presented token against the stored one with its id. The use itself is counted by the command `UseToken`.
pub fn check(
    stored: Option<&Token>,
    presented: &JoinToken,
    role: Role,
    name: &str,
    now: u64,
) -> Result<(), TokenRefused> {
    let expected = hash(&presented.id, &presented.secret);
    let stored = stored.filter(|stored| bool::from(stored.secret_hash.as_slice().ct_eq(&expected)));
    let Some(stored) = stored else {
        return Err(TokenRefused::Unknown);
    };
    if stored.role != role.as_str() {
        return Err(TokenRefused::Role {
            role: stored.role.clone(),
        });
    }
    if !stored.name.is_empty() && stored.name != name {
        return Err(TokenRefused::Name {
            name: stored.name.clone(),
        });
    }
    let expires = stored
        .expires
        .as_ref()
        .map_or(0, |time| time.seconds.max(0) as u64);
    if now >= expires {
        return Err(TokenRefused::Expired);
    }
    if stored.uses_left == 0 {
        return Err(TokenRefused::Used);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_opens_for_its_role_name_and_time_only() {
        let (token, stored) = create(Role::Node, "n1", 3600, 1, [1; 32], 1000);
        let token: JoinToken = token.to_string().parse().unwrap();
        let at = |now| check(Some(&stored), &token, Role::Node, "n1", now);
        assert_eq!(at(1000), Ok(()));
        assert_eq!(at(4599), Ok(()));
        assert_eq!(at(4600), Err(TokenRefused::Expired));
        assert!(matches!(
            check(Some(&stored), &token, Role::Member, "n1", 1000),
            Err(TokenRefused::Role { role }) if role == "node"
        ));
        assert!(matches!(
            check(Some(&stored), &token, Role::Node, "n2", 1000),
            Err(TokenRefused::Name { name }) if name == "n1"
        ));
        let used = Token {
            uses_left: 0,
            ..stored.clone()
        };
        assert_eq!(
            check(Some(&used), &token, Role::Node, "n1", 1000),
            Err(TokenRefused::Used)
        );
    }

    #[test]
    fn a_wrong_secret_and_an_unknown_id_get_one_answer() {
        let (token, stored) = create(Role::Node, "", 3600, 1, [1; 32], 1000);
        let (other, _) = create(Role::Node, "", 3600, 1, [1; 32], 1000);
        let forged = JoinToken {
            secret: other.secret.clone(),
            ..token
        };
        assert_eq!(
            check(Some(&stored), &forged, Role::Node, "n", 1000),
            Err(TokenRefused::Unknown)
        );
        assert_eq!(
            check(None, &other, Role::Node, "n", 1000),
            Err(TokenRefused::Unknown)
        );
    }

    #[test]
    fn the_secret_is_not_stored() {
        let (token, stored) = create(Role::Node, "", 3600, 1, [1; 32], 1000);
        assert!(!format!("{stored:?}").contains(&token.secret));
        assert_eq!(stored.secret_hash.len(), 32);
    }
}
