//! Replicas on separate hosts, one Redis, and the volume with the CSV.

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
    failpoints::arm,
    history::HEADER,
    proxy::Proxy,
    sandbox::{HARNESS, HOSTS, Host, PORT},
    support::{PATIENCE, Redis, Replica},
};

/// The lock's time to live.
pub(crate) const LOCK_TTL: Duration = Duration::from_millis(500);
/// How many replicas serve, unless a run scales out or in.
pub(crate) const REPLICAS: usize = 3;
/// The exit status of a replica after a failed sync.
const SYNC_FAILED_STATUS: i32 = 74;

/// The file system of the CSV.
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
        let mount_point = folder.join("disk");
        if kind == VolumeKind::Ext4 {
            return Self::Ext4(Ext4::mount(folder, 64 << 20).expect("the sandbox has checked that it can be mounted"));
        }
        fs::create_dir(&mount_point).expect("a folder");
        match kind {
            VolumeKind::Folder | VolumeKind::Ext4 => Self::Folder,
            VolumeKind::Tmpfs => {
                run("mount", &["-t", "tmpfs", "-o", "size=64m", "rows", &mount_point.to_string_lossy()]);
                Self::Tmpfs(mount_point)
            }
            VolumeKind::Fuse => {
                let disk = Disk::new(seed);
                let mounted = Some(disk.mount(&mount_point));
                Self::Fuse { disk, mounted }
            }
        }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if let Self::Tmpfs(mount_point) = self {
            let _ = Command::new("umount").arg("-l").arg(mount_point).status();
        }
    }
}

/// The wall clock of Redis, see clock.c.
pub(crate) struct Clock {
    library: PathBuf,
    ahead_us_file: PathBuf,
}

impl Clock {
    fn new(library: &Path, folder: &Path) -> Self {
        let clock = Self { library: library.to_owned(), ahead_us_file: folder.join("clock") };
        clock.set_ahead(0);
        clock
    }

    /// Sets how far the clock is ahead. Writes in place: Redis has the file mapped.
    pub(crate) fn set_ahead(&self, us: i64) {
        use std::os::unix::fs::FileExt;
        let file =
            fs::File::options().write(true).create(true).truncate(false).open(&self.ahead_us_file).expect("writable");
        file.write_all_at(&us.to_ne_bytes(), 0).expect("written");
    }

    /// Redis accepts DEBUG SLEEP, and has a file to restart from.
    fn start_redis(&self) -> Redis {
        let settings = ["--enable-debug-command", "yes", "--appendonly", "yes", "--repl-diskless-sync-delay", "0"];
        let environment = [
            ("LD_PRELOAD", self.library.to_str().expect("a plain path")),
            ("CLOCK_AHEAD_US", self.ahead_us_file.to_str().expect("a plain path")),
        ];
        Redis::start_in(&settings, &environment)
    }
}

/// Fields are dropped in this order: processes before the files and proxies that they use.
pub(crate) struct Cluster<'a> {
    /// By slot: the number of a host that a replica may run on.
    pub(crate) nodes: Vec<Option<Replica>>,
    pub(crate) redis: Redis,
    /// By slot: each replica reaches Redis through its own proxy.
    pub(crate) redis_proxies: Vec<Proxy>,
    /// By slot; empty if clients connect directly.
    replica_proxies: Vec<Proxy>,
    pub(crate) volume: Volume,
    pub(crate) clock: Clock,
    pub(crate) hosts: &'a [Host],
    pub(crate) addresses: Addresses,
    pub(crate) csv: PathBuf,
    failpoints: PathBuf,
    binary: &'a Path,
    starts: usize,
    pub(crate) unexpected_exits: Vec<String>,
    /// Whether a sync may fail, after which a replica exits with status 74.
    disk_errors: bool,
    folder: TempDir,
}

pub(crate) struct ClusterOptions<'a> {
    pub(crate) hosts: &'a [Host],
    pub(crate) binary: &'a Path,
    pub(crate) clock_library: &'a Path,
    pub(crate) volume: VolumeKind,
    pub(crate) disk_errors: bool,
    /// Whether clients reach replicas through proxies.
    pub(crate) proxied_clients: bool,
}

fn redis_at(redis: &Redis) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, redis.port()).into()
}

