//! Three replicas on one file, which are replaced when they are killed, and the failpoints that tests arm.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    sync::{Arc, RwLock},
};

use crate::{
    failpoints::{REBUILD, arm, leave_torn_line},
    load::{Addresses, HEADER},
    support::{Bench, On, Replica, until},
};

/// How long the lock of a killed replica still excludes the others.
pub(crate) const LOCK_TTL_MS: u64 = 200;

pub(crate) struct Replicas {
    pub(crate) bench: Bench,
    pub(crate) all: Vec<Replica>,
    pub(crate) addresses: Addresses,
    points: PathBuf,
}

impl Replicas {
    /// Three replicas on one Redis.
    pub(crate) fn start() -> Self {
        Self::on(Bench::new(On::Redis))
    }

    /// Like `start`, on the CSV of this bench.
    pub(crate) fn on(bench: Bench) -> Self {
        let points = bench.folder().join("points");
        fs::create_dir(&points).expect("a folder");
        let addresses = Arc::new(RwLock::new(vec![None; 3]));
        let mut replicas = Self { bench, all: Vec::new(), addresses, points };
        replicas.start_all();
        replicas
    }

    fn start_one(&self, index: usize) -> Replica {
        let (points, ttl) = (self.points.to_string_lossy(), format!("{LOCK_TTL_MS}ms"));
        let settings = [("ROWLOCK_CSV_HEADER", HEADER), ("ROWLOCK_LOCK_TTL", &ttl), ("ROWLOCK_TEST_POINTS", &points)];
        let replica = self.bench.replica(&settings);
        self.addresses.write().expect("not poisoned")[index] = Some(replica.url.clone());
        replica
    }

    /// Makes the next replica that reaches the point kill or stop itself.
    pub(crate) fn arm(&self, point: &str, signal: &str) {
        arm(&self.points, point, signal);
    }

    /// Waits until a replica has reached the point, and returns its index.
    pub(crate) async fn hit(&self, point: &str) -> usize {
        let taken_by = |replica: &Replica| self.points.join(format!("{point}.{}", replica.pid())).exists();
        let is_rebuild = REBUILD.contains(&point);
        until(point, async || {
            if is_rebuild {
                leave_torn_line(&self.bench.csv);
            }
            self.all.iter().any(taken_by)
        })
        .await;
        let index = self.all.iter().position(taken_by).expect("it was found just now");
        fs::remove_file(self.points.join(format!("{point}.{}", self.all[index].pid()))).expect("it is there");
        index
    }

    /// Starts a replica in place of a killed one.
    pub(crate) fn replace_killed(&mut self, index: usize) {
        let status = self.all[index].end();
        assert_eq!(status.signal(), Some(9), "{status:?}: {}", self.all[index].log());
        self.all[index] = self.start_one(index);
    }

    pub(crate) fn start_all(&mut self) {
        self.all = (0..3).map(|index| self.start_one(index)).collect();
    }

    /// Kills all running replicas. Returns the exit codes of those that had ended before.
    pub(crate) fn kill_all(&mut self) -> Vec<i32> {
        self.addresses.write().expect("not poisoned").fill(None);
        let end = |mut replica: Replica| {
            if !replica.has_ended() {
                replica.signal("KILL");
            }
            replica.end().code()
        };
        self.all.drain(..).filter_map(end).collect()
    }
}
