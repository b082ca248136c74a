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
    ("seal", &[]),
    ("sys", &[]),
    ("runtime", &["sys"]),
    ("agent", &["model", "proto", "rpc", "runtime", "sys"]),
    ("controller", &["model", "proto", "rpc", "seal", "state", "sys"]),
    ("base2histogram", &[]),
    ("ctl", &["model", "proto", "rpc", "seal", "state"]),
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

fn page() -> String {
    std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md")
}

/// The words between single backticks.
fn code_spans(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The rows of the table below `heading`, each as its two cells.
fn table<'a>(page: &'a str, heading: &str) -> Vec<(&'a str, &'a str)> {
    let section = page
        .split("\n## ")
        .find(|section| section.starts_with(heading))
        .expect("the section");
    let rows = section.lines().filter(|line| line.starts_with("| "));
    rows.filter_map(|line| line.trim_matches('|').split_once('|'))
        .map(|(left, right)| (left.trim(), right.trim()))
        .skip(1) // the heading; the rule below it begins with `|-`
        .collect()
}

#[test]
fn the_page_names_only_paths_that_are_there() {
    let page = page();
    let mut count = 0;
    for span in code_spans(&page) {
        let first = span.split('/').next().unwrap_or_default();
        let ends_as_path = [".rs", ".md", ".toml", ".proto", "/"]
            .iter()
            .any(|end| span.ends_with(end));
        let is_path = span.contains('/') && !span.contains(' ') && root().join(first).is_dir();
        if !is_path && !ends_as_path {
            continue;
        }
        count += 1;
        let path = match span.split_once("/*") {
            Some((directory, _)) => directory,
            None => span,
        };
        assert!(
            root().join(path).exists(),
            "ARCHITECTURE.md names `{span}`, which is not there"
        );
    }
    assert!(count > 30, "only {count} paths found: the search is broken");
}

#[test]
fn the_pages_import_table_is_the_cargo_metadata() {
    let page = page();
    let imports = imports(&metadata());
    let told: BTreeMap<String, BTreeSet<String>> = table(&page, "Who imports whom")
        .into_iter()
        .map(|(name, list)| {
            let list = code_spans(list).into_iter().map(str::to_owned).collect();
            (name.trim_matches('`').to_owned(), list)
        })
        .collect();
    assert_eq!(told, imports);
}

#[test]
fn every_guard_that_the_page_names_is_a_test() {
    let page = page();
    let mut sources = String::new();
    collect_sources(&root(), &mut sources);
    let rows = table(&page, "What always holds");
    assert!(
        rows.len() > 10,
        "only {} rows found: the search is broken",
        rows.len()
    );
    for (promise, guard) in rows {
        let name = guard.trim_matches('`');
        if guard.starts_with("the lint") {
            continue;
        }
        assert!(
            sources.contains(&format!("fn {name}(")),
            "`{promise}` is guarded by no test `{name}`"
        );
    }
}

/// The text of every source file of ours.
fn collect_sources(directory: &Path, all: &mut String) {
    for entry in std::fs::read_dir(directory).expect("a directory").flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() && name != "target" && name != ".git" {
            collect_sources(&path, all);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all.push_str(&std::fs::read_to_string(&path).expect("a source file"));
        }
    }
}
