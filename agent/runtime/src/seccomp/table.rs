//! The default profile as a page for operators.

use std::collections::BTreeMap;

use super::calls::{ALLOWED, BY_CAPABILITY, Group, REFUSED};
use crate::capability;

const HEAD: &str = "\
# The default seccomp profile

Made from the profile's own tables (`agent/runtime/src/seccomp/calls.rs`); a test compares. It is a list of what is allowed: a
call that is not listed here, one of a newer kernel say, answers ENOSYS. What is refused answers EPERM. In a container with a
capability the calls named beside it are allowed too; each other layer still applies to them. All of it holds for calls by
the numbers of x86-64, x86 and x32 alike.

`seccompProfile: {type: Unconfined}` takes the profile away.

| call | answer | why |
|---|---|---|
";

/// Calls that their arguments decide, with the tables of `profile`.
const BY_ARGUMENT: [(&str, &str, &str); 3] = [
    (
        "clone",
        "allowed without new namespaces; with them by CAP_SYS_ADMIN",
        "threads and processes need it; clone3 hides its flags in memory and answers ENOSYS, upon which C libraries take clone",
    ),
    (
        "personality",
        "allowed for Linux, 32 bit Linux, both without address randomisation, and the query",
        "other personalities bring old, hardly tested kernel code back",
    ),
    (
        "socket",
        "allowed for unix, IPv4, IPv6, netlink and packet sockets",
        "the other families are kernel code that hardly any program needs; socketcall, which hides the family, is refused",
    ),
];

/// The whole page, in Markdown.
pub fn table() -> String {
    let mut rows: BTreeMap<&str, (String, &str)> = BTreeMap::new();
    let mut add = |groups: &[Group], answer: &str| {
        for (why, names) in groups {
            for name in names.split_whitespace() {
                rows.insert(name, (answer.to_owned(), why));
            }
        }
    };
    add(&ALLOWED, "allowed");
    add(&REFUSED, "EPERM");
    for (capability, names) in BY_CAPABILITY {
        for name in names.split_whitespace() {
            let (answer, _) = rows.entry(name).or_insert((
                "ENOSYS".to_owned(),
                "newer form of a refused call: with ENOSYS programs take the older one",
            ));
            let but = if answer.contains("CAP_") {
                " or"
            } else {
                "; allowed by"
            };
            let needed = capability::names(1 << capability::number(capability));
            answer.push_str(&format!("{but} {}", needed.concat()));
        }
    }
    for (name, answer, why) in BY_ARGUMENT {
        rows.insert(name, (answer.to_owned(), why));
    }
    let rows = rows
        .iter()
        .map(|(name, (answer, why))| format!("| {name} | {answer} | {why} |\n"));
    HEAD.to_owned() + &rows.collect::<String>()
}
