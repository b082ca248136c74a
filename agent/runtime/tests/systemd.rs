//! `--systemd-cgroup` with a real bus between us and a service that answers in systemd's place: needs root, dbus-daemon
//! and busybox (static). systemd itself is asked in a virtual machine, by `tests/vm/steps/systemd-cgroup`.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod bundle;
mod engine;
mod program;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};

use bundle::Bundle;
use engine::Daemon;
use runtime::cgroup::{Cgroup, Layout};
use runtime::systemd::wire::{Kind, Message, PREFIX_BYTES, Properties, Value, Writer};
use serde_json::{Value as Json, json};

const BUS: &str = "<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen>\
    <auth>EXTERNAL</auth><policy context=\"default\"><allow user=\"*\"/><allow own=\"*\"/>\
    <allow send_destination=\"*\"/><allow receive_sender=\"*\"/></policy></busconfig>";

const SCRIPT: &str =
    "mkdir -p /run/systemd/system /run/dbus && dbus-daemon --config-file=bus.conf --nofork --nopidfile";

/// A client of the bus, as simple as one can be.
struct Client {
    stream: UnixStream,
    serial: u32,
}

impl Client {
    fn new(socket: &Path) -> Client {
        let stream = UnixStream::connect(socket).unwrap();
        let mut client = Client { stream, serial: 0 };
        client
            .stream
            .write_all(b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n")
            .unwrap();
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            client.stream.read_exact(&mut byte).unwrap();
            line.push(byte[0]);
        }
        client.bus("Hello", Writer::default());
        client
    }

    fn send(&mut self, mut message: Message) {
        self.serial += 1;
        message.serial = self.serial;
        self.stream.write_all(&message.encode()).unwrap();
    }

    /// None at the bus's end.
    fn receive(&mut self) -> Option<Message> {
        let mut prefix = [0; PREFIX_BYTES];
        self.stream.read_exact(&mut prefix).ok()?;
        let mut bytes = vec![0; Message::length(&prefix).unwrap()];
        bytes[..PREFIX_BYTES].copy_from_slice(&prefix);
        self.stream.read_exact(&mut bytes[PREFIX_BYTES..]).ok()?;
        Some(Message::decode(&bytes).unwrap())
    }

    fn bus(&mut self, member: &str, body: Writer) {
        let mut message = Message::new(Kind::Call).with(body);
        message.path = "/org/freedesktop/DBus".into();
        message.interface = "org.freedesktop.DBus".into();
        message.member = member.into();
        message.destination = "org.freedesktop.DBus".into();
        self.send(message);
        while self.receive().unwrap().kind != Kind::Reply {}
    }

    fn job_removed(&mut self, to: &str, job: &str, unit: &str, result: &str) {
        let body = Writer::default().number(7).path(job).text(unit).text(result);
        let mut signal = Message::new(Kind::Signal).with(body);
        signal.path = "/org/freedesktop/systemd1".into();
        signal.interface = "org.freedesktop.systemd1.Manager".into();
        signal.member = "JobRemoved".into();
        signal.destination = to.into();
        self.send(signal);
    }
}

/// What the service was asked, and how it is to answer.
#[derive(Default)]
struct Asked {
    units: BTreeMap<String, Properties>,
    changed: Vec<Properties>,
    calls: Vec<String>,
    /// A unit of that name has failed and was not forgotten.
    remembered: bool,
    /// How the next job ends; `done` when empty.
    result: String,
}

fn answer(call: &Message, asked: &mut Asked) -> Result<Writer, &'static str> {
    let mut body = call.reader();
    asked.calls.push(call.member.clone());
    let unknown = "org.freedesktop.systemd1.NoSuchUnit";
    let job = || Writer::default().path("/org/freedesktop/systemd1/job/7");
    match call.member.as_str() {
        "Subscribe" => Ok(Writer::default()),
        "StartTransientUnit" => {
            assert_eq!(call.signature, "ssa(sv)a(sa(sv))");
            let name = body.text().unwrap().to_owned();
            assert_eq!(body.text().unwrap(), "replace");
            if asked.remembered || asked.units.contains_key(&name) {
                return Err("org.freedesktop.systemd1.UnitExists");
            }
            asked.units.insert(name, body.properties().unwrap());
            Ok(job())
        }
        "StopUnit" => asked
            .units
            .remove(body.text().unwrap())
            .map(|_| job())
            .ok_or(unknown),
        "ResetFailedUnit" => std::mem::take(&mut asked.remembered)
            .then(Writer::default)
            .ok_or(unknown),
        "SetUnitProperties" => {
            assert_eq!(call.signature, "sba(sv)");
            assert!(asked.units.contains_key(body.text().unwrap()));
            assert_eq!(body.u32().unwrap(), 1, "until the next boot");
            asked.changed.push(body.properties().unwrap());
            Ok(Writer::default())
        }
        other => panic!("{other} is not systemd's"),
    }
}

