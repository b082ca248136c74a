//! How the allocator keeps what a process has given back.

use std::io;

/// Largest allocation that is kept for reuse: a larger one goes back to the kernel when it is freed. It is glibc's own
/// first value, which it raises, up to 32 MiB, with every larger allocation that is freed.
const KEPT_BYTES_MAX: libc::c_int = 128 << 10;
/// Heaps that threads share.
const ARENAS_MAX: libc::c_int = 2;

/// Keeps a long-lived process small between its bursts of work: few heaps, and what is freed of a burst goes back to the
/// kernel (mallopt(3)). To be called before threads are made.
pub fn keep_small() -> io::Result<()> {
    let settings = [
        (libc::M_ARENA_MAX, ARENAS_MAX),
        (libc::M_MMAP_THRESHOLD, KEPT_BYTES_MAX),
        (libc::M_TRIM_THRESHOLD, KEPT_BYTES_MAX),
    ];
    for (name, value) in settings {
        // SAFETY: mallopt takes two integers and changes how later allocations are served, not those that exist.
        if unsafe { libc::mallopt(name, value) } != 1 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_allocator_takes_the_settings() {
        super::keep_small().unwrap();
    }
}
