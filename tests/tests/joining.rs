//! Who gets into a cluster: one token, one machine; nobody else.

use std::process::Command;

use tests::cluster::Output;
use tests::{Cluster, can_run, machine};

/// `bulkhead-agent join` with directories of its own.
fn join(cluster: &Cluster, name: &str, token: &str) -> Output {
    let directory = cluster.directory().join(name);
    let output = Command::new(machine::binaries().join("bulkhead-agent"))
        .args([
            "join",
            "--server",
            "10.89.0.1:7443",
            "--name",
            name,
            "--token",
            token,
        ])
        .arg("--data-dir")
        .arg(directory.join("data"))
        .arg("--config-dir")
        .arg(directory.join("config"))
        .output()
        .expect("bulkhead-agent");
    Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

#[test]
fn a_token_lets_one_machine_in_and_no_other() {
    if !can_run("a_token_lets_one_machine_in_and_no_other", &["ip", "nft"]) {
        return;
    }
    let cluster = Cluster::up_with(1, 1, &[]);
    let create = |words: &[&str]| {
        let words = [&["token", "create"], words].concat();
        cluster.ok(&words).trim().to_owned()
    };
    let token = create(&[]);
    let first = join(&cluster, "first", &token);
    assert_eq!(first.code, 0, "{}", first.stderr);
    let again = join(&cluster, "again", &token);
    assert_ne!(again.code, 0, "a token for one use was used twice");
    assert!(again.stderr.contains("token"), "{}", again.stderr);

    let bound = create(&["--name", "chosen"]);
    assert_ne!(
        join(&cluster, "other", &bound).code,
        0,
        "a token for one name let another in"
    );
    assert_eq!(join(&cluster, "chosen", &bound).code, 0);

    let member = create(&["--role", "member"]);
    assert_ne!(
        join(&cluster, "spy", &member).code,
        0,
        "a member's token let a node in"
    );

    let garbage = join(&cluster, "spy", "bh1.not.a.token");
    assert_ne!(garbage.code, 0);
    assert!(garbage.stderr.contains("token"), "{}", garbage.stderr);

    // The last part of a token is the hash of the CA that is trusted.
    let token = create(&[]);
    let (head, hash) = token.rsplit_once('.').expect("a hash");
    let digit = if hash.starts_with('0') { '1' } else { '0' };
    let foreign = join(&cluster, "spy", &format!("{head}.{digit}{}", &hash[1..]));
    assert_ne!(foreign.code, 0, "a controller with another CA was trusted");
    println!("another CA: {}", foreign.stderr);
    // A refused machine has used nothing up.
    assert_eq!(join(&cluster, "honest", &token).code, 0);
}

#[test]
fn an_agent_without_root_says_so() {
    if !can_run("an_agent_without_root_says_so", &["setpriv"]) {
        return;
    }
    // Where anyone may read it: the clone may be in a home directory.
    let directory = tempfile::tempdir().expect("a directory");
    let agent = directory.path().join("bulkhead-agent");
    std::fs::copy(machine::binaries().join("bulkhead-agent"), &agent).expect("a copy");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(directory.path(), open).expect("permissions");
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .arg(&agent)
        .arg("run")
        .output()
        .expect("setpriv");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(text.contains("root"), "{text}");
}
