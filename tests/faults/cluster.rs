//! Replicas on hosts of their own, one Redis, and the volume with the CSV.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::{Arc, RwLock},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::task::block_in_place;

use crate::{
    clients::Addresses,
    disk::{Disk, Mounted},
    ext4::{Ext4, run},
    history::HEADER,
    named_points::arm,
    proxy::Link,
    sandbox::{HARNESS, HOSTS, Host, PORT},
    support::{PATIENCE, Redis, Replica},
};

/// How long a silent holder keeps the lock.
pub(crate) const LOCK_TTL: Duration = Duration::from_millis(500);
/// So many replicas serve, unless a run scales out or in.
pub(crate) const REPLICAS: usize = 3;
const SYNC_FAILED: i32 = 74;

/// Where the CSV is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VolumeKind {
    Folder,
    Tmpfs,
    Ext4,
    /// The tests' own file system, which can lose power.
    Fuse,
}

pub(crate) enum Volume {
    Folder,
    Tmpfs(PathBuf),
    Ext4(Ext4),
    Fuse { disk: Disk, mounted: Option<Mounted> },
}

impl Volume {
    fn new(kind: VolumeKind, folder: &Path, seed: u64) -> Self {
        let at = folder.join("disk");
        if kind == VolumeKind::Ext4 {
            return Self::Ext4(Ext4::mount(folder, 64 << 20).expect("the sandbox saw to it"));
        }
        fs::create_dir(&at).expect("a folder");
        match kind {
            VolumeKind::Folder | VolumeKind::Ext4 => Self::Folder,
            VolumeKind::Tmpfs => {
                run("mount", &["-t", "tmpfs", "-o", "size=64m", "rows", &at.to_string_lossy()]);
                Self::Tmpfs(at)
            }
            VolumeKind::Fuse => {
                let disk = Disk::new(seed);
                let mounted = Some(disk.mount(&at));
                Self::Fuse { disk, mounted }
            }
        }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if let Self::Tmpfs(at) = self {
            let _ = Command::new("umount").arg("-l").arg(at).status();
        }
    }
}

/// A Redis whose wall clock can be set.
pub(crate) struct Clock {
    pub(crate) library: PathBuf,
    ahead: PathBuf,
}

impl Clock {
    pub(crate) fn new(library: &Path, folder: &Path) -> Self {
        let clock = Self { library: library.to_owned(), ahead: folder.join("clock") };
        clock.set_ahead(0);
        clock
    }

    /// In place: the file is mapped.
    pub(crate) fn set_ahead(&self, us: i64) {
        use std::os::unix::fs::FileExt;
        let file = fs::File::options().write(true).create(true).truncate(false).open(&self.ahead).expect("writable");
        file.write_all_at(&us.to_ne_bytes(), 0).expect("written");
    }

    /// It can be put to sleep, and has a file to begin again from.
    fn start_redis(&self) -> Redis {
        let settings = ["--enable-debug-command", "yes", "--appendonly", "yes", "--repl-diskless-sync-delay", "0"];
        let environment = [
            ("LD_PRELOAD", self.library.to_str().expect("a plain path")),
            ("CLOCK_AHEAD_US", self.ahead.to_str().expect("a plain path")),
        ];
        Redis::start_in(&settings, &environment)
    }
}

/// Dropped from the first field to the last: processes before what they work on.
pub(crate) struct Cluster<'a> {
    pub(crate) nodes: Vec<Option<Replica>>,
    pub(crate) redis: Redis,
    pub(crate) to_redis: Vec<Link>,
    to_replicas: Vec<Link>,
    pub(crate) volume: Volume,
    pub(crate) clock: Clock,
    pub(crate) hosts: &'a [Host],
    pub(crate) addresses: Addresses,
    pub(crate) csv: PathBuf,
    points: PathBuf,
    binary: &'a Path,
    starts: usize,
    /// Replicas that ended by themselves, and should not have.
    pub(crate) unexpected_ends: Vec<String>,
    /// Whether a sync may fail, so that a replica may end with 74.
    disk_trouble: bool,
    folder: TempDir,
}

pub(crate) struct Setting<'a> {
    pub(crate) hosts: &'a [Host],
    pub(crate) binary: &'a Path,
    pub(crate) clock_library: &'a Path,
    pub(crate) volume: VolumeKind,
    pub(crate) disk_trouble: bool,
    /// Whether clients come by links that can be reset and slowed down.
    pub(crate) linked: bool,
}

