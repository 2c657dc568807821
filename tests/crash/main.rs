//! Kills, stops, power cuts and failing disks, on real replicas under load: each key is in the file exactly once.

#[path = "../support/disk/mod.rs"]
#[allow(dead_code, reason = "shared with the faults")]
mod disk;
mod disk_errors;
mod disk_test;
#[path = "../support/ext4.rs"]
mod ext4;
#[path = "../support/failpoints.rs"]
mod failpoints;
mod kill_points;
mod load;
mod power_cuts;
mod replicas;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "shared with the integration tests")]
mod support;
mod volume_stalls;
