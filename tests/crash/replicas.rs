//! Replicas on one file, brought back whenever they are killed, and the points at which a test waits for them.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    sync::{Arc, RwLock},
};

use crate::{
    load::{Addresses, HEADER},
    named_points::{REBUILD, arm, leave_torn_line},
    support::{Bench, On, Replica, until},
};

/// How long a killed replica's lock binds the others.
pub(crate) const LOCK_TTL_MS: u64 = 200;

pub(crate) struct Fleet {
    pub(crate) bench: Bench,
    pub(crate) replicas: Vec<Replica>,
    pub(crate) addresses: Addresses,
    points: PathBuf,
}

impl Fleet {
    /// Three replicas on one Redis.
    pub(crate) fn start() -> Self {
        Self::on(Bench::new(On::Redis))
    }

    /// As `start`, on the CSV of this bench.
    pub(crate) fn on(bench: Bench) -> Self {
        let points = bench.folder().join("points");
        fs::create_dir(&points).expect("a folder");
        let addresses = Arc::new(RwLock::new(vec![None; 3]));
        let mut fleet = Self { bench, replicas: Vec::new(), addresses, points };
        fleet.start_all();
        fleet
    }

    fn one_more(&self, place: usize) -> Replica {
        let (points, ttl) = (self.points.to_string_lossy(), format!("{LOCK_TTL_MS}ms"));
        let settings = [("ROWLOCK_CSV_HEADER", HEADER), ("ROWLOCK_LOCK_TTL", &ttl), ("ROWLOCK_TEST_POINTS", &points)];
        let replica = self.bench.replica(&settings);
        self.addresses.write().expect("not poisoned")[place] = Some(replica.url.clone());
        replica
    }

    /// Makes the next replica that comes to the point kill or stop itself.
    pub(crate) fn arm(&self, point: &str, signal: &str) {
        arm(&self.points, point, signal);
    }

    /// Waits until one has come there, and answers its place.
    pub(crate) async fn hit(&self, point: &str) -> usize {
        let taken_by = |replica: &Replica| self.points.join(format!("{point}.{}", replica.pid())).exists();
        let is_rebuild = REBUILD.contains(&point);
        until(point, async || {
            if is_rebuild {
                leave_torn_line(&self.bench.csv);
            }
            self.replicas.iter().any(taken_by)
        })
        .await;
        let place = self.replicas.iter().position(taken_by).expect("it was there just now");
        fs::remove_file(self.points.join(format!("{point}.{}", self.replicas[place].pid()))).expect("it is there");
        place
    }

    /// Starts a replica where one was killed.
    pub(crate) fn replace_killed(&mut self, place: usize) {
        let status = self.replicas[place].end();
        assert_eq!(status.signal(), Some(9), "{status:?}: {}", self.replicas[place].log());
        self.replicas[place] = self.one_more(place);
    }

    pub(crate) fn start_all(&mut self) {
        self.replicas = (0..3).map(|place| self.one_more(place)).collect();
    }

    /// Kills all that still run, as a host does that goes down; answers the exit codes of those that had ended before.
    pub(crate) fn kill_all(&mut self) -> Vec<i32> {
        self.addresses.write().expect("not poisoned").fill(None);
        let end = |mut replica: Replica| {
            if !replica.has_ended() {
                replica.signal("KILL");
            }
            replica.end().code()
        };
        self.replicas.drain(..).filter_map(end).collect()
    }
}