fn redis_at(redis: &Redis) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, redis.port()).into()
}

impl<'a> Cluster<'a> {
    pub(crate) async fn start(setting: &Setting<'a>, seed: u64) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let points = folder.path().join("points");
        fs::create_dir(&points).expect("a folder");
        let clock = Clock::new(setting.clock_library, folder.path());
        let redis = block_in_place(|| clock.start_redis());
        let (mut to_redis, mut to_replicas) = (Vec::new(), Vec::new());
        for host in setting.hosts {
            to_redis.push(Link::to(redis_at(&redis)).await);
            if setting.linked {
                to_replicas.push(Link::to((host.address, PORT).into()).await);
            }
        }
        let mut cluster = Self {
            nodes: (0..HOSTS).map(|_| None).collect(),
            redis,
            to_redis,
            to_replicas,
            volume: Volume::new(setting.volume, folder.path(), seed),
            clock,
            hosts: setting.hosts,
            addresses: Arc::new(RwLock::new(vec![None; HOSTS])),
            csv: folder.path().join("disk/rows.csv"),
            points,
            binary: setting.binary,
            starts: 0,
            unexpected_ends: Vec::new(),
            disk_trouble: setting.disk_trouble,
            folder,
        };
        cluster.start_missing(REPLICAS).await;
        cluster
    }

