//! Certificates that are refused.

use proto::state::v1::command::Kind as Body;
use proto::state::v1::{Command, Revocation};
use state::State;

use crate::support::*;

fn revoke(now: i64, identity: &str, until: i64, expires: i64) -> Command {
    let revocation = Revocation {
        identity: identity.to_owned(),
        issued_until: Some(time(until)),
        expires: Some(time(expires)),
    };
    command(now, Body::Revocation(revocation))
}

fn known(state: &State) -> Vec<(&str, i64)> {
    let all = state.revocations().values();
    all.map(|one| (one.identity.as_str(), one.issued_until.unwrap().seconds))
        .collect()
}

#[test]
fn of_two_revocations_the_later_counts() {
    let mut state = cluster();
    applied(&state.apply(&revoke(0, "ann", 5_000, 90_000)));
    applied(&state.apply(&revoke(0, "system:node:n1", 5_000, 60_000)));
    applied(&state.apply(&revoke(0, "ann", 3_000, 95_000)));
    assert_eq!(known(&state), [("ann", 5), ("system:node:n1", 5)]);
    applied(&state.apply(&revoke(60_000, "ann", 60_000, 150_000)));
    assert_eq!(known(&state), [("ann", 60), ("system:node:n1", 5)]);
    assert_eq!(refused(&state.apply(&revoke(0, "", 5_000, 90_000))).0, "Invalid");
    let endless = Revocation {
        expires: None,
        identity: "bob".to_owned(),
        issued_until: Some(time(1)),
    };
    assert_eq!(
        refused(&state.apply(&command(0, Body::Revocation(endless)))).0,
        "Invalid"
    );
}

#[test]
fn revocations_are_bounded_and_part_of_a_snapshot() {
    let mut state = cluster();
    for number in 0..10_000 {
        applied(&state.apply(&revoke(0, &format!("user{number}"), 5_000, 90_000)));
    }
    assert_eq!(
        refused(&state.apply(&revoke(0, "ann", 5_000, 90_000))).0,
        "Forbidden"
    );
    applied(&state.apply(&revoke(0, "user7", 6_000, 90_000)));
    let copy = State::decode(state.encode()).unwrap();
    assert_eq!(copy.revocations(), state.revocations());
    // Room again.
    applied(&state.apply(&revoke(90_000, "ann", 90_000, 180_000)));
    assert_eq!(known(&state), [("ann", 90)]);
}