impl<'a> Cluster<'a> {
    pub(crate) async fn start(options: &ClusterOptions<'a>, seed: u64) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let failpoints = folder.path().join("points");
        fs::create_dir(&failpoints).expect("a folder");
        let clock = Clock::new(options.clock_library, folder.path());
        let redis = block_in_place(|| clock.start_redis());
        let (mut redis_proxies, mut replica_proxies) = (Vec::new(), Vec::new());
        for host in options.hosts {
            redis_proxies.push(Proxy::start(redis_at(&redis)).await);
            if options.proxied_clients {
                replica_proxies.push(Proxy::start((host.address, PORT).into()).await);
            }
        }
        let mut cluster = Self {
            nodes: (0..HOSTS).map(|_| None).collect(),
            redis,
            redis_proxies,
            replica_proxies,
            volume: Volume::new(options.volume, folder.path(), seed),
            clock,
            hosts: options.hosts,
            addresses: Arc::new(RwLock::new(vec![None; HOSTS])),
            csv: folder.path().join("disk/rows.csv"),
            failpoints,
            binary: options.binary,
            starts: 0,
            unexpected_exits: Vec::new(),
            disk_errors: options.disk_errors,
            folder,
        };
        cluster.start_missing(REPLICAS).await;
        cluster
    }

