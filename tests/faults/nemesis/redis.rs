//! Faults of Redis, of its clock, and of the lock that it keeps.

use std::{
    fs,
    time::{Duration, Instant},
};

use tokio::task::block_in_place;

use super::{ActiveFault, Fault, csv_len, is_stopped, wait_at_most};
use crate::{
    cluster::{Cluster, LOCK_TTL},
    history::ForeignHold,
    support::{LOCK_KEY, PATIENCE, Redis},
};

const HOUR_US: i64 = 3_600_000_000;
const FOREIGN_HOLDER: &str = "a foreign client";

impl ActiveFault {
    pub(super) async fn begin_at_redis(&mut self, cluster: &mut Cluster<'_>, holds: &mut Vec<ForeignHold>) {
        match self.fault {
            Fault::StopRedis => cluster.redis.signal("STOP"),
            Fault::StopUnderForeignHolder => self.hold_as_foreign_client(cluster, holds).await,
            Fault::RedisRestartsEmpty | Fault::RedisRestarts => cluster.redis.stop(),
            Fault::FlushAll => self.effects += u64::from(cluster.redis.cli(&["flushall"]) == "OK"),
            Fault::FlushUnderHolder => self.flush_under_holder(cluster).await,
            Fault::KillClients => self.effects += number(&cluster.redis.cli(&["client", "kill", "type", "normal"])),
            Fault::OutOfMemory => {
                cluster.redis.cli(&["config", "set", "maxmemory", "1"]);
                self.effects += u64::from(cluster.redis.cli(&["set", "x", "y"]).contains("OOM"));
            }
            Fault::DebugSleep => {
                // Redis replies after the sleep.
                block_in_place(|| cluster.redis.cli(&["debug", "sleep", "0.8"]));
                self.effects += u64::from(self.begun.elapsed() >= Duration::from_millis(800));
            }
            Fault::DeleteLock => self.run_while_held(cluster, &["del", LOCK_KEY]),
            Fault::ExpireLock => self.run_while_held(cluster, &["pexpire", LOCK_KEY, "1"]),
            Fault::PromoteLagging => self.begin_promotion(cluster).await,
            Fault::ClockForward => self.set_clock(cluster, HOUR_US),
            Fault::ClockBackward => self.set_clock(cluster, -HOUR_US),
            fault => unreachable!("{fault:?} does not hit Redis"),
        }
    }

    pub(super) fn end_at_redis(&mut self, cluster: &mut Cluster<'_>) {
        match self.fault {
            Fault::StopRedis => {
                self.effects += u64::from(is_stopped(cluster.redis.pid()));
                cluster.redis.signal("CONT");
            }
            Fault::RedisRestartsEmpty => {
                let files = cluster.redis.folder.path().join("appendonlydir");
                self.effects += u64::from(fs::remove_dir_all(files).is_ok());
                block_in_place(|| cluster.redis.restart());
            }
            Fault::RedisRestarts => {
                block_in_place(|| cluster.redis.restart());
                self.effects += u64::from(cluster.redis.cli(&["info", "persistence"]).contains("aof_enabled:1"));
            }
            Fault::OutOfMemory => drop(cluster.redis.cli(&["config", "set", "maxmemory", "0"])),
            Fault::PromoteLagging => self.end_promotion(cluster),
            Fault::ClockForward | Fault::ClockBackward => cluster.clock.set_ahead(0),
            _ => {}
        }
    }

    /// Stops a replica that holds the lock until the lock expires; then a foreign client takes it with a plain `SET NX PX`. While
    /// that client holds it, the file must not change and no replica may take the lock.
    async fn hold_as_foreign_client(&mut self, cluster: &mut Cluster<'_>, holds: &mut Vec<ForeignHold>) {
        cluster.arm_failpoint("lock_granted", "STOP");
        let Some(slot) = cluster.wait_for_failpoint("lock_granted", PATIENCE).await else { return };
        let hold = Duration::from_millis(1200);
        let hold_ms = hold.as_millis().to_string();
        let deadline = Instant::now() + PATIENCE;
        let held_since = loop {
            let sent = Instant::now();
            if cluster.redis.cli(&["set", LOCK_KEY, FOREIGN_HOLDER, "nx", "px", &hold_ms]) == "OK" {
                break sent;
            }
            if Instant::now() > deadline {
                cluster.signal(slot, "CONT");
                return;
            }
        };
        // A replica may finish a write that it began in time.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let bytes_before = fs::metadata(&cluster.csv).expect("a CSV").len();
        cluster.signal(slot, "CONT");
        tokio::time::sleep(Duration::from_millis(500)).await;
        let bytes_after = fs::metadata(&cluster.csv).expect("a CSV").len();
        let still_held = cluster.redis.cli(&["get", LOCK_KEY]) == FOREIGN_HOLDER;
        if held_since.elapsed() < hold {
            holds.push(ForeignHold { bytes_before, bytes_after, still_held });
            self.effects += 1;
        }
        if still_held {
            cluster.redis.cli(&["del", LOCK_KEY]);
        }
    }

    /// Redis loses its keys and grants the same token again while the holder is stopped for less than the time to live.
    async fn flush_under_holder(&mut self, cluster: &mut Cluster<'_>) {
        cluster.arm_failpoint("lock_granted", "STOP");
        let Some(slot) = cluster.wait_for_failpoint("lock_granted", PATIENCE).await else { return };
        let before = csv_len(cluster);
        self.effects += u64::from(cluster.redis.cli(&["flushall"]) == "OK");
        wait_at_most(LOCK_TTL / 2, || csv_len(cluster) != before).await;
        cluster.signal(slot, "CONT");
    }

    /// Repeats the command until it finds the lock held.
    fn run_while_held(&mut self, cluster: &Cluster<'_>, command: &[&str]) {
        let deadline = Instant::now() + PATIENCE;
        while self.effects == 0 && Instant::now() < deadline {
            self.effects += number(&cluster.redis.cli(command));
        }
    }

    async fn begin_promotion(&mut self, cluster: &Cluster<'_>) {
        let (replica, proxy) = cluster.start_redis_replica().await;
        proxy.stall(true);
        wait_at_most(PATIENCE, || replication_offset(&cluster.redis) > replication_offset(&replica)).await;
        self.promotion = Some((replica, proxy));
    }

    fn end_promotion(&mut self, cluster: &mut Cluster<'_>) {
        let Some((replica, stalled_proxy)) = self.promotion.take() else { return };
        let lag = replication_offset(&cluster.redis).saturating_sub(replication_offset(&replica));
        replica.cli(&["replicaof", "no", "one"]);
        // The proxy stays stalled: the changes that it holds back never arrive.
        let old = cluster.switch_redis(replica);
        drop((old, stalled_proxy));
        let is_primary = cluster.redis.cli(&["info", "replication"]).contains("role:master");
        self.effects += if is_primary { lag } else { 0 };
    }

    fn set_clock(&mut self, cluster: &Cluster<'_>, ahead_us: i64) {
        let now_s = || number(cluster.redis.cli(&["time"]).lines().next().unwrap_or_default()) as i64;
        let before = now_s();
        cluster.clock.set_ahead(ahead_us);
        self.effects += u64::from((now_s() - before).abs() > ahead_us.abs() / 2_000_000);
    }
}

/// 0 if the text is no number.
fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or_default()
}

fn replication_offset(redis: &Redis) -> u64 {
    let info = redis.cli(&["info", "replication"]);
    let offset = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(number);
    offset("slave_repl_offset:").or_else(|| offset("master_repl_offset:")).unwrap_or_default()
}
