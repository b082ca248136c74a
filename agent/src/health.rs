//! What the agent knows of its own health, for metrics.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

/// Counters and states; written by the session, read by metrics.
#[derive(Debug, Default)]
pub(crate) struct Health {
    connected: AtomicBool,
    sessions: AtomicU64,
    /// Seconds since 1970.
    granted: AtomicI64,
    calls: AtomicU64,
}

impl Health {
    pub(crate) fn connected(&self) {
        self.connected.store(true, Ordering::Relaxed);
        self.sessions.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn disconnected(&self) {
        self.connected.store(false, Ordering::Relaxed);
    }

    pub(crate) fn granted(&self) {
        self.granted
            .store(jiff::Timestamp::now().as_second(), Ordering::Relaxed);
    }

    pub(crate) fn called(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    pub(crate) fn sessions(&self) -> u64 {
        self.sessions.load(Ordering::Relaxed)
    }

    pub(crate) fn last_granted(&self) -> u64 {
        u64::try_from(self.granted.load(Ordering::Relaxed)).unwrap_or_default()
    }

    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }
}
