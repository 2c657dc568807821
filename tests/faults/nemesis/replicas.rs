//! Faults of replicas: signals, failpoints, restarts and scaling.

use std::time::{Duration, Instant};

use super::{ActiveFault, Fault, is_stopped};
use crate::{
    cluster::{Cluster, LOCK_TTL, REPLICAS},
    failpoints::{REBUILD, leave_torn_line},
    sandbox::HOSTS,
    support::PATIENCE,
};

impl ActiveFault {
    pub(super) async fn begin_at_replicas(&mut self, cluster: &mut Cluster<'_>) {
        match self.fault {
            Fault::KillOne => self.effects += u64::from(cluster.kill(self.slot)),
            Fault::KillAll => {
                for slot in cluster.serving() {
                    self.effects += u64::from(cluster.kill(slot));
                }
            }
            Fault::KillAtFailpoint | Fault::StopAtFailpoint => cluster.arm_failpoint(self.failpoint, self.signal()),
            Fault::StopOne => self.stop(cluster, self.slot),
            Fault::StopAll => cluster.serving().into_iter().for_each(|slot| self.stop(cluster, slot)),
            Fault::Terminate => self.effects += u64::from(cluster.terminate(self.slot)),
            Fault::RollingRestart => {
                for slot in cluster.serving() {
                    self.effects += u64::from(cluster.drain_and_terminate(slot));
                    cluster.start_replica(slot).await;
                }
            }
            Fault::ScaleOut => {
                let before = cluster.serving().len();
                cluster.start_missing(HOSTS).await;
                self.effects += (cluster.serving().len() - before) as u64;
            }
            Fault::ScaleIn => self.effects += u64::from(cluster.drain_and_terminate(self.slot)),
            fault => unreachable!("{fault:?} does not hit replicas"),
        }
    }

    pub(super) async fn end_at_replicas(&mut self, cluster: &mut Cluster<'_>) {
        match self.fault {
            Fault::KillAtFailpoint | Fault::StopAtFailpoint => self.end_at_failpoint(cluster).await,
            Fault::StopOne | Fault::StopAll => {
                cluster.serving().into_iter().for_each(|slot| cluster.signal(slot, "CONT"));
            }
            Fault::ScaleOut => {
                while cluster.serving().len() > REPLICAS {
                    let slot = *cluster.serving().last().expect("more than none");
                    self.effects += u64::from(cluster.drain_and_terminate(slot));
                }
            }
            _ => {}
        }
    }

    /// The signal that a replica sends to itself at the failpoint.
    fn signal(&self) -> &'static str {
        if self.fault == Fault::KillAtFailpoint { "KILL" } else { "STOP" }
    }

    fn stop(&mut self, cluster: &mut Cluster<'_>, slot: usize) {
        let replica = cluster.replica(slot);
        if !replica.has_ended() {
            replica.signal("STOP");
            self.effects += u64::from(is_stopped(replica.pid()));
        }
    }

    async fn end_at_failpoint(&mut self, cluster: &mut Cluster<'_>) {
        let is_rebuild = REBUILD.contains(&self.failpoint);
        let deadline = Instant::now() + PATIENCE;
        let slot = loop {
            if is_rebuild {
                leave_torn_line(&cluster.csv);
            }
            if let Some(slot) = cluster.wait_for_failpoint(self.failpoint, Duration::from_millis(500)).await {
                break slot;
            }
            if Instant::now() > deadline {
                return;
            }
            cluster.arm_failpoint(self.failpoint, self.signal());
        };
        if self.fault == Fault::KillAtFailpoint {
            self.effects += u64::from(cluster.kill(slot));
        } else {
            tokio::time::sleep(LOCK_TTL + LOCK_TTL / 2).await;
            self.effects += u64::from(is_stopped(cluster.replica(slot).pid()));
            cluster.signal(slot, "CONT");
        }
    }
}
