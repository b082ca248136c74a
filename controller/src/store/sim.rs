//! A disk in memory that does what real ones may: after a crash any part of what was not synced is lost, sector by
//! sector; a failed sync loses the pages and the next one succeeds; the disk fills up; an operation fails.
//!
//! Directory changes that were not synced survive as a prefix, in order, as journalling file systems keep them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use super::{Dir, File, Room};

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

/// What is to go wrong, counted in operations that change something (create, write, rename, remove, sync).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// From this operation on nothing works any more; see [`SimDir::after_crash`].
    CrashAt(u64),
    /// This operation fails once, with EIO; a sync that fails loses what it was to keep.
    FailAt(u64),
    /// No more than this many bytes fit.
    Capacity(u64),
    /// Likewise, and nobody sees it coming, as with a quota.
    Quota(u64),
}

/// A simulated directory on a disk of its own.
#[derive(Clone, Debug)]
pub struct SimDir {
    disk: Arc<Disk>,
}

/// An open file of it.
#[derive(Clone, Debug)]
pub struct SimFile {
    inode: usize,
    disk: Arc<Disk>,
}

#[derive(Debug)]
struct Disk {
    world: Mutex<World>,
    /// Told when a disk that stood still does no more.
    moves: Condvar,
}

#[derive(Debug)]
struct World {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    unsynced_changes: Vec<Change>,
    operations: u64,
    fault: Fault,
    stalled: bool,
    /// Longest wait of a batch of writes.
    latency_max: Duration,
    random: u64,
}

#[derive(Clone, Debug, Default)]
struct Inode {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    unsynced_writes: Vec<(usize, Vec<u8>)>,
}

#[derive(Clone, Debug)]
enum Change {
    Link(String, usize),
    Rename(String, String),
    Unlink(String),
}

impl SimDir {
    /// An empty disk; `seed` decides what a crash keeps.
    pub fn new(fault: Fault, seed: u64) -> Self {
        let world = World {
            inodes: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            unsynced_changes: Vec::new(),
            operations: 0,
            fault,
            stalled: false,
            latency_max: Duration::ZERO,
            random: seed.wrapping_mul(2).wrapping_add(1),
        };
        let disk = Disk {
            world: Mutex::new(world),
            moves: Condvar::new(),
        };
        Self { disk: Arc::new(disk) }
    }

    /// From now on every operation that changes something waits, until the machine crashes.
    pub fn stall(&self) {
        self.disk.lock().stalled = true;
    }

    /// From now on this goes wrong, in place of what was to.
    pub fn set_fault(&self, fault: Fault) {
        self.lock().fault = fault;
    }

    /// What is to go wrong.
    pub fn fault(&self) -> Fault {
        self.lock().fault
    }

    /// From now on a batch of writes takes up to this long, in simulated time.
    pub fn set_latency(&self, max: Duration) {
        self.lock().latency_max = max;
    }

    /// How many operations were counted.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// The machine crashes: the disk as its next start finds it, with synced bytes and any part of the others. On this one
    /// nothing works any more.
    pub fn after_crash(&self, fault: Fault) -> Self {
        let mut world = self.lock();
        let mut names = world.durable_names.clone();
        let changes = world.unsynced_changes.len();
        let kept = world.below(changes + 1);
        let changes = world.unsynced_changes[..kept].to_vec();
        for change in changes {
            change.apply(&mut names);
        }
        let linked: BTreeSet<usize> = names.values().copied().collect();
        let found = |(number, inode): (usize, &Inode)| match linked.contains(&number) {
            true => inode.clone(),
            false => Inode::default(), // removed: only whoever had it open could read it
        };
        let mut inodes: Vec<Inode> = world.inodes.iter().enumerate().map(found).collect();
        for inode in &mut inodes {
            for (offset, bytes) in std::mem::take(&mut inode.unsynced_writes) {
                for (i, sector) in sectors(offset, &bytes) {
                    if world.below(2) == 0 {
                        put(&mut inode.durable, i, sector);
                    }
                }
            }
            inode.bytes = inode.durable.clone();
        }
        let random = world.next();
        (world.fault, world.stalled) = (Fault::CrashAt(0), false);
        let latency_max = world.latency_max;
        drop(world);
        self.disk.moves.notify_all();
        let disk = Self::new(fault, random);
        let mut next = disk.lock();
        next.latency_max = latency_max;
        next.inodes = inodes;
        next.names = names.clone();
        next.durable_names = names;
        drop(next);
        disk
    }

