//! Images from a real registry server and from archives that other tools made.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tests::cluster::text;
use tests::{Cluster, SmallDisk, can_run, wait_for};

const TOOLS: &[&str] = &[
    "ip",
    "nft",
    "docker-registry",
    "skopeo",
    "umoci",
    "openssl",
    "perl",
];

#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.output().expect("a program of the machine");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// An OCI layout of the examples' image, made by umoci.
fn layout(cluster: &Cluster) -> PathBuf {
    let directory = cluster.directory();
    let (tree, layout) = (directory.join("tree"), directory.join("layout"));
    run(Command::new(tests::machine::root().join("deploy/hello-image")).arg(&tree));
    let image = format!("{}:1", layout.display());
    run(Command::new("umoci").args(["init", "--layout"]).arg(&layout));
    run(Command::new("umoci").args(["new", "--image", &image]));
    run(Command::new("umoci")
        .args(["insert", "--image", &image])
        .arg(&tree)
        .arg("/"));
    run(Command::new("umoci").args([
        "config",
        "--image",
        &image,
        "--config.cmd",
        "sleep",
        "--config.cmd",
        "3600",
    ]));
    layout
}

fn skopeo() -> Command {
    let mut command = Command::new("skopeo");
    command.args(["--insecure-policy", "copy", "--quiet"]);
    command
}

/// A registry server inside a node's network, ended on drop.
struct Registry {
    child: Child,
    netns: PathBuf,
}

impl Registry {
    /// On the node's loopback; `http` and `auth` are further lines of its configuration.
    fn start(cluster: &Cluster, port: u16, http: &str, auth: &str) -> Self {
        let directory = cluster.directory().join(format!("registry-{port}"));
        std::fs::create_dir(&directory).expect("a directory");
        let config = directory.join("config.yml");
        let storage = directory.join("storage");
        let lines = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\nhttp:\n  addr: 127.0.0.1:{port}\n{http}{auth}",
            storage.display()
        );
        std::fs::write(&config, lines).expect("a configuration");
        let netns = PathBuf::from(format!("/run/bulkhead/{}/netns/node-1", cluster.name));
        let child = enter(&netns, "docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .spawn()
            .expect("docker-registry");
        let registry = Self { child, netns };
        wait_for("the registry", Duration::from_secs(20), || {
            // Whatever it answers, it listens.
            let address = format!("http://127.0.0.1:{port}/");
            let answer = enter(&registry.netns, "curl")
                .args(["-s", "-o", "/dev/null", &address])
                .status();
            let code = answer.expect("curl").code();
            (code == Some(0) || code == Some(52)).then_some(())
        });
        registry
    }

    fn push(&self, layout: &Path, more: &[&str], target: &str) {
        let mut command = enter(&self.netns, "skopeo");
        command.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]);
        run(command
            .args(more)
            .arg(format!("oci:{}:1", layout.display()))
            .arg(format!("docker://{target}")));
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Our own child, which is not waited for anywhere else: its id is still its own.
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait().map(drop)) {
            eprintln!("docker-registry: {error}");
        }
    }
}

/// A program inside a network namespace.
fn enter(netns: &Path, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", netns.display()))
        .arg("--")
        .arg(program);
    command
}

fn pod(name: &str, image: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
         containers:\n    - name: main\n      image: {image}\n"
    )
}

/// Waits for a pod that cannot pull and returns what it says.
fn refusal(cluster: &Cluster, name: &str) -> String {
    wait_for("the refusal", Duration::from_secs(60), || {
        let pod = cluster.get(&format!("pod/{name}"));
        let waiting = pod.pointer("/status/containerStatuses/0/state/waiting").cloned();
        let waiting = waiting.unwrap_or(Value::Null);
        ["ErrImagePull", "ImagePullBackOff"]
            .contains(&&*text(&waiting, "/reason"))
            .then(|| text(&waiting, "/message"))
    })
}

