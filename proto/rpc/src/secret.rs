//! Debug of answers that hold a token, without it.

use std::fmt;

use crate::v1::{CreateServiceAccountTokenResponse, PodTokenResponse};

impl fmt::Debug for CreateServiceAccountTokenResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateServiceAccountTokenResponse")
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for PodTokenResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PodTokenResponse")
            .field("life_seconds", &self.life_seconds)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_debug_print_has_no_token() {
        let answer = CreateServiceAccountTokenResponse {
            token: "hunter2".to_owned(),
            expires: None,
        };
        assert!(!format!("{answer:?}").contains("hunter2"));
        let answer = PodTokenResponse {
            token: "hunter2".to_owned(),
            life_seconds: 600,
        };
        assert!(!format!("{answer:?}").contains("hunter2"));
    }
}
