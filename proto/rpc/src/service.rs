//! What every service of ours does beside its work: it tells the service manager that started it, if one did, that it is
//! ready, that it stops, that it still answers (sd_notify(3), sd_watchdog_enabled(3)); and it stays small.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// When memory is given back for the first time: what only the start needs has run.
const START: Duration = Duration::from_secs(5);
/// How often memory is given back that work has left: seldom against what it costs, some hundred pages mapped again.
const GIVE_BACK_EVERY: Duration = Duration::from_secs(30);

/// Gives back what work has left in memory, again and again: most of what a service holds is its own code, used once at the
/// start or for some calls. `failed` hears why it could not.
pub async fn stay_small(give_back: fn() -> io::Result<()>, failed: impl Fn(io::Error)) -> Infallible {
    tokio::time::sleep(START).await;
    loop {
        give_back().unwrap_or_else(&failed);
        tokio::time::sleep(GIVE_BACK_EVERY).await;
    }
}

/// Tells the service manager; nothing to do where there is none.
pub fn notify(state: &str) -> io::Result<()> {
    match std::env::var_os("NOTIFY_SOCKET") {
        Some(path) => send(&path, state),
        None => Ok(()),
    }
}

fn send(path: &OsStr, state: &str) -> io::Result<()> {
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(path)?,
    };
    UnixDatagram::unbound()?
        .send_to_addr(state.as_bytes(), &address)
        .map(drop)
}

/// Says again and again that this process answers, where the manager's unit asks for it. `failed` hears why one could not
/// be told.
pub async fn watchdog(failed: impl Fn(io::Error)) -> Infallible {
    let told = |name| std::env::var(name).ok();
    let Some(every) = interval(told("WATCHDOG_USEC"), told("WATCHDOG_PID"), std::process::id()) else {
        return std::future::pending().await;
    };
    loop {
        tokio::time::sleep(every).await;
        // A task of its own: it is done only while the runtime's workers take up tasks.
        let told = tokio::spawn(async { notify("WATCHDOG=1") }).await;
        told.unwrap_or_else(|cause| Err(io::Error::other(cause)))
            .unwrap_or_else(&failed);
    }
}

/// A third of the time after which the manager ends a process that is silent: one word may be late. None when it does not
/// ask this process.
fn interval(microseconds: Option<String>, process: Option<String>, own: u32) -> Option<Duration> {
    let whole: u64 = microseconds?.parse().ok()?;
    let ours = process.is_none_or(|process| process.parse() == Ok(own));
    (ours && whole > 0).then(|| Duration::from_micros(whole) / 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_process_that_is_asked_says_that_it_answers() {
        let text = |text: &str| Some(text.to_owned());
        let third = Some(Duration::from_secs(20));
        assert_eq!(interval(text("60000000"), text("7"), 7), third);
        assert_eq!(interval(text("60000000"), None, 7), third);
        assert_eq!(interval(text("60000000"), text("8"), 7), None, "it was inherited");
        assert_eq!(interval(None, None, 7), None);
        assert_eq!(interval(text("0"), None, 7), None);
        assert_eq!(interval(text("x"), None, 7), None);
    }

    #[test]
    fn the_manager_hears_what_is_told() {
        let name = format!("bulkhead-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        send(OsStr::new(&format!("@{name}")), "READY=1").unwrap();
        let mut heard = [0; 16];
        let count = manager.recv(&mut heard).unwrap();
        assert_eq!(&heard[..count], b"READY=1");
        assert!(send(OsStr::new("/no/such/socket"), "READY=1").is_err());
    }
}
