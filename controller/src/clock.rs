//! The wall clock, for what people read and for plans: times come into the deciding parts as values.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX)
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
