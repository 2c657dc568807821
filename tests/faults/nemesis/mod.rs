//! Injects faults: how each begins, how it ends, and what proves that it had an effect.

mod disk;
mod fault;
mod foreign_writer;
mod network;
mod redis;
mod replicas;

use std::{
    fs,
    time::{Duration, Instant},
};

use rowlock::random::Random;

pub(crate) use fault::Fault;

use crate::{
    cluster::{Cluster, LOCK_TTL},
    failpoints::{APPEND, CHECKPOINT, REBUILD},
    history::ForeignHold,
    proxy::Proxy,
    support::{PATIENCE, Redis, Replica},
};
use fault::Subject;

/// A fault that has begun and not ended.
pub(crate) struct ActiveFault {
    pub(crate) fault: Fault,
    begun: Instant,
    /// The replica that is hit, if the fault hits one.
    pub(crate) slot: usize,
    failpoint: &'static str,
    /// The Redis replica of `PromoteLagging`, and the proxy that it replicates through.
    promotion: Option<(Redis, Proxy)>,
    effects: u64,
    /// The replica exited before the fault could hit it.
    replica_exited: bool,
    disk_failures_before: u64,
}

/// What proves that a fault took place.
pub(crate) enum Proof {
    /// How many effects were observed: 0 is a finding.
    Effects(u64),
    /// The replica exited before it was hit, so there could be none.
    ReplicaExited,
}

impl Fault {
    /// Hits any replica except the one in `spared`.
    pub(crate) async fn begin(
        self,
        cluster: &mut Cluster<'_>,
        random: &mut Random,
        holds: &mut Vec<ForeignHold>,
        spared: Option<usize>,
    ) -> ActiveFault {
        let serving: Vec<_> = cluster.serving().into_iter().filter(|&slot| Some(slot) != spared).collect();
        let slot = serving[random.below(serving.len())];
        let failpoints = [&APPEND[..], &CHECKPOINT, &REBUILD].concat();
        let failpoint = failpoints[random.below(failpoints.len())];
        let begun = Instant::now();
        let mut active = ActiveFault {
            fault: self,
            begun,
            slot,
            failpoint,
            promotion: None,
            effects: 0,
            replica_exited: false,
            disk_failures_before: disk::failures(cluster, self),
        };
        match self.subject() {
            Subject::Replica => active.begin_at_replicas(cluster).await,
            Subject::Redis => active.begin_at_redis(cluster, holds).await,
            Subject::Network => active.begin_in_network(cluster),
            Subject::Disk => active.begin_on_disk(cluster, random).await,
            Subject::Csv => active.write_foreign_lines(cluster, random).await,
        }
        active
    }
}

impl ActiveFault {
    /// Waits for the first effect, if the fault needs traffic to have one.
    pub(crate) async fn wait_for_effect(&mut self, cluster: &mut Cluster<'_>) {
        let deadline = Instant::now() + PATIENCE;
        while let Some(effects) = self.count_effects(cluster) {
            self.effects = effects;
            // A replica may exit now because of a sync that failed before this fault.
            let exited = cluster.nodes[self.slot].as_mut().is_none_or(Replica::has_ended);
            self.replica_exited = exited && !self.fault.fails_disk_operations();
            if effects > 0 || self.replica_exited || Instant::now() > deadline {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// None: the effects of this fault are counted elsewhere.
    fn count_effects(&self, cluster: &Cluster<'_>) -> Option<u64> {
        if self.fault.fails_disk_operations() {
            return Some(disk::failures(cluster, self.fault) - self.disk_failures_before);
        }
        self.count_network_effects(cluster)
    }

    /// Ends the fault. Replicas that it killed are not started again here.
    pub(crate) async fn end(mut self, cluster: &mut Cluster<'_>) -> Proof {
        let shortest = if self.fault.outlasts_lock() { LOCK_TTL + LOCK_TTL / 2 } else { Duration::ZERO };
        tokio::time::sleep(shortest.saturating_sub(self.begun.elapsed())).await;
        match self.fault.subject() {
            Subject::Replica => self.end_at_replicas(cluster).await,
            Subject::Redis => self.end_at_redis(cluster),
            Subject::Network => self.end_in_network(cluster),
            Subject::Disk => self.end_on_disk(cluster),
            Subject::Csv => {}
        }
        if self.effects == 0 && self.replica_exited { Proof::ReplicaExited } else { Proof::Effects(self.effects) }
    }
}

/// Waits for the condition, at most as long as `patience`.
async fn wait_at_most(patience: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !condition() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Waits until a replica has appended to the file or truncated it.
async fn wait_until_written(cluster: &Cluster<'_>) {
    let len = || csv_len(cluster);
    let before = len();
    wait_at_most(PATIENCE, || len() != before).await;
}

fn csv_len(cluster: &Cluster<'_>) -> u64 {
    fs::metadata(&cluster.csv).map_or(0, |csv| csv.len())
}

/// Whether the process gets into the stopped state.
fn is_stopped(pid: u32) -> bool {
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
