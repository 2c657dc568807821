//! A disk with a page cache, mounted as a FUSE file system. It can lose power, fail syncs and writes, fill up and turn read-only.
//!
//! Everything is in memory. Processes see the cache; after a power cut, the disk has what was synced and any part of the rest.
//! Stricter than most file systems: a new name is durable only after a sync of its directory.

mod faults;
mod file;
mod names;
mod serve;
mod stall;
mod state;

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use fuser::{BackgroundSession, Config, MountOption};
use rustix::io::Errno;

use serve::Served;
use stall::Stall;
use state::State;

use crate::support::not_run;

/// How long a mount may stay in use after its processes have exited.
const PATIENCE: Duration = Duration::from_secs(10);
const DEVICE: &str = "/dev/fuse";
/// More than one process has threads that call the disk.
const SERVING_THREADS: usize = 16;

/// None if this machine cannot mount one, which fails the test where `CI` is set.
pub(crate) fn disk(seed: u64) -> Option<Disk> {
    if Path::new(DEVICE).exists() {
        return Some(Disk::new(seed));
    }
    not_run(&format!("{DEVICE} is missing"));
    None
}

/// What a power cut lost.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lost {
    /// Writes and truncations that did not survive completely.
    pub(crate) writes: usize,
    /// Their pieces that did not survive; a truncation is one piece.
    pub(crate) pieces: usize,
    /// Creations, renames and removals of names that did not survive.
    pub(crate) entries: usize,
}

/// Clones share the same disk.
#[derive(Clone)]
pub(crate) struct Disk {
    state: Arc<Mutex<State>>,
    stall: Stall,
}

impl Disk {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: Arc::new(Mutex::new(State::new(seed))), stall: Stall::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics holding it")
    }

    pub(crate) fn mount(&self, at: &Path) -> Mounted {
        self.state().forget_handles();
        let mut config = Config::default();
        config.mount_options =
            vec![MountOption::FSName("rowlock-test".to_owned()), MountOption::DefaultPermissions, MountOption::NoAtime];
        // A call that is not answered occupies a thread.
        config.n_threads = Some(SERVING_THREADS);
        let served = Served { state: Arc::clone(&self.state), stall: self.stall.clone() };
        let session = fuser::spawn_mount(served, at, &config).expect("mounts");
        Mounted { session: Some(session), stall: self.stall.clone(), at: at.canonicalize().expect("was mounted on") }
    }

    /// Must be called while no file is open: no process survives a power cut.
    pub(crate) fn cut_power(&self) -> Lost {
        self.state().lose_power()
    }

    /// The content in the cache.
    pub(crate) fn read(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.state();
        let ino = state.find(name).ok()?;
        state.file(ino).ok().map(|file| file.content().to_vec())
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.state().names.all().map(|(name, _)| name.to_owned()).collect()
    }

    /// The next syncs of this file return EIO, and so does the next one by each other open handle, as on Linux. After that the
    /// cache counts as written, although it is not on the disk.
    pub(crate) fn fail_syncs(&self, name: &str, times: u32) {
        self.state().faults.syncs.set(name, times, Errno::IO);
    }

    pub(crate) fn syncs_failed(&self) -> u32 {
        self.state().faults.syncs_failed
    }

    /// The next writes to this file fail and write nothing.
    pub(crate) fn fail_writes(&self, name: &str, times: u32, errno: Errno) {
        self.state().faults.writes.set(name, times, errno);
    }

    pub(crate) fn writes_failed(&self) -> u32 {
        self.state().faults.writes_failed
    }

    /// Leaves all calls of this process unanswered, until this is called with `None`.
    pub(crate) fn stall(&self, process: Option<u32>) {
        self.stall.set(process);
    }

    /// Each write of more than a byte writes only a part.
    pub(crate) fn short_writes(&self, on: bool) {
        self.state().faults.short_writes = on;
    }

    pub(crate) fn writes_shortened(&self) -> u32 {
        self.state().faults.writes_shortened
    }

    pub(crate) fn read_only(&self, on: bool) {
        self.state().faults.read_only = on;
    }

    /// The space for all files together.
    pub(crate) fn capacity(&self, bytes: Option<u64>) {
        self.state().faults.capacity = bytes;
    }

    pub(crate) fn without_fallocate(&self, on: bool) {
        self.state().faults.without_fallocate = on;
    }
}

/// Unmounts when dropped. Must be dropped before the folder that it is mounted on is removed.
pub(crate) struct Mounted {
    session: Option<BackgroundSession>,
    stall: Stall,
    at: PathBuf,
}

impl Mounted {
    /// Waits until the kernel has closed all files. Fails if a process still has one open.
    pub(crate) fn unmount(mut self) {
        let deadline = Instant::now() + PATIENCE;
        while !umount(&self.at, &[]) {
            assert!(Instant::now() < deadline, "{} is still in use", self.at.display());
            thread::sleep(Duration::from_millis(10));
        }
        let session = self.session.take().expect("was not unmounted before");
        session.join().expect("was served to the end");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A process with an unanswered call cannot end.
        self.stall.set(None);
        if self.session.is_some() {
            // Processes may keep their open files, but the folder can be removed.
            umount(&self.at, &["-l"]);
        }
    }
}

fn umount(at: &Path, options: &[&str]) -> bool {
    let status = Command::new("umount").args(options).arg(at).stderr(Stdio::null()).status();
    status.expect("umount runs").success()
}
