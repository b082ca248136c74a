//! The program under test: the static one that users get, where `BULKHEAD_BIN` names its directory as in tests/run; else
//! cargo's.

use std::sync::LazyLock;

static RUNTIME: LazyLock<String> = LazyLock::new(|| {
    let built = std::env::var("BULKHEAD_BIN").map(|bin| format!("{bin}/bulkhead-runtime"));
    built.unwrap_or_else(|_| env!("CARGO_BIN_EXE_bulkhead-runtime").to_owned())
});

/// Its path.
pub(crate) fn runtime() -> &'static str {
    &RUNTIME
}
