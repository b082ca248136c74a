//! Who may import whom, and that ARCHITECTURE.md says it as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

/// Every crate of the workspace with the crates of the workspace that it may import.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("model", &["proto"]),
    ("rpc", &["proto"]),
    ("state", &["model", "proto"]),
    ("sys", &[]),
    ("runtime", &["sys"]),
    ("agent", &["model", "proto", "rpc", "runtime", "sys"]),
    ("controller", &["model", "proto", "rpc", "state"]),
    ("ctl", &["model", "proto", "rpc"]),
    (
        "tests",
        &[
            "agent",
            "controller",
            "ctl",
            "model",
            "proto",
            "rpc",
            "runtime",
            "state",
            "sys",
        ],
    ),
];

/// What a crate must not reach, not even through another one; each would break what the crate is for.
const MUST_NOT_REACH: &[(&str, &[&str])] = &[
    // Pure: the same commands give the same state on every member.
    (
        "state",
        &["tokio", "openraft", "rand", "getrandom", "tonic", "nix"],
    ),
    // One thread: a process with threads must not fork into Rust code.
    (
        "runtime",
        &["tokio", "tonic", "prost", "proto", "model", "rpc", "openraft"],
    ),
    ("model", &["tokio", "tonic", "openraft"]),
];

fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().expect("the workspace").to_owned()
}

fn metadata() -> Metadata {
    let mut command = MetadataCommand::new();
    command.manifest_path(root().join("Cargo.toml"));
    // Platforms of no interest would only bring crates that are never compiled.
    command.other_options(vec![
        "--locked".to_owned(),
        "--filter-platform".to_owned(),
        "x86_64-unknown-linux-gnu".to_owned(),
    ]);
    command.exec().expect("cargo metadata")
}

/// Each member with the members that it imports, for building and for testing.
fn imports(metadata: &Metadata) -> BTreeMap<String, BTreeSet<String>> {
    let members: BTreeSet<&str> = metadata
        .workspace_packages()
        .iter()
        .map(|package| package.name.as_str())
        .collect();
    let mut imports = BTreeMap::new();
    for package in metadata.workspace_packages() {
        let names = package
            .dependencies
            .iter()
            .map(|dependency| dependency.name.as_str());
        let of_ours = names.filter(|name| members.contains(name)).map(str::to_owned);
        imports.insert(package.name.to_string(), of_ours.collect());
    }
    imports
}

/// Everything that is compiled into `name`, without what only its tests use.
fn reach(metadata: &Metadata, name: &str) -> BTreeSet<String> {
    let resolve = metadata.resolve.as_ref().expect("a resolved graph");
    let mut open: Vec<_> = metadata
        .workspace_packages()
        .into_iter()
        .filter(|package| package.name == name)
        .map(|package| package.id.clone())
        .collect();
    let mut seen = BTreeSet::new();
    while let Some(id) = open.pop() {
        for dependency in resolve
            .nodes
            .iter()
            .filter(|node| node.id == id)
            .flat_map(|node| &node.deps)
        {
            let normal = dependency
                .dep_kinds
                .iter()
                .any(|kind| kind.kind == DependencyKind::Normal);
            if normal && seen.insert(dependency.pkg.clone()) {
                open.push(dependency.pkg.clone());
            }
        }
    }
    seen.iter().map(|id| metadata[id].name.to_string()).collect()
}

#[test]
fn crates_import_only_what_the_design_allows() {
    let imports = imports(&metadata());
    let known: BTreeSet<&str> = MAY_IMPORT.iter().map(|(name, _)| *name).collect();
    let members: BTreeSet<&str> = imports.keys().map(String::as_str).collect();
    assert_eq!(
        members, known,
        "each crate of the workspace needs its line in MAY_IMPORT"
    );
    for (name, allowed) in MAY_IMPORT {
        for import in &imports[*name] {
            assert!(
                allowed.contains(&import.as_str()),
                "{name} must not import {import}"
            );
        }
    }
}

#[test]
fn pure_and_small_crates_reach_nothing_that_breaks_their_promise() {
    let metadata = metadata();
    for (name, forbidden) in MUST_NOT_REACH {
        let reached = reach(&metadata, name);
        for crate_name in *forbidden {
            assert!(!reached.contains(*crate_name), "{name} reaches {crate_name}");
        }
    }
    // The kernel is asked in one place: nothing but the bindings below the unsafe code.
    let third_party = reach(&metadata, "sys");
    let allowed = ["libc", "nix", "bitflags", "cfg-if", "memoffset"];
    for name in &third_party {
        assert!(allowed.contains(&name.as_str()), "sys reaches {name}");
    }
}
