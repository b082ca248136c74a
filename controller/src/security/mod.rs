//! Who is who: the embedded CA, certificates, their rotation and revocation, TLS listeners, join tokens, tokens of service
//! accounts.
//!
//! There is no plain-text mode. A role stands in a certificate's organization and only the CA, which the controllers
//! hold, puts it there; nothing that a request for a certificate asks for is taken over but its key.

pub(crate) mod account_token;
pub mod ca;
pub mod identity;
pub mod join;
pub mod listen;
pub mod live;
pub mod revoked;
pub mod token;

/// A random UUID: request ids, uids, the cluster's id.
pub fn new_uuid() -> String {
    let random = random_bytes();
    uuid::Builder::from_random_bytes(random).into_uuid().to_string()
}

/// Seconds since 1970, for validity checks.
pub fn unix_now() -> u64 {
    crate::clock::now().as_secs()
}

#[cfg(not(feature = "simulation"))]
fn random_bytes<const N: usize>() -> [u8; N] {
    let mut random = [0; N];
    getrandom::fill(&mut random).expect("the kernel has random bytes once it has booted");
    random
}

/// Ids decide orders: in a simulation they come from its seed.
#[cfg(feature = "simulation")]
fn random_bytes<const N: usize>() -> [u8; N] {
    crate::simulated::random_bytes()
}

#[cfg(test)]
mod account_token_test;
#[cfg(test)]
mod certificate_test;
