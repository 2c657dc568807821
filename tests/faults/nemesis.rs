//! The faults: how each begins, how it ends, and what proves that it took place.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Write},
    path::Path,
    time::{Duration, Instant},
};

use rowlock::random::Random;
use rustix::io::Errno;
use tokio::task::block_in_place;

use crate::{
    cluster::{Cluster, LOCK_TTL, REPLICAS, Volume},
    history::{FOREIGN, Hold},
    named_points::{APPEND, CHECKPOINT, REBUILD, leave_torn_line},
    proxy::Link,
    sandbox::{HOSTS, PORT},
    support::{LOCK_KEY, PATIENCE, Redis, Replica},
};

macro_rules! faults {
    ($($name:ident $does:literal,)*) => {
        /// Something that goes wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
        pub(crate) enum Fault { $(#[doc = $does] $name,)* }

        impl Fault {
            /// In words.
            pub(crate) fn does(self) -> &'static str {
                match self { $(Self::$name => $does,)* }
            }
        }
    };
}

faults! {
    KillOne "SIGKILL of a replica",
    KillAtPoint "SIGKILL of a replica at a point of a row's way",
    KillAll "SIGKILL of all replicas",
    StopOne "SIGSTOP of a replica past the time to live",
    StopAtPoint "SIGSTOP of a replica at a point of a row's way, past the time to live",
    StopAll "SIGSTOP of all replicas past the time to live",
    StopRedis "SIGSTOP of Redis",
    StopUnderForeignHolder "a holder stopped until its lock ran out and somebody else holds it",
    RedisBeginsEmpty "SIGKILL of Redis, which begins again empty",
    RedisBeginsAgain "SIGKILL of Redis, which begins again from its file",
    FlushAll "FLUSHALL",
    FlushUnderHolder "FLUSHALL under a stopped holder that goes on in time",
    KillClients "CLIENT KILL",
    OutOfMemory "a Redis out of memory",
    DebugSleep "a Redis that sleeps",
    DeleteLock "an early DEL of the lock",
    ExpireLock "an early PEXPIRE of the lock",
    PromoteLagging "promotion of a Redis that lags",
    CutFromRedis "a replica cut from Redis",
    LoseRequests "a replica whose requests to Redis are lost, one way",
    LoseAnswers "a replica that hears nothing of Redis, one way",
    CutClients "clients cut from a replica after they sent their requests",
    ResetAnswers "answers to clients reset in their middle",
    ResetRedis "Redis's answers reset in their middle",
    SlowClients "a slow way to a replica",
    SlowRedis "a slow way to Redis",
    PowerCut "a power cut",
    FailSync "a sync that fails",
    FailWrite "a write that fails",
    ShortWrites "writes that take only a part",
    DiskFull "a full disk",
    ReadOnly "a volume that turns read-only",
    DiskGivesUp "an ext4 that finds itself damaged",
    ForeignLines "lines of a foreign writer, without any lock",
    ForeignHalfLine "half a line of a foreign writer",
    ClockAhead "Redis's clock jumps ahead",
    ClockBack "Redis's clock jumps back",
    Leave "SIGTERM of a replica under load",
    RollingRestart "a rolling restart",
    ScaleOut "two replicas more",
    ScaleIn "a replica less",
}

/// What a disk may fail to write or sync.
const FILES: [&str; 3] = ["rows.csv.journal", "rows.csv", "rows.csv.keys"];

/// A fault that goes on.
pub(crate) struct Active {
    pub(crate) fault: Fault,
    begun: Instant,
    /// Which replica it is about.
    pub(crate) place: usize,
    point: &'static str,
    link: Option<Link>,
    other: Option<Redis>,
    /// How much of it was seen already.
    seen: u64,
    /// The replica that it was about had ended.
    is_void: bool,
    /// Syncs and writes that had failed, or were cut short, before.
    failures_before: u64,
}

/// What proves that it took place: how often it did, which must not be 0; nothing, if there was nobody to be hit.
pub(crate) type Proof = Option<u64>;

impl Fault {
    /// Whether the other replicas go on while it lasts.
    pub(crate) fn is_survived(self) -> bool {
        use Fault::*;
        matches!(
            self,
            KillOne
                | StopOne
                | CutFromRedis
                | LoseRequests
                | LoseAnswers
                | CutClients
                | ResetAnswers
                | SlowClients
                | ShortWrites
                | ForeignLines
                | ForeignHalfLine
                | KillClients
                | FlushAll
                | DeleteLock
                | ExpireLock
                | ClockAhead
                | ScaleOut
                | ScaleIn
                | Leave
                | RollingRestart
        )
    }

    /// Hits any replica, but that one.
    pub(crate) async fn begin(
        self,
        cluster: &mut Cluster<'_>,
        random: &mut Random,
        holds: &mut Vec<Hold>,
        but: Option<usize>,
    ) -> Active {
        let serving: Vec<_> = cluster.serving().into_iter().filter(|&place| Some(place) != but).collect();
        let place = serving[random.below(serving.len())];
        let points = [&APPEND[..], &CHECKPOINT, &REBUILD].concat();
        let point = points[random.below(points.len())];
        let begun = Instant::now();
        let mut active = Active {
            fault: self,
            begun,
            place,
            point,
            link: None,
            other: None,
            seen: 0,
            is_void: false,
            failures_before: failures(cluster, self),
        };
        active.begin(cluster, random, holds).await;
        active
    }
}

impl Active {
    async fn begin(&mut self, cluster: &mut Cluster<'_>, random: &mut Random, holds: &mut Vec<Hold>) {
        use Fault::*;
        match self.fault {
            KillOne => self.seen += u64::from(cluster.kill(self.place)),
            KillAll => self.kill_all(cluster),
            KillAtPoint => cluster.arm(self.point, "KILL"),
            StopAtPoint => cluster.arm(self.point, "STOP"),
            StopOne => self.stop(cluster, self.place),
            StopAll => cluster.serving().into_iter().for_each(|place| self.stop(cluster, place)),
            StopRedis => cluster.redis.signal("STOP"),
            StopUnderForeignHolder => self.hold_as_foreigner(cluster, holds).await,
            RedisBeginsEmpty | RedisBeginsAgain => cluster.redis.stop(),
            FlushAll => self.seen += u64::from(cluster.redis.cli(&["flushall"]) == "OK"),
            FlushUnderHolder => self.flush_under_holder(cluster).await,
            KillClients => self.seen += number(&cluster.redis.cli(&["client", "kill", "type", "normal"])),
            OutOfMemory => {
                cluster.redis.cli(&["config", "set", "maxmemory", "1"]);
                self.seen += u64::from(cluster.redis.cli(&["set", "x", "y"]).contains("OOM"));
            }
            DebugSleep => {
                // It answers when it wakes.
                block_in_place(|| cluster.redis.cli(&["debug", "sleep", "0.8"]));
                self.seen += u64::from(self.begun.elapsed() >= Duration::from_millis(800));
            }
            DeleteLock => self.until_held(cluster, &["del", LOCK_KEY]).await,
            ExpireLock => self.until_held(cluster, &["pexpire", LOCK_KEY, "1"]).await,
            PromoteLagging => self.begin_promotion(cluster).await,
            CutFromRedis | LoseRequests | LoseAnswers | CutClients => self.cut(cluster),
            ResetAnswers => cluster.to_replica(self.place).reset_answers(8),
            ResetRedis => cluster.to_redis[self.place].reset_answers(5),
            SlowClients => cluster.to_replica(self.place).slow_down(40),
            SlowRedis => cluster.to_redis.iter().for_each(|link| link.slow_down(15)),
            PowerCut | FailSync | FailWrite | ShortWrites | DiskFull | ReadOnly | DiskGivesUp => {
                self.trouble_disk(cluster, random).await;
            }
            ForeignLines | ForeignHalfLine => self.write_as_foreigner(cluster, random).await,
            ClockAhead => self.set_clock(cluster, 3_600_000_000),
            ClockBack => self.set_clock(cluster, -3_600_000_000),
            Leave => self.seen += u64::from(cluster.terminate(self.place, false)),
            RollingRestart => {
                for place in cluster.serving() {
                    self.seen += u64::from(cluster.terminate(place, true));
                    cluster.start_node(place).await;
                }
            }
            ScaleOut => {
                let before = cluster.serving().len();
                cluster.start_missing(HOSTS).await;
                self.seen += (cluster.serving().len() - before) as u64;
            }
            ScaleIn => self.seen += u64::from(cluster.terminate(self.place, true)),
        }
    }

    /// Waits until it was felt, where that takes something to pass by.
    pub(crate) async fn felt(&mut self, cluster: &mut Cluster<'_>) {
        let deadline = Instant::now() + PATIENCE;
        while let Some(felt) = self.count(cluster) {
            self.seen = felt;
            // A sync that failed before may have been told to its replica only now.
            self.is_void = !self.is_disks() && cluster.nodes[self.place].as_mut().is_none_or(Replica::has_ended);
            if felt > 0 || self.is_void || Instant::now() > deadline {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// How often it was felt so far; nothing, if that is known otherwise.
    fn count(&self, cluster: &Cluster<'_>) -> Option<u64> {
        use Fault::*;
        Some(match self.fault {
            CutFromRedis | LoseRequests | LoseAnswers | CutClients => cluster.hosts[self.place].dropped(),
            ResetAnswers => cluster.to_replica(self.place).resets(),
            ResetRedis => cluster.to_redis[self.place].resets(),
            SlowClients => cluster.to_replica(self.place).delayed(),
            SlowRedis => cluster.to_redis.iter().map(Link::delayed).sum(),
            FailSync | FailWrite | ShortWrites => failures(cluster, self.fault) - self.failures_before,
            _ => return None,
        })
    }

    fn is_disks(&self) -> bool {
        matches!(self.fault, Fault::FailSync | Fault::FailWrite | Fault::ShortWrites)
    }

    /// Ends it; who was killed is still missing then.
    pub(crate) async fn end(mut self, cluster: &mut Cluster<'_>) -> Proof {
        use Fault::*;
        // The time to live must have run out for whoever was stopped or cut off.
        let shortest = if self.outlasts_lock() { LOCK_TTL + LOCK_TTL / 2 } else { Duration::ZERO };
        tokio::time::sleep(shortest.saturating_sub(self.begun.elapsed())).await;
        match self.fault {
            KillAtPoint | StopAtPoint => self.end_at_point(cluster).await,
            StopOne | StopAll => cluster.serving().into_iter().for_each(|place| cluster.signal(place, "CONT")),
            StopRedis => {
                self.seen += u64::from(is_stopped(cluster.redis.pid()));
                cluster.redis.signal("CONT");
            }
            RedisBeginsEmpty => {
                let kept = cluster.redis.folder.path().join("appendonlydir");
                self.seen += u64::from(fs::remove_dir_all(kept).is_ok());
                block_in_place(|| cluster.redis.restart());
            }
            RedisBeginsAgain => {
                block_in_place(|| cluster.redis.restart());
                self.seen += u64::from(cluster.redis.cli(&["info", "persistence"]).contains("aof_enabled:1"));
            }
            OutOfMemory => drop(cluster.redis.cli(&["config", "set", "maxmemory", "0"])),
            PromoteLagging => self.end_promotion(cluster),
            CutFromRedis | LoseRequests | LoseAnswers | CutClients => cluster.hosts[self.place].mend(),
            ResetAnswers => cluster.to_replica(self.place).reset_answers(0),
            ResetRedis => cluster.to_redis[self.place].reset_answers(0),
            SlowClients => cluster.to_replica(self.place).slow_down(0),
            SlowRedis => cluster.to_redis.iter().for_each(|link| link.slow_down(0)),
            FailSync | FailWrite | ShortWrites | DiskFull | ReadOnly | DiskGivesUp => self.mend_disk(cluster).await,
            ClockAhead | ClockBack => cluster.clock.set_ahead(0),
            ScaleOut => {
                while cluster.serving().len() > REPLICAS {
                    let place = *cluster.serving().last().expect("more than none");
                    self.seen += u64::from(cluster.terminate(place, true));
                }
            }
            KillOne
            | KillAll
            | StopUnderForeignHolder
            | FlushAll
            | FlushUnderHolder
            | KillClients
            | DebugSleep
            | DeleteLock
            | ExpireLock
            | PowerCut
            | ForeignLines
            | ForeignHalfLine
            | Leave
            | RollingRestart
            | ScaleIn => {}
        }
        (self.seen > 0 || !self.is_void).then_some(self.seen)
    }

    fn outlasts_lock(&self) -> bool {
        use Fault::*;
        matches!(
            self.fault,
            StopOne
                | StopAll
                | StopRedis
                | CutFromRedis
                | LoseRequests
                | LoseAnswers
                | ClockAhead
                | ClockBack
                | OutOfMemory
        )
    }

    fn kill_all(&mut self, cluster: &mut Cluster<'_>) {
        for place in cluster.serving() {
            self.seen += u64::from(cluster.kill(place));
        }
    }

    fn stop(&mut self, cluster: &mut Cluster<'_>, place: usize) {
        let node = cluster.node(place);
        if !node.has_ended() {
            node.signal("STOP");
            self.seen += u64::from(is_stopped(node.pid()));
        }
    }

    async fn end_at_point(&mut self, cluster: &mut Cluster<'_>) {
        let is_rebuild = REBUILD.contains(&self.point);
        let deadline = Instant::now() + PATIENCE;
        let place = loop {
            if is_rebuild {
                leave_torn_line(&cluster.csv);
            }
            if let Some(place) = cluster.hit(self.point, Duration::from_millis(500)).await {
                break place;
            }
            if Instant::now() > deadline {
                return;
            }
            cluster.arm(self.point, if self.fault == Fault::KillAtPoint { "KILL" } else { "STOP" });
        };
        if self.fault == Fault::KillAtPoint {
            self.seen += u64::from(cluster.kill(place));
        } else {
            tokio::time::sleep(LOCK_TTL + LOCK_TTL / 2).await;
            self.seen += u64::from(is_stopped(cluster.node(place).pid()));
            cluster.signal(place, "CONT");
        }
    }

    /// A replica is stopped with the lock in its hands until it ran out, and a client that is none of ours takes it as the demo
    /// did. While that one holds it the file must not change, and nobody may take it away.
    async fn hold_as_foreigner(&mut self, cluster: &mut Cluster<'_>, holds: &mut Vec<Hold>) {
        cluster.arm("lock_granted", "STOP");
        let Some(place) = cluster.hit("lock_granted", PATIENCE).await else { return };
        let hold = Duration::from_millis(1200);
        let hold_ms = hold.as_millis().to_string();
        let taken = Instant::now();
        let deadline = taken + PATIENCE;
        let held = loop {
            let asked = Instant::now();
            if cluster.redis.cli(&["set", LOCK_KEY, "a foreigner", "nx", "px", &hold_ms]) == "OK" {
                break asked;
            }
            if Instant::now() > deadline {
                cluster.signal(place, "CONT");
                return;
            }
        };
        // Whoever was in the middle of a write that it had begun in time may end it.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let bytes_before = fs::metadata(&cluster.csv).expect("a CSV").len();
        cluster.signal(place, "CONT");
        tokio::time::sleep(Duration::from_millis(500)).await;
        let bytes_after = fs::metadata(&cluster.csv).expect("a CSV").len();
        let kept = cluster.redis.cli(&["get", LOCK_KEY]) == "a foreigner";
        if held.elapsed() < hold {
            holds.push(Hold { bytes_before, bytes_after, kept });
            self.seen += 1;
        }
        if kept {
            cluster.redis.cli(&["del", LOCK_KEY]);
        }
    }

    /// Whoever holds the lock is stopped for less than the time to live, while Redis forgets it and grants the same token again.
    async fn flush_under_holder(&mut self, cluster: &mut Cluster<'_>) {
        cluster.arm("lock_granted", "STOP");
        let Some(place) = cluster.hit("lock_granted", PATIENCE).await else { return };
        let len = || fs::metadata(&cluster.csv).map_or(0, |csv| csv.len());
        let before = len();
        self.seen += u64::from(cluster.redis.cli(&["flushall"]) == "OK");
        soon(LOCK_TTL / 2, || len() != before).await;
        cluster.signal(place, "CONT");
    }

    /// Until somebody held the lock just when the command came.
    async fn until_held(&mut self, cluster: &Cluster<'_>, command: &[&str]) {
        let deadline = Instant::now() + PATIENCE;
        while self.seen == 0 && Instant::now() < deadline {
            self.seen += number(&cluster.redis.cli(command));
        }
    }

    async fn begin_promotion(&mut self, cluster: &Cluster<'_>) {
        let (follower, link) = cluster.start_follower().await;
        link.stall(true);
        soon(PATIENCE, || replicated(&cluster.redis) > replicated(&follower)).await;
        (self.other, self.link) = (Some(follower), Some(link));
    }

    fn end_promotion(&mut self, cluster: &mut Cluster<'_>) {
        let (Some(follower), Some(link)) = (self.other.take(), self.link.take()) else { return };
        let lag = replicated(&cluster.redis).saturating_sub(replicated(&follower));
        follower.cli(&["replicaof", "no", "one"]);
        // The link stays stopped up: what it holds back never arrives.
        let before = cluster.follow(follower);
        drop((before, link));
        let is_primary = cluster.redis.cli(&["info", "replication"]).contains("role:master");
        self.seen += if is_primary { lag } else { 0 };
    }

    fn cut(&self, cluster: &Cluster<'_>) {
        let (host, redis) = (&cluster.hosts[self.place], cluster.to_redis[self.place].port.to_string());
        if matches!(self.fault, Fault::CutFromRedis | Fault::LoseRequests) {
            host.cut("OUTPUT", &["--dport", &redis]);
        }
        if matches!(self.fault, Fault::CutFromRedis | Fault::LoseAnswers) {
            host.cut("INPUT", &["--sport", &redis]);
        }
        if self.fault == Fault::CutClients {
            host.cut("OUTPUT", &["--sport", &PORT.to_string()]);
        }
    }

    async fn trouble_disk(&mut self, cluster: &mut Cluster<'_>, random: &mut Random) {
        let at = cluster.disk_at();
        if self.fault == Fault::PowerCut {
            return self.cut_power(cluster, random).await;
        }
        // The journal is written and synced most, and the keys are not written by every row.
        let (synced, written) = (FILES[random.below(4) % FILES.len()], FILES[random.below(2)]);
        let Volume::Fuse { disk, .. } = &cluster.volume else {
            match (self.fault, &cluster.volume) {
                (Fault::DiskFull, _) => self.seen += u64::from(fill(&at.join("filler"))),
                (Fault::DiskGivesUp, Volume::Ext4(ext4)) => {
                    ext4.give_up();
                    self.seen += u64::from(is_read_only(&at));
                }
                (fault, _) => unreachable!("{fault:?} needs another volume"),
            }
            return;
        };
        match self.fault {
            Fault::FailSync => disk.fail_syncs(synced, 1),
            Fault::FailWrite => disk.fail_writes(written, 1, Errno::IO),
            Fault::ShortWrites => disk.short_writes(true),
            Fault::ReadOnly => {
                disk.read_only(true);
                self.seen += u64::from(is_read_only(&at));
            }
            Fault::DiskFull => {
                let room = |name: &String| disk.read(name).map_or(0, |content| content.len().next_multiple_of(4096));
                disk.capacity(Some(disk.names().iter().map(room).sum::<usize>() as u64));
                self.seen += u64::from(fill(&at.join("filler")));
            }
            fault => unreachable!("{fault:?} needs another volume"),
        }
    }

    /// Until it took something: all may have been synced just then.
    async fn cut_power(&mut self, cluster: &mut Cluster<'_>, random: &mut Random) {
        let (at, deadline) = (cluster.disk_at(), Instant::now() + PATIENCE);
        while self.seen == 0 && Instant::now() < deadline {
            if cluster.serving().is_empty() {
                cluster.start_missing(REPLICAS).await;
                self.until_written(cluster).await;
            }
            tokio::time::sleep(Duration::from_millis(random.below(100) as u64)).await;
            for place in cluster.serving() {
                cluster.kill(place);
            }
            let Volume::Fuse { disk, mounted } = &mut cluster.volume else { unreachable!("it has no power") };
            mounted.take().expect("it was mounted").unmount();
            self.seen += disk.cut_power().writes as u64;
            *mounted = Some(disk.mount(&at));
        }
        // Half of the time Redis was on that host, too, and had no file.
        if random.chance(50) {
            cluster.redis.cli(&["flushall"]);
        }
    }

    async fn mend_disk(&mut self, cluster: &mut Cluster<'_>) {
        let at = cluster.disk_at();
        if self.fault == Fault::DiskGivesUp {
            for place in cluster.serving() {
                cluster.kill(place);
            }
        }
        match &cluster.volume {
            Volume::Fuse { disk, .. } => {
                for file in FILES {
                    disk.fail_writes(file, 0, Errno::IO);
                    disk.fail_syncs(file, 0);
                }
                disk.short_writes(false);
                disk.read_only(false);
                disk.capacity(None);
            }
            Volume::Ext4(ext4) if self.fault == Fault::DiskGivesUp => ext4.repair_and_mount_again(),
            _ => {}
        }
        let _ = fs::remove_file(at.join("filler"));
    }

    async fn write_as_foreigner(&mut self, cluster: &Cluster<'_>, random: &mut Random) {
        for _ in 0..5 {
            let line = format!(",,,,{FOREIGN}{}\n", random.below(1000));
            let text = match self.fault {
                Fault::ForeignLines => line.repeat(1 + random.below(3)),
                _ => [",", ",,,", ",,,,\"foreign"][random.below(3)].to_owned(),
            };
            let mut csv = OpenOptions::new().append(true).open(&cluster.csv).expect("a CSV");
            csv.write_all(text.as_bytes()).expect("written");
            self.seen += 1;
            // Two halves of its own would make one line that is neither.
            self.until_written(cluster).await;
        }
    }

    /// Until somebody appended to the file, or cut something off it.
    async fn until_written(&self, cluster: &Cluster<'_>) {
        let len = || fs::metadata(&cluster.csv).map_or(0, |csv| csv.len());
        let before = len();
        soon(PATIENCE, || len() != before).await;
    }

    fn set_clock(&mut self, cluster: &Cluster<'_>, ahead_us: i64) {
        let now = || number(cluster.redis.cli(&["time"]).lines().next().unwrap_or_default()) as i64;
        let before = now();
        cluster.clock.set_ahead(ahead_us);
        self.seen += u64::from((now() - before).abs() > ahead_us.abs() / 2_000_000);
    }
}

/// Waits until something is so; gives up when patience ends.
async fn soon(patience: Duration, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !so() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Writes until nothing more fits; whether it was for want of room.
fn fill(path: &Path) -> bool {
    let mut file = File::create(path).expect("made");
    let mut piece = 1 << 20;
    while piece > 0 {
        match file.write_all(&vec![b'x'; piece]) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::StorageFull => piece /= 16,
            Err(_) => return false,
        }
    }
    true
}

/// How many syncs, or writes, the disk refused or cut short by now.
fn failures(cluster: &Cluster<'_>, fault: Fault) -> u64 {
    match (&cluster.volume, fault) {
        (Volume::Fuse { disk, .. }, Fault::FailSync) => disk.syncs_failed().into(),
        (Volume::Fuse { disk, .. }, Fault::FailWrite) => disk.writes_failed().into(),
        (Volume::Fuse { disk, .. }, Fault::ShortWrites) => disk.writes_shortened().into(),
        _ => 0,
    }
}

fn is_read_only(folder: &Path) -> bool {
    File::create(folder.join("x")).is_err_and(|e| e.kind() == ErrorKind::ReadOnlyFilesystem)
}

pub(crate) fn is_stopped(pid: u32) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        match stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next()) {
            Some('T') => return true,
            None | Some('Z' | 'X') => return false,
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    false
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or_default()
}

/// How far this Redis is in its own or its leader's changes.
fn replicated(redis: &Redis) -> u64 {
    let info = redis.cli(&["info", "replication"]);
    let offset = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(number);
    offset("slave_repl_offset:").or_else(|| offset("master_repl_offset:")).unwrap_or_default()
}
