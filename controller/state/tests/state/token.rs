//! Join tokens.

use proto::state::v1::command::Kind as Body;
use proto::state::v1::token_change::Change;
use proto::state::v1::{Command, Token, TokenChange, UseToken};

use crate::support::*;

fn change(now: i64, change: Change) -> Command {
    command(now, Body::Token(TokenChange { change: Some(change) }))
}

fn token(id: &str) -> Token {
    Token {
        id: id.to_owned(),
        secret_hash: vec![1; 32],
        role: "node".to_owned(),
        name: "n1".to_owned(),
        expires: Some(time(60_000)),
        uses_left: 1,
        created: Some(time(0)),
    }
}

fn usage(now: i64, id: &str, role: &str, name: &str) -> Command {
    change(
        now,
        Change::Use(UseToken {
            id: id.to_owned(),
            role: role.to_owned(),
            name: name.to_owned(),
        }),
    )
}

#[test]
fn a_token_is_for_one_role_one_name_and_one_use() {
    let mut state = cluster();
    applied(&state.apply(&change(0, Change::Create(token("t")))));
    assert_eq!(
        refused(&state.apply(&change(0, Change::Create(token("t"))))).0,
        "AlreadyExists"
    );
    assert_eq!(refused(&state.apply(&usage(1, "x", "node", "n1"))).0, "NotFound");
    assert_eq!(
        refused(&state.apply(&usage(1, "t", "member", "n1"))).0,
        "Forbidden"
    );
    assert_eq!(refused(&state.apply(&usage(1, "t", "node", "n2"))).0, "Forbidden");
    applied(&state.apply(&usage(1, "t", "node", "n1")));
    assert_eq!(
        refused(&state.apply(&usage(2, "t", "node", "n1"))),
        ("Forbidden".to_owned(), "the token has been used".to_owned())
    );
}

#[test]
fn an_expired_or_revoked_token_opens_nothing() {
    let mut state = cluster();
    applied(&state.apply(&change(0, Change::Create(token("t")))));
    assert_eq!(
        refused(&state.apply(&usage(60_000, "t", "node", "n1"))).0,
        "Expired"
    );
    applied(&state.apply(&change(1, Change::Revoke("t".to_owned()))));
    assert_eq!(refused(&state.apply(&usage(2, "t", "node", "n1"))).0, "NotFound");
    assert_eq!(
        refused(&state.apply(&change(3, Change::Revoke("t".to_owned())))).0,
        "NotFound"
    );
}

#[test]
fn a_token_without_a_hash_or_role_is_refused() {
    let mut state = cluster();
    let hashless = Token {
        secret_hash: Vec::new(),
        ..token("t")
    };
    let roleless = Token {
        role: "admin".to_owned(),
        ..token("t")
    };
    for token in [hashless, roleless] {
        assert_eq!(
            refused(&state.apply(&change(0, Change::Create(token)))).0,
            "Invalid"
        );
    }
}