    /// Flips one bit of a file behind the reader's back.
    pub fn damage(&self, name: &str, offset: usize) {
        let mut world = self.lock();
        let inode = world.names[name];
        world.inodes[inode].bytes[offset] ^= 1;
        world.inodes[inode].durable[offset] ^= 1;
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        self.disk.lock()
    }

    fn change(&self) -> MutexGuard<'_, World> {
        self.disk.change()
    }
}

impl Disk {
    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().expect("no holder panics")
    }

    /// For an operation that changes something.
    fn change(&self) -> MutexGuard<'_, World> {
        let world = self.lock();
        let moves = self.moves.wait_while(world, |world| world.stalled);
        moves.expect("no holder panics")
    }
}

/// The pieces of a write by disk sector.
fn sectors(offset: usize, bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = offset + at;
        let len = (SECTOR - start % SECTOR).min(bytes.len() - at);
        let piece = (len > 0).then(|| (start, &bytes[at..at + len]));
        at += len;
        piece
    })
}

fn put(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if file.len() < offset + bytes.len() {
        file.resize(offset + bytes.len(), 0);
    }
    file[offset..offset + bytes.len()].copy_from_slice(bytes);
}

impl Change {
    fn apply(self, names: &mut BTreeMap<String, usize>) {
        match self {
            Self::Link(name, inode) => {
                names.insert(name, inode);
            }
            Self::Rename(from, to) => {
                if let Some(inode) = names.remove(&from) {
                    names.insert(to, inode);
                }
            }
            Self::Unlink(name) => {
                names.remove(&name);
            }
        }
    }
}

