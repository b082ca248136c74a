//! The wall clock, for what people read, for plans and for certificates: times come into the deciding parts as values.

use std::time::Duration;
#[cfg(not(feature = "simulation"))]
use std::time::{SystemTime, UNIX_EPOCH};

/// Since 1970.
#[cfg(not(feature = "simulation"))]
pub(crate) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Since 1970, by the simulated clock of the member that runs.
#[cfg(feature = "simulation")]
pub(crate) fn now() -> Duration {
    crate::simulated::now()
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    i64::try_from(now().as_millis()).unwrap_or(i64::MAX)
}

/// As people and programs read it: `2026-01-31T10:00:00.5Z`.
pub(crate) fn text(now_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(now_ms).map_or_else(|_| now_ms.to_string(), |time| time.to_string())
}

/// As the schema has it.
pub(crate) fn timestamp(now_ms: i64) -> pbjson_types::Timestamp {
    let nanos = i32::try_from(now_ms.rem_euclid(1000) * 1_000_000).unwrap_or(0);
    pbjson_types::Timestamp {
        seconds: now_ms.div_euclid(1000),
        nanos,
    }
}
