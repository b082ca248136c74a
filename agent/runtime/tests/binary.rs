//! Alone in its file: it begins the test's own program anew.

#![allow(clippy::unwrap_used)] // a test that fails

/// CVE-2019-5736: whoever opens our file through /proc comes to a read-only mount, also once it no longer runs.
#[test]
fn protected_program_cannot_be_opened_for_writing() {
    runtime::binary::protect().unwrap();
    let error = std::fs::OpenOptions::new()
        .write(true)
        .truncate(true)
        .open("/proc/self/exe")
        .unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    runtime::binary::protect().unwrap(); // it knows
}
