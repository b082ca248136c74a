//! Who was killed for want of memory: the cgroup counts, the kernel's log names.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Longest record of /dev/kmsg (the kernel's CONSOLE_EXT_LOG_MAX); a read into less fails.
const RECORD_BYTES_MAX: usize = 8 << 10;
/// Records looked at: more than the kernel's ring holds by default, so that a flood cannot keep us here.
const RECORDS_MAX: usize = 20_000;

/// Name of the process that the kernel last killed in `cgroup` (a path below the hierarchy's root) or below it.
pub(super) fn victim(cgroup: &Path) -> io::Result<Option<String>> {
    let mut log = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open("/dev/kmsg")?;
    let mut record = vec![0; RECORD_BYTES_MAX];
    let mut name = None;
    for _ in 0..RECORDS_MAX {
        match log.read(&mut record) {
            Ok(0) => break,
            Ok(count) => {
                let text = String::from_utf8_lossy(&record[..count]);
                if let Some(found) = victim_in(&text, cgroup) {
                    name = Some(found.to_owned());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            // Overwritten while we read: the next read goes on with the oldest that is left.
            Err(error) if error.raw_os_error() == Some(nix::libc::EPIPE) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(name)
}

/// Reads one record, as
/// `oom-kill:constraint=CONSTRAINT_MEMCG,...,oom_memcg=/a,task_memcg=/a/b,task=name,pid=7,uid=0` (mm/oom_kill.c,
/// dump_oom_summary). A name may hold commas, so it is taken from behind.
fn victim_in<'a>(record: &'a str, cgroup: &Path) -> Option<&'a str> {
    let (_, text) = record.split_once("oom-kill:constraint=")?;
    let (_, rest) = text.split_once(",task_memcg=")?;
    let (group, rest) = rest.split_once(",task=")?;
    let (name, _) = rest.rsplit_once(",pid=")?;
    Path::new(group).starts_with(cgroup).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str = "4,812,5,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,\
        oom_memcg=/bulkhead/pod-1/web,task_memcg=/bulkhead/pod-1/web,task=a,b,pid=77,uid=100000\n";

    #[test]
    fn a_record_names_the_victim_of_its_own_cgroup_only() {
        assert_eq!(victim_in(RECORD, Path::new("/bulkhead/pod-1/web")), Some("a,b"));
        assert_eq!(victim_in(RECORD, Path::new("/bulkhead/pod-1")), Some("a,b"));
        assert_eq!(victim_in(RECORD, Path::new("/bulkhead/pod-1/we")), None);
        assert_eq!(victim_in("6,1,2,-;eth0: link up\n", Path::new("/bulkhead")), None);
    }
}
