//! What a process holds of memory that it does not use now.

use std::io;

use crate::cvt_int;

/// Largest allocation that is kept for reuse: a larger one goes back to the kernel when it is freed. It is glibc's own
/// first value, which it raises, up to 32 MiB, with every larger allocation that is freed.
const KEPT_BYTES_MAX: libc::c_int = 128 << 10;
/// x86-64's.
const PAGE_BYTES: usize = 4096;
/// Stack below the caller that is given back: deeper than decoding a specification goes, far less than any stack's limit.
const STACK_BYTES: usize = 128 << 10;
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

/// A part of the program's file in memory that is never written to, as whole pages.
#[derive(Clone, Copy, Debug, Default)]
struct Segment {
    start: usize,
    bytes: usize,
    code: bool,
}

/// Parts of a program that are kept apart by their access: one of code, and one or two of constants.
const SEGMENTS_MAX: usize = 4;

/// What the kernel has mapped of the program and nobody writes to (elf(5)); the unused places of the array are empty.
fn program() -> [Segment; SEGMENTS_MAX] {
    let mut segments = [Segment::default(); SEGMENTS_MAX];
    // SAFETY: an integer.
    let table = unsafe { libc::getauxval(libc::AT_PHDR) } as usize;
    // SAFETY: an integer.
    let count = unsafe { libc::getauxval(libc::AT_PHNUM) } as usize;
    if table == 0 {
        return segments;
    }
    // SAFETY: getauxval(3): the address of the program's headers and their number. They are a part of the program's first
    // segment, which stays as long as the process and is never written to.
    let headers = unsafe { std::slice::from_raw_parts(table as *const libc::Elf64_Phdr, count) };
    // Where the file's address 0 is: elsewhere than at 0 for a program that runs at any place.
    let own = headers.iter().find(|header| header.p_type == libc::PT_PHDR);
    let base = own.map_or(0, |own| table - own.p_vaddr as usize);
    let unwritten = headers
        .iter()
        .filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0);
    for (segment, header) in segments.iter_mut().zip(unwritten) {
        let start = (base + header.p_vaddr as usize) / PAGE_BYTES * PAGE_BYTES;
        let end = (base + header.p_vaddr as usize + header.p_memsz as usize).next_multiple_of(PAGE_BYTES);
        *segment = Segment {
            start,
            bytes: end - start,
            code: header.p_flags & libc::PF_X != 0,
        };
    }
    segments
}

fn drop_pages(segment: Segment) -> io::Result<()> {
    // SAFETY: constants or code, mapped privately from the program's file and never written to (a program has no
    // relocations there), so that a page that is given back reads the same when it is touched again.
    let ret = unsafe {
        libc::madvise(
            segment.start as *mut libc::c_void,
            segment.bytes,
            libc::MADV_DONTNEED,
        )
    };
    cvt_int(ret).map(drop)
}

/// Gives back what earlier work has left in memory and the coming wait has no use for: what the allocator has free, the
/// part of the stack below, and the program's code. The kernel maps many pages of a file around each that is touched, so
/// that a process that has once started a container holds most of its file; what is needed again comes from the page
/// cache.
pub fn give_back() -> io::Result<()> {
    give_back_data();
    for segment in program() {
        drop_pages(segment)?;
    }
    Ok(())
}

/// The allocator's free memory and the stack's.
pub(crate) fn give_back_data() {
    // SAFETY: malloc_trim touches only what the allocator has free.
    unsafe { libc::malloc_trim(0) };
    give_back_stack();
}

/// What deeper calls have left below the caller. A function of its own, whose frame is just that part.
#[inline(never)]
fn give_back_stack() {
    let mut below = std::mem::MaybeUninit::<[u8; STACK_BYTES]>::uninit();
    let start = below.as_mut_ptr().addr().next_multiple_of(PAGE_BYTES);
    // SAFETY: whole pages of `below`, which holds nothing. An answer of no is none that matters: the pages stay.
    unsafe {
        libc::madvise(
            start as *mut libc::c_void,
            STACK_BYTES - PAGE_BYTES,
            libc::MADV_DONTNEED,
        )
    };
}

/// epoll_wait(2) in which the program's constants and code are not in memory, but for these instructions: both calls are
/// made here, as libc's functions for them lie each among other code, which would come back with them. Returns what
/// epoll_wait does.
#[inline(never)]
pub(crate) fn wait_without_code(
    epoll: libc::c_int,
    events: &mut [libc::epoll_event],
    timeout_ms: i32,
) -> io::Result<usize> {
    let segments = program();
    for segment in segments {
        if !segment.code {
            drop_pages(segment)?;
        }
    }
    let code = segments.into_iter().find(|segment| segment.code);
    let Segment { start, bytes, .. } = code.unwrap_or_default();
    let ret: isize;
    // SAFETY: of madvise as in `drop_pages`; its answer of no leaves the pages. The kernel writes to `events` as many as
    // they are. A system call changes rax, rcx and r11.
    unsafe {
        std::arch::asm!(
            "syscall",
            "mov eax, {epoll_wait}",
            "mov rdi, {epoll}",
            "mov rsi, {events}",
            "mov rdx, {count}",
            "syscall",
            epoll_wait = const libc::SYS_epoll_wait,
            epoll = in(reg) epoll as isize,
            events = in(reg) events.as_mut_ptr(),
            count = in(reg) events.len(),
            // Not `lateout`: the registers above are read between the two calls, which change these.
            inout("rax") libc::SYS_madvise as isize => ret,
            inout("rdi") start => _,
            inout("rsi") bytes => _,
            inout("rdx") libc::MADV_DONTNEED as isize => _,
            in("r10") timeout_ms as isize, // the fourth argument, of which madvise has none
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    usize::try_from(ret).map_err(|_| io::Error::from_raw_os_error(-ret as i32))
}

#[cfg(test)]
mod tests {
    /// KiB of mappings of the program's own file that are in memory.
    fn of_own_file(key: &str) -> u64 {
        let own = std::fs::read_link("/proc/self/exe").unwrap();
        let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let (mut ours, mut sum) = (false, 0);
        for line in text.lines() {
            if line.contains('-') && line.split(' ').next().is_some_and(|word| word.contains('-')) {
                ours = line.ends_with(&own.display().to_string()) && line.contains(" r-xp ");
            } else if ours && line.starts_with(key) {
                sum += line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
            }
        }
        sum
    }

    #[test]
    fn code_that_is_not_used_is_given_back_and_comes_again() {
        // Touches code all over.
        let sorted: Vec<String> = ["b", "a"].map(|text| format!("{text:?}")).into();
        let before = of_own_file("Rss:");
        super::give_back().unwrap();
        let after = of_own_file("Rss:");
        assert!(after < before, "{before} KiB, then {after} KiB");
        assert_eq!(sorted.join(" "), "\"b\" \"a\"");
    }

    #[test]
    fn the_allocator_takes_the_settings() {
        super::keep_small().unwrap();
    }
}
