//! Join tokens as people carry them: `bh1.ID.SECRET.CAHASH`.
//!
//! The hash pins the cluster's CA, so that the first connection needs no trust but the token's. Only the controllers
//! check the secret; here is the text form alone.

use std::fmt;
use std::str::FromStr;

/// Longest token text that is looked at: ten times a real one.
pub const TOKEN_BYTES_MAX: usize = 1024;
/// Letters of an id.
const ID_LEN: usize = 10;
/// Hexadecimal digits of a secret: 128 bits.
const SECRET_LEN: usize = 32;

/// A join token, read.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Names the token in lists and logs; not secret.
    pub id: String,
    /// What proves possession; hexadecimal.
    pub secret: String,
    /// SHA-256 of the CA's SubjectPublicKeyInfo.
    pub ca_sha256: [u8; 32],
}

/// Why a text is no join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not four parts, or not ours.
    #[error("not a join token: expected bh1.ID.SECRET.CAHASH")]
    Form,
    /// A part is damaged.
    #[error("the join token's {part} is damaged: was it copied whole?")]
    Part {
        /// Which one.
        part: &'static str,
    },
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Form);
        }
        let mut parts = text.split('.');
        let (Some("bh1"), Some(id), Some(secret), Some(hash), None) = (
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        ) else {
            return Err(TokenError::Form);
        };
        if id.len() != ID_LEN || !id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
            return Err(TokenError::Part { part: "id" });
        }
        if secret.len() != SECRET_LEN || !secret.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(TokenError::Part { part: "secret" });
        }
        let mut ca_sha256 = [0; 32];
        hex::decode_to_slice(hash, &mut ca_sha256).map_err(|_| TokenError::Part { part: "CA hash" })?;
        Ok(Self {
            id: id.to_owned(),
            secret: secret.to_owned(),
            ca_sha256,
        })
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "bh1.{}.{}.{}",
            self.id,
            self.secret,
            hex::encode(self.ca_sha256)
        )
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("id", &self.id)
            .finish_non_exhaustive() // the secret stays out of logs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            id: "abcde01234".into(),
            secret: "0123456789abcdef0123456789abcdef".into(),
            ca_sha256: [7; 32],
        }
    }

    #[test]
    fn text_form_is_read_back() {
        assert_eq!(format!(" {}\n", token()).parse(), Ok(token()));
    }

    #[test]
    fn damaged_tokens_name_the_part() {
        let text = token().to_string();
        assert_eq!(
            text[..text.len() - 1].parse::<JoinToken>(),
            Err(TokenError::Part { part: "CA hash" })
        );
        assert_eq!("bh2.a.b.c".parse::<JoinToken>(), Err(TokenError::Form));
        assert_eq!("bh1.a.b.c.d".parse::<JoinToken>(), Err(TokenError::Form));
        assert_eq!(
            "bh1.A.b.c".parse::<JoinToken>(),
            Err(TokenError::Part { part: "id" })
        );
        assert_eq!(
            "bh1.abcde01234.b.c".parse::<JoinToken>(),
            Err(TokenError::Part { part: "secret" })
        );
        assert_eq!("x".repeat(5000).parse::<JoinToken>(), Err(TokenError::Form));
    }

    #[test]
    fn debug_form_keeps_the_secret() {
        assert!(!format!("{:?}", token()).contains("0123456789abcdef"));
    }
}