/// Answers until the bus ends. Somebody else on the bus claims before that each job had failed.
fn serve(mut service: Client, mut impostor: Client, asked: &Mutex<Asked>) {
    while let Some(call) = service.receive() {
        if call.kind != Kind::Call {
            continue;
        }
        let mut asked = asked.lock().unwrap();
        let answered = answer(&call, &mut asked);
        let result = std::mem::take(&mut asked.result);
        let has_job = answered.as_ref().is_ok_and(|body| *body != Writer::default());
        let mut reply = match answered {
            Ok(body) => Message::new(Kind::Reply).with(body),
            Err(name) => {
                let mut error =
                    Message::new(Kind::Error).with(Writer::default().text("as the test wants it"));
                error.error = name.into();
                error
            }
        };
        reply.reply_serial = call.serial;
        reply.destination.clone_from(&call.sender);
        let job = "/org/freedesktop/systemd1/job/7";
        impostor.job_removed(&call.sender, job, "x.scope", "failed");
        service.send(reply);
        if has_job {
            service.job_removed("", "/org/freedesktop/systemd1/job/6", "other.scope", "failed");
            service.job_removed(
                "",
                job,
                "x.scope",
                if result.is_empty() { "done" } else { &result },
            );
        } else {
            asked.result = result;
        }
    }
}

struct Machine {
    bundle: Bundle,
    asked: Arc<Mutex<Asked>>,
    service: Option<std::thread::JoinHandle<()>>,
    daemon: Option<Daemon>,
    slice: String,
}

impl Machine {
    fn new(test: &str, script: &str) -> Option<Machine> {
        if !engine::installed(test, &["dbus-daemon", "nsenter", "setpriv"]) {
            return None;
        }
        let temp = engine::directory();
        fs::write(temp.path().join("bus.conf"), BUS).unwrap();
        let daemon = Daemon::new(test, temp, script);
        let slice = format!("bulkheadtest{}{}.slice", std::process::id(), test.len());
        let mut bundle = Bundle::new(test, "echo started; exec sleep 1000");
        bundle.cgroup = Path::new("/").join(&slice);
        bundle.change(|config| {
            config["linux"]["cgroupsPath"] = json!(format!("{slice}:test:c"));
            config["linux"]["resources"] = json!({
                "devices": [{ "allow": false, "access": "rwm" }],
                "memory": { "limit": 64 << 20 },
                "pids": { "limit": 30 },
            });
        });
        Some(Machine {
            bundle,
            asked: Arc::default(),
            service: None,
            daemon: Some(daemon),
            slice,
        })
    }

    /// Takes systemd's place on the bus.
    fn serve(&mut self) {
        let socket = self
            .daemon
            .as_ref()
            .unwrap()
            .inside("/run/dbus/system_bus_socket");
        // Not the machine's own, which is there until the script has mounted over it.
        let theirs = fs::metadata("/run/dbus/system_bus_socket").map(|socket| (socket.dev(), socket.ino()));
        engine::wait_for("the bus", || {
            let ours = fs::metadata(&socket).map(|socket| (socket.dev(), socket.ino()));
            ours.is_ok_and(|ours| theirs.as_ref().ok() != Some(&ours)) && UnixStream::connect(&socket).is_ok()
        });
        let mut service = Client::new(&socket);
        service.bus(
            "RequestName",
            Writer::default().text("org.freedesktop.systemd1").number(4),
        );
        let impostor = Client::new(&socket);
        let asked = Arc::clone(&self.asked);
        self.service = Some(std::thread::spawn(move || serve(service, impostor, &asked)));
    }

    fn asked(&self) -> std::sync::MutexGuard<'_, Asked> {
        self.asked.lock().unwrap()
    }

    fn call(&self, words: &[&str]) -> Output {
        let out = fs::File::create(self.bundle.path().join("out")).unwrap();
        let mut command = self.daemon.as_ref().unwrap().client(engine::runtime());
        command
            .arg("--systemd-cgroup")
            .arg("--root")
            .arg(self.bundle.path().join("state"))
            .args(words)
            .args((words[0] == "create").then(|| format!("--bundle={}", self.bundle.path().display())))
            // Not a pipe: a container keeps it.
            .stdout(out.try_clone().unwrap())
            .stderr(Stdio::from(out));
        let status = command.status().unwrap();
        let stdout = fs::read(self.bundle.path().join("out")).unwrap();
        Output {
            status,
            stdout,
            stderr: Vec::new(),
        }
    }

    #[track_caller]
    fn succeed(&self, words: &[&str]) -> String {
        let (code, text) = engine::outcome(self.call(words));
        assert_eq!(code, 0, "{words:?}: {text}");
        text
    }

    fn cgroup(&self) -> Cgroup {
        let path = Path::new("/").join(&self.slice).join("test-c.scope");
        Cgroup::open(&Layout::detect().unwrap(), &path).unwrap()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // With the bus goes the service's thread.
        drop(self.daemon.take());
        let served = self.service.take().map(std::thread::JoinHandle::join);
        if !std::thread::panicking() {
            served.map_or(Ok(()), |served| served).unwrap();
        }
    }
}