impl World {
    /// Xorshift: enough to choose what a crash keeps, and the same for the same seed.
    fn next(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn linked_bytes(&self) -> u64 {
        let linked = self.names.values();
        linked.map(|&inode| self.inodes[inode].bytes.len() as u64).sum()
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn step(&mut self) -> io::Result<()> {
        let operation = self.operations;
        self.operations += 1;
        match self.fault {
            Fault::CrashAt(at) if operation >= at => Err(io::Error::other("the machine is gone")),
            Fault::FailAt(at) if operation == at => Err(io::Error::from_raw_os_error(5)), // EIO
            _ => Ok(()),
        }
    }

    fn change(&mut self, change: Change) {
        change.clone().apply(&mut self.names);
        self.unsynced_changes.push(change);
    }

    fn find(&self, name: &str) -> io::Result<usize> {
        self.names
            .get(name)
            .copied()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Dir for SimDir {
    type File = SimFile;

    fn create(&self, name: &str) -> io::Result<SimFile> {
        let mut world = self.change();
        world.step()?;
        let inode = world.inodes.len();
        world.inodes.push(Inode::default());
        world.change(Change::Link(name.to_owned(), inode));
        Ok(SimFile {
            inode,
            disk: self.disk.clone(),
        })
    }

    fn open(&self, name: &str) -> io::Result<SimFile> {
        let inode = self.lock().find(name)?;
        Ok(SimFile {
            inode,
            disk: self.disk.clone(),
        })
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().names.keys().cloned().collect())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut world = self.change();
        world.step()?;
        world.find(from)?;
        world.change(Change::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut world = self.change();
        world.step()?;
        world.find(name)?;
        world.change(Change::Unlink(name.to_owned()));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut world = self.change();
        world.step()?;
        world.unsynced_changes.clear();
        world.durable_names = world.names.clone();
        Ok(())
    }

    fn room(&self) -> io::Result<Room> {
        let world = self.lock();
        Ok(match world.fault {
            Fault::Capacity(total) => Room {
                free: total.saturating_sub(world.linked_bytes()),
                total,
            },
            _ => Room {
                free: u64::MAX,
                total: u64::MAX,
            },
        })
    }

    fn display(&self) -> String {
        "the simulated disk".to_owned()
    }

    fn latency(&self) -> Duration {
        let mut world = self.lock();
        let max = world.latency_max.as_micros() as usize;
        Duration::from_micros(world.below(max + 1) as u64)
    }
}

impl SimFile {
    fn lock(&self) -> MutexGuard<'_, World> {
        self.disk.lock()
    }

    fn change(&self) -> MutexGuard<'_, World> {
        self.disk.change()
    }
}

impl File for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let world = self.lock();
        let bytes = &world.inodes[self.inode].bytes;
        let offset = offset as usize;
        let found = bytes
            .get(offset..offset + buf.len())
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(found);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut world = self.change();
        let step = world.step();
        if let Fault::Capacity(capacity) | Fault::Quota(capacity) = world.fault {
            let linked = world.linked_bytes();
            let end = offset as usize + bytes.len();
            let more = end.saturating_sub(world.inodes[self.inode].bytes.len());
            if linked + more as u64 > capacity {
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        if let (Err(_), Fault::FailAt(_)) = (&step, world.fault) {
            return step;
        }
        let inode = &mut world.inodes[self.inode];
        inode.unsynced_writes.push((offset as usize, bytes.to_vec())); // a crash may keep parts of its last write
        put(&mut inode.bytes, offset as usize, bytes);
        step
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().inodes[self.inode].bytes.len() as u64)
    }

    fn sync(&self) -> io::Result<()> {
        let mut world = self.change();
        let step = world.step();
        let crashed = matches!((&step, world.fault), (Err(_), Fault::CrashAt(_)));
        let inode = &mut world.inodes[self.inode];
        if crashed {
            return step; // what was to be synced may have got there or not
        }
        let writes = std::mem::take(&mut inode.unsynced_writes);
        if step.is_ok() {
            for (offset, bytes) in writes {
                put(&mut inode.durable, offset, &bytes);
            }
        } // else the pages are clean and lost: a second sync succeeds without them
        step
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_synced_bytes_are_sure_to_survive() {
        let mut lost = 0;
        for seed in 0..64 {
            let dir = SimDir::new(Fault::None, seed);
            let file = dir.create("a").unwrap();
            file.write_at(b"kept", 0).unwrap();
            file.sync().unwrap();
            dir.sync().unwrap();
            file.write_at(&[1; 2000], 4).unwrap();
            let after = dir.after_crash(Fault::None);
            let file = after.open("a").unwrap();
            let mut bytes = vec![0; file.len().unwrap() as usize];
            file.read_at(&mut bytes, 0).unwrap();
            assert_eq!(&bytes[..4], b"kept");
            lost += usize::from(bytes != [&b"kept"[..], &[1; 2000]].concat());
        }
        assert!(lost > 32, "{lost}");
    }

    #[test]
    fn replace_is_old_or_new_after_a_crash_at_any_operation() {
        for crash_at in 0..12 {
            for seed in 0..16 {
                let dir = SimDir::new(Fault::CrashAt(crash_at), seed);
                let told = crate::store::replace(&dir, "a", &[1; 1500]).is_ok();
                let told_again = told && crate::store::replace(&dir, "a", &[2; 1500]).is_ok();
                let after = dir.after_crash(Fault::None);
                let found = crate::store::read(&after, "a", 10_000).unwrap();
                let allowed: &[Option<Vec<u8>>] = match (told, told_again) {
                    (false, _) => &[None, Some(vec![1; 1500])],
                    (true, false) => &[Some(vec![1; 1500]), Some(vec![2; 1500])],
                    (true, true) => &[Some(vec![2; 1500])],
                };
                assert!(allowed.contains(&found), "crash at {crash_at}, seed {seed}");
            }
        }
    }
}