#[test]
fn a_plain_registry_on_loopback_serves_by_tag_and_digest() {
    if !can_run("a_plain_registry_on_loopback_serves_by_tag_and_digest", TOOLS) {
        return;
    }
    let cluster = Cluster::up_with(1, 1, &[]);
    let layout = layout(&cluster);
    let registry = Registry::start(&cluster, 5000, "", "");
    registry.push(&layout, &[], "127.0.0.1:5000/team/hello:1");
    cluster.apply(&pod("tag", "127.0.0.1:5000/team/hello:1"));
    let ready = cluster.ready("tag");
    let id = text(&ready, "/status/containerStatuses/0/imageID");
    assert!(id.contains("sha256:"), "imageID `{id}`");
    let mut inspect = enter(&registry.netns, "skopeo");
    inspect.args(["inspect", "--tls-verify=false", "--format", "{{.Digest}}"]);
    let digest = run(inspect.arg("docker://127.0.0.1:5000/team/hello:1"));
    cluster.apply(&pod("digest", &format!("127.0.0.1:5000/team/hello@{digest}")));
    cluster.ready("digest");
    cluster.apply(&pod("absent", "127.0.0.1:5000/team/absent:1"));
    let message = refusal(&cluster, "absent");
    assert!(message.contains("team/absent"), "{message}");
}

#[test]
fn a_registry_over_tls_wants_its_ca_and_credentials() {
    if !can_run("a_registry_over_tls_wants_its_ca_and_credentials", TOOLS) {
        return;
    }
    let cluster = Cluster::up_with(1, 1, &[]);
    let layout = layout(&cluster);
    let directory = cluster.directory();
    let (key, certificate) = (directory.join("key.pem"), directory.join("certificate.pem"));
    let mut openssl = Command::new("openssl");
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]);
    openssl.args(["-subj", "/CN=registry", "-addext", "subjectAltName=IP:127.0.0.1"]);
    // Trusted for itself: a certificate of an authority is refused as a server's own.
    openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    run(openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate));
    // bcrypt is the only form that the server takes, and crypt(3) has it.
    let hash = run(Command::new("perl").args([
        "-e",
        r#"print crypt("open sesame", "\$2y\$05\$abcdefghijklmnopqrstuu")"#,
    ]));
    let passwords = directory.join("htpasswd");
    std::fs::write(&passwords, format!("ali:{hash}\n")).expect("a file");
    let tls = format!(
        "  tls: {{certificate: {}, key: {}}}\n",
        certificate.display(),
        key.display()
    );
    let auth = format!(
        "auth:\n  htpasswd: {{realm: cave, path: {}}}\n",
        passwords.display()
    );
    let registry = Registry::start(&cluster, 5443, &tls, &auth);
    registry.push(
        &layout,
        &["--dest-creds", "ali:open sesame"],
        "127.0.0.1:5443/hello:1",
    );
    let image = "127.0.0.1:5443/hello:1";

    cluster.apply(&pod("stranger", image));
    let message = refusal(&cluster, "stranger");
    assert!(message.contains("certificate"), "without its CA: {message}");

    let trusted = format!("/var/lib/bulkhead/{}/node-1/config/registries", cluster.name);
    let host = Path::new(&trusted).join("127.0.0.1:5443");
    std::fs::create_dir_all(&host).expect("a directory");
    std::fs::copy(&certificate, host.join("ca.crt")).expect("a copy");
    cluster.apply(&pod("nobody", image));
    let message = refusal(&cluster, "nobody");
    assert!(
        ["401", "nauthori", "credentials"]
            .iter()
            .any(|word| message.contains(word)),
        "without credentials: {message}"
    );
    let config = r#"{"auths": {"127.0.0.1:5443": {"username": "ali", "password": "open sesame"}}}"#;
    std::fs::write(Path::new(&trusted).join("config.json"), config).expect("a file");
    cluster.apply(&pod("ali", image));
    cluster.ready("ali");
    // The one that was refused tries again by itself.
    cluster.ready("nobody");
    drop(registry);
}