    pub(crate) fn disk_folder(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    fn command(&self, slot: usize) -> Command {
        let (host, proxy) = (&self.hosts[slot], &self.redis_proxies[slot]);
        let mut command = host.command(self.binary);
        command.current_dir(self.folder.path()).env_clear().env("PATH", "/usr/bin:/bin").envs([
            ("REDIS_CSV_FILE_NAME", self.csv.to_string_lossy().into_owned()),
            ("REDIS_CONN_STR", format!("redis://{HARNESS}:{}", proxy.port)),
            ("ROWLOCK_LISTEN", format!("{}:{PORT}", host.address)),
            ("ROWLOCK_REPLICA", format!("replica{slot}-start{}", self.starts)),
            ("ROWLOCK_LOCK_TTL", format!("{}ms", LOCK_TTL.as_millis())),
            ("ROWLOCK_TEST_POINTS", self.failpoints.to_string_lossy().into_owned()),
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

    /// Starts a replica, and retries for a while: another process may still keep the files locked.
    pub(crate) async fn start_replica(&mut self, slot: usize) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.starts += 1;
            let command = self.command(slot);
            match block_in_place(|| Replica::try_start(command)) {
                Ok(replica) => {
                    let url = match self.replica_proxies.get(slot) {
                        Some(proxy) => format!("http://{HARNESS}:{}", proxy.port),
                        None => replica.url.clone(),
                    };
                    self.nodes[slot] = Some(replica);
                    self.addresses.write().expect("not poisoned")[slot] = Some(url);
                    return;
                }
                Err(log) => assert!(Instant::now() < deadline, "the replica does not start: {log}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Starts replicas until `replicas` serve.
    pub(crate) async fn start_missing(&mut self, replicas: usize) {
        for slot in 0..HOSTS {
            if self.serving().len() < replicas && self.nodes[slot].is_none() {
                self.start_replica(slot).await;
            }
        }
    }

    pub(crate) fn serving(&self) -> Vec<usize> {
        (0..HOSTS).filter(|&slot| self.nodes[slot].is_some()).collect()
    }

    pub(crate) fn replica(&mut self, slot: usize) -> &mut Replica {
        self.nodes[slot].as_mut().expect("it serves")
    }

    /// Removes replicas that have exited without a signal from a fault.
    pub(crate) fn remove_exited(&mut self) {
        for slot in self.serving() {
            if self.replica(slot).has_ended() {
                self.wait_for_exit(slot, "without a signal", |_| false);
            }
        }
    }

    /// Kills the replica. Returns whether the signal ended it.
    pub(crate) fn kill(&mut self, slot: usize) -> bool {
        self.signal(slot, "KILL");
        self.wait_for_exit(slot, "killed", |status| status.signal() == Some(9))
    }

    /// Redirects clients to other replicas, then terminates the replica. Returns whether it exited with status 0.
    pub(crate) fn drain_and_terminate(&mut self, slot: usize) -> bool {
        self.addresses.write().expect("not poisoned")[slot] = None;
        self.terminate(slot)
    }

    /// Terminates the replica while clients use it. Returns whether it exited with status 0.
    pub(crate) fn terminate(&mut self, slot: usize) -> bool {
        self.signal(slot, "TERM");
        self.wait_for_exit(slot, "terminated", |status| status.code() == Some(0))
    }

    /// Signals the replica unless it has exited.
    pub(crate) fn signal(&mut self, slot: usize, name: &str) {
        let replica = self.replica(slot);
        if !replica.has_ended() {
            replica.signal(name);
        }
    }

    /// Removes the replica once it has exited. Returns whether its status is expected.
    fn wait_for_exit(&mut self, slot: usize, how: &str, is_expected: impl Fn(ExitStatus) -> bool) -> bool {
        let mut replica = self.nodes[slot].take().expect("it serves");
        let status = block_in_place(|| replica.end());
        let is_failed_sync = self.disk_errors && status.code() == Some(SYNC_FAILED_STATUS);
        if !is_expected(status) && !is_failed_sync {
            self.unexpected_exits
                .push(format!("replica {slot}, {how}, exited with {status:?}: {}", tail(&replica.log())));
        }
        is_expected(status)
    }

    /// Makes the next replica that reaches the failpoint kill or stop itself.
    pub(crate) fn arm_failpoint(&self, failpoint: &str, signal: &str) {
        arm(&self.failpoints, failpoint, signal);
    }

    /// Waits until a replica has reached the failpoint. Returns its slot.
    pub(crate) async fn wait_for_failpoint(&self, failpoint: &str, patience: Duration) -> Option<usize> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            for slot in self.serving() {
                let pid = self.nodes[slot].as_ref().expect("it serves").pid();
                if fs::remove_file(self.failpoints.join(format!("{failpoint}.{pid}"))).is_ok() {
                    return Some(slot);
                }
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let _ = fs::remove_file(self.failpoints.join(failpoint));
        None
    }

    /// Whether a process keeps the files locked for longer than an append takes.
    pub(crate) async fn files_are_locked(&self) -> bool {
        let Ok(journal) = fs::File::open(format!("{}.journal", self.csv.display())) else { return false };
        for _ in 0..100 {
            if journal.try_lock().is_ok() {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        true
    }

    /// Starts a Redis replica that has caught up, and the proxy that it replicates through.
    pub(crate) async fn start_redis_replica(&self) -> (Redis, Proxy) {
        let proxy = Proxy::start(redis_at(&self.redis)).await;
        let replica = block_in_place(|| self.clock.start_redis());
        replica.cli(&["replicaof", &HARNESS.to_string(), &proxy.port.to_string()]);
        let deadline = Instant::now() + PATIENCE;
        while !replica.cli(&["info", "replication"]).contains("master_link_status:up") {
            assert!(Instant::now() < deadline, "the Redis replica does not catch up");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        (replica, proxy)
    }

    /// Connects all replicas to another Redis. Returns the old one.
    pub(crate) fn switch_redis(&mut self, redis: Redis) -> Redis {
        for proxy in &self.redis_proxies {
            proxy.retarget(redis_at(&redis));
        }
        std::mem::replace(&mut self.redis, redis)
    }

    /// The proxy between clients and the replica.
    pub(crate) fn replica_proxy(&self, slot: usize) -> &Proxy {
        &self.replica_proxies[slot]
    }

    /// Runs `rowlock check` on the CSV.
    pub(crate) fn run_check(&self) -> Result<(), String> {
        let mut command = Command::new(self.binary);
        command.current_dir(self.folder.path()).env_clear().env("REDIS_CSV_FILE_NAME", &self.csv).arg("check");
        let output = command.output().expect("the binary runs");
        if output.status.success() { Ok(()) } else { Err(format!("rowlock check: {output:?}")) }
    }

    pub(crate) fn logs(&self) -> String {
        let log = |replica: &Replica| format!("--- process {}\n{}", replica.pid(), replica.log());
        self.nodes.iter().flatten().map(log).collect()
    }

    /// Copies the CSV and its side files.
    pub(crate) fn copy_files(&self, to: &Path) {
        for entry in fs::read_dir(self.disk_folder()).into_iter().flatten().flatten() {
            let _ = fs::copy(entry.path(), to.join(entry.file_name()));
        }
    }
}

/// The last lines.
fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}