    pub(crate) fn disk_at(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    fn command(&self, place: usize) -> Command {
        let (host, link) = (&self.hosts[place], &self.to_redis[place]);
        let mut command = host.command(self.binary);
        command.current_dir(self.folder.path()).env_clear().env("PATH", "/usr/bin:/bin").envs([
            ("REDIS_CSV_FILE_NAME", self.csv.to_string_lossy().into_owned()),
            ("REDIS_CONN_STR", format!("redis://{HARNESS}:{}", link.port)),
            ("ROWLOCK_LISTEN", format!("{}:{PORT}", host.address)),
            ("ROWLOCK_REPLICA", format!("place{place}-start{}", self.starts)),
            ("ROWLOCK_LOCK_TTL", format!("{}ms", LOCK_TTL.as_millis())),
            ("ROWLOCK_TEST_POINTS", self.points.to_string_lossy().into_owned()),
        ]);
        command.envs([
            ("ROWLOCK_AUTH", "off"),
            ("ROWLOCK_CSV_HEADER", HEADER),
            ("ROWLOCK_WAIT_TIMEOUT", "1500ms"),
            ("ROWLOCK_GRACE", "10s"),
            ("ROWLOCK_JOURNAL_BYTES", "1MiB"),
        ]);
        command
    }

    /// Starts a replica here. It is tried for a while: what keeps it from the files may be about to end.
    pub(crate) async fn start_node(&mut self, place: usize) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.starts += 1;
            let command = self.command(place);
            match block_in_place(|| Replica::try_start(command)) {
                Ok(replica) => {
                    let url = match self.to_replicas.get(place) {
                        Some(link) => format!("http://{HARNESS}:{}", link.port),
                        None => replica.url.clone(),
                    };
                    self.nodes[place] = Some(replica);
                    self.addresses.write().expect("not poisoned")[place] = Some(url);
                    return;
                }
                Err(log) => assert!(Instant::now() < deadline, "the replica does not come to serve: {log}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Until so many serve.
    pub(crate) async fn start_missing(&mut self, replicas: usize) {
        for place in 0..HOSTS {
            if self.serving().len() < replicas && self.nodes[place].is_none() {
                self.start_node(place).await;
            }
        }
    }

    pub(crate) fn serving(&self) -> Vec<usize> {
        (0..HOSTS).filter(|&place| self.nodes[place].is_some()).collect()
    }

    pub(crate) fn node(&mut self, place: usize) -> &mut Replica {
        self.nodes[place].as_mut().expect("it serves")
    }

    /// Takes those away that ended by themselves.
    pub(crate) fn bury(&mut self) {
        for place in self.serving() {
            if self.node(place).has_ended() {
                self.end(place, "left alone", |_| false);
            }
        }
    }

    /// Kills the replica; whether it was the signal that ended it.
    pub(crate) fn kill(&mut self, place: usize) -> bool {
        self.signal(place, "KILL");
        self.end(place, "killed", |status| status.signal() == Some(9))
    }

    /// Asks it to leave; whether it did so as it should. Clients are sent elsewhere first if that is how it is done.
    pub(crate) fn terminate(&mut self, place: usize, announced: bool) -> bool {
        if announced {
            self.addresses.write().expect("not poisoned")[place] = None;
        }
        self.signal(place, "TERM");
        self.end(place, "asked to leave", |status| status.code() == Some(0))
    }

    /// Signals it, unless it has ended.
    pub(crate) fn signal(&mut self, place: usize, name: &str) {
        let node = self.node(place);
        if !node.has_ended() {
            node.signal(name);
        }
    }

    /// Takes it away once it has ended; whether it did as it should.
    fn end(&mut self, place: usize, how: &str, as_it_should: impl Fn(ExitStatus) -> bool) -> bool {
        let mut node = self.nodes[place].take().expect("it serves");
        let status = block_in_place(|| node.end());
        let is_disks_fault = self.disk_trouble && status.code() == Some(SYNC_FAILED);
        if !as_it_should(status) && !is_disks_fault {
            self.unexpected_ends.push(format!("place {place}, {how}, ended with {status:?}: {}", tail(&node.log())));
        }
        as_it_should(status)
    }

    /// Makes the next replica that comes to the point kill or stop itself.
    pub(crate) fn arm(&self, point: &str, signal: &str) {
        arm(&self.points, point, signal);
    }

    /// Waits until one has come there; its place.
    pub(crate) async fn hit(&self, point: &str, patience: Duration) -> Option<usize> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            for place in self.serving() {
                let pid = self.nodes[place].as_ref().expect("it serves").pid();
                if fs::remove_file(self.points.join(format!("{point}.{pid}"))).is_ok() {
                    return Some(place);
                }
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let _ = fs::remove_file(self.points.join(point));
        None
    }

    /// Whether somebody keeps the others from the files for longer than a turn takes.
    pub(crate) async fn is_guarded(&self) -> bool {
        let Ok(journal) = fs::File::open(format!("{}.journal", self.csv.display())) else { return false };
        for _ in 0..100 {
            if journal.try_lock().is_ok() {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        true
    }

    /// A second Redis, which follows the first by this link and has caught up.
    pub(crate) async fn start_follower(&self) -> (Redis, Link) {
        let link = Link::to(redis_at(&self.redis)).await;
        let follower = block_in_place(|| self.clock.start_redis());
        follower.cli(&["replicaof", &HARNESS.to_string(), &link.port.to_string()]);
        let deadline = Instant::now() + PATIENCE;
        while !follower.cli(&["info", "replication"]).contains("master_link_status:up") {
            assert!(Instant::now() < deadline, "the second Redis does not catch up");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        (follower, link)
    }

    /// Sends everybody to this Redis from now on; the one before is answered.
    pub(crate) fn follow(&mut self, redis: Redis) -> Redis {
        for link in &self.to_redis {
            link.lead_to(redis_at(&redis));
        }
        std::mem::replace(&mut self.redis, redis)
    }

    /// Link `place`, on the clients' side.
    pub(crate) fn to_replica(&self, place: usize) -> &Link {
        &self.to_replicas[place]
    }

    /// What `rowlock check` says.
    pub(crate) fn check_file(&self) -> Result<(), String> {
        let mut command = Command::new(self.binary);
        command.current_dir(self.folder.path()).env_clear().env("REDIS_CSV_FILE_NAME", &self.csv).arg("check");
        let output = command.output().expect("the binary runs");
        if output.status.success() { Ok(()) } else { Err(format!("rowlock check: {output:?}")) }
    }

    pub(crate) fn logs(&self) -> String {
        let log = |node: &Replica| format!("--- process {}\n{}", node.pid(), node.log());
        self.nodes.iter().flatten().map(log).collect()
    }

    /// All files beside the CSV, copied to there.
    pub(crate) fn keep_files(&self, to: &Path) {
        for entry in fs::read_dir(self.disk_at()).into_iter().flatten().flatten() {
            let _ = fs::copy(entry.path(), to.join(entry.file_name()));
        }
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}