#[test]
fn archives_of_other_tools_are_imported() {
    if !can_run("archives_of_other_tools_are_imported", TOOLS) {
        return;
    }
    let cluster = Cluster::up_with(1, 1, &[]);
    let layout = layout(&cluster);
    for (name, transport) in [("oci", "oci-archive"), ("docker", "docker-archive")] {
        let archive = cluster.directory().join(format!("{name}.tar"));
        let target = format!("{transport}:{}:{name}.example/hello:1", archive.display());
        run(skopeo().arg(format!("oci:{}:1", layout.display())).arg(target));
        let reference = format!("{name}.example/hello:1");
        cluster.ok(&["image", "import", &archive.display().to_string(), &reference]);
        assert!(cluster.ok(&["image", "ls"]).contains(&reference));
        cluster.apply(&pod(name, &reference));
        cluster.ready(name);
    }
}

#[test]
fn a_layer_that_fills_the_disk_is_refused_and_the_rest_goes_on() {
    if !can_run(
        "a_layer_that_fills_the_disk_is_refused_and_the_rest_goes_on",
        TOOLS,
    ) {
        return;
    }
    let cluster = Cluster::up_with(1, 1, &[]);
    cluster.kill("node-1");
    let [_, data, _] = tests::leaks::directories(&cluster.name);
    let disk = SmallDisk::over(&Path::new(&data).join("node-1/data"), "32m");
    cluster.bring_up();
    wait_for("the node to take images", Duration::from_secs(30), || {
        let image = cluster.directory().join("hello-image");
        run(Command::new(tests::machine::root().join("deploy/hello-image")).arg(&image));
        let import = cluster.ctl(&["image", "import", &image.display().to_string(), "hello:1"]);
        (import.code == 0).then_some(())
    });
    let sleeping = |name: &str| pod(name, "hello:1") + "      command: [sleep, \"3600\"]\n";
    cluster.apply(&sleeping("before"));
    cluster.ready("before");
    let free = disk.free();

    // Its archive has a few MiB and fits; what it unpacks to does not.
    let (layout, big) = (layout(&cluster), cluster.directory().join("big"));
    std::fs::create_dir(&big).expect("a directory");
    let dice = std::fs::read("/proc/sys/kernel/random/uuid").expect("random bytes");
    let noise: Vec<u8> = (0..4u32 << 20)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8 ^ dice[0])
        .collect();
    std::fs::write(big.join("noise"), noise).expect("a file");
    // Not of zeros, which would take no room.
    std::fs::write(big.join("ones"), vec![1; 64 << 20]).expect("a file");
    let image = format!("{}:1", layout.display());
    run(Command::new("umoci")
        .args(["insert", "--image", &image])
        .arg(&big)
        .arg("/big"));
    let archive = cluster.directory().join("big.tar");
    let target = format!("oci-archive:{}:big.example/hello:1", archive.display());
    run(skopeo().arg(format!("oci:{image}")).arg(target));
    let reference = "big.example/hello:1";
    let refused = cluster.ctl(&["image", "import", &archive.display().to_string(), reference]);
    assert_eq!(refused.code, 1, "{}{}", refused.stdout, refused.stderr);
    assert!(
        refused.stderr.contains("No space left on device"),
        "{}",
        refused.stderr
    );
    assert!(!cluster.ok(&["image", "ls"]).contains("big"));
    // The layer below came whole and may stay for the next try; nothing of the other does.
    wait_for("what was unpacked to go", Duration::from_secs(20), || {
        (disk.free() + (3 << 20) >= free).then_some(())
    });

    cluster.apply(&sleeping("after"));
    cluster.ready("after");
    let before = cluster.ready("before");
    assert_eq!(
        before.pointer("/status/containerStatuses/0/restartCount"),
        Some(&0.into())
    );
    cluster.ok(&["delete", "pods", "before", "after"]);
    cluster.kill("node-1");
}