#[test]
fn systemd_is_asked_for_the_scope_told_its_limits_and_stops_it() {
    let test = "systemd_is_asked_for_the_scope_told_its_limits_and_stops_it";
    let Some(mut machine) = Machine::new(test, SCRIPT) else {
        return;
    };
    machine.serve();
    machine.asked().remembered = true;
    machine.succeed(&["create", "c"]);
    let properties = machine.asked().units["test-c.scope"].clone();
    let property = |name: &str| {
        let found = properties.iter().find(|(one, _)| one == name);
        found
            .unwrap_or_else(|| panic!("{name} not in {properties:?}"))
            .1
            .clone()
    };
    assert_eq!(property("Slice"), Value::Text(machine.slice.clone()));
    assert_eq!(property("Delegate"), Value::Flag(true));
    assert_eq!(property("DefaultDependencies"), Value::Flag(false));
    assert_eq!(property("CollectMode"), Value::Text("inactive-or-failed".into()));
    assert_eq!(property("TasksMax"), Value::Number(30));
    assert_eq!(property("DevicePolicy"), Value::Text("strict".into()));
    let memory = match Layout::detect().unwrap().is_v2() {
        true => "MemoryMax",
        false => "MemoryLimit",
    };
    assert_eq!(property(memory), Value::Number(64 << 20));
    let Value::Numbers(pids) = property("PIDs") else {
        panic!("{properties:?}");
    };
    // The process that held the scope has made place.
    let state: Json = serde_json::from_str(&machine.succeed(&["state", "c"])).unwrap();
    let inside: Vec<u32> = serde_json::from_str(&machine.succeed(&["ps", "-f", "json", "c"])).unwrap();
    assert_eq!(json!(inside), json!([state["pid"]]));
    assert!(
        pids.len() == 1 && !inside.contains(&pids[0]),
        "{pids:?} {inside:?}"
    );
    // The limits are in the kernel's files as exactly as without systemd.
    let file = |controller: &str, name: &str| {
        let text = fs::read_to_string(machine.cgroup().controller(controller).unwrap().join(name));
        text.unwrap().trim().to_owned()
    };
    assert_eq!(file("pids", "pids.max"), "30");
    machine.succeed(&["start", "c"]);
    machine.succeed(&["update", "--pids-limit", "40", "c"]);
    assert_eq!(file("pids", "pids.max"), "40");
    let told = vec![vec![("TasksMax".to_owned(), Value::Number(40))]];
    assert_eq!(machine.asked().changed, told);
    machine.succeed(&["exec", "c", "/bin/true"]);
    machine.succeed(&["delete", "--force", "c"]);
    assert!(machine.asked().units.is_empty() && !machine.cgroup().exists());
    let calls = machine.asked().calls.join(" ");
    assert!(
        calls.starts_with("Subscribe StartTransientUnit ResetFailedUnit StartTransientUnit "),
        "{calls}"
    );
    assert!(calls.ends_with("Subscribe StopUnit ResetFailedUnit"), "{calls}");
}

#[test]
fn a_scope_that_systemd_does_not_give_is_an_error_that_leaves_nothing() {
    let test = "a_scope_that_systemd_does_not_give_is_an_error_that_leaves_nothing";
    let Some(mut machine) = Machine::new(test, SCRIPT) else {
        return;
    };
    machine.serve();
    machine.asked().result = "timeout".into();
    let (code, text) = engine::outcome(machine.call(&["create", "c"]));
    assert!(code == 1 && text.contains("\"timeout\""), "{code} {text}");
    // Somebody else's scope is not ours to stop.
    machine.asked().units.insert("test-c.scope".into(), Vec::new());
    machine.asked().calls.clear();
    let (code, text) = engine::outcome(machine.call(&["create", "c"]));
    assert!(code == 1 && text.contains("UnitExists"), "{code} {text}");
    let calls = machine.asked().calls.join(" ");
    assert!(!calls.contains("StopUnit"), "{calls}");
    machine.asked().units.clear();
    machine
        .bundle
        .change(|config| config["linux"]["cgroupsPath"] = json!("/no/scope"));
    let (code, text) = engine::outcome(machine.call(&["create", "c"]));
    assert!(code == 1 && text.contains("slice:prefix:name"), "{code} {text}");
    assert_eq!(
        fs::read_dir(machine.bundle.path().join("state")).map_or(0, Iterator::count),
        0
    );
    assert!(!machine.cgroup().exists());
}

#[test]
fn without_systemd_its_cgroups_are_refused() {
    let test = "without_systemd_its_cgroups_are_refused";
    for (script, words) in [
        ("sleep 1000000", "systemd not running on this host"),
        (
            "mkdir -p /run/systemd/system && sleep 1000000",
            "connect to systemd",
        ),
    ] {
        let Some(machine) = Machine::new(test, script) else {
            return;
        };
        let told = engine::wait_for_output(words, || machine.call(&["create", "c"]));
        assert_eq!(told.status.code(), Some(1));
        let state = fs::read_dir(machine.bundle.path().join("state"));
        assert_eq!(state.map_or(0, Iterator::count), 0);
    }
}
