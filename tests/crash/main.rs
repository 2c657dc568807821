//! Kills, stops, power cuts and failing disks, on real replicas under load: every key stands in the file exactly once.

mod fleet;
mod load;
mod points;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "shared with the integration tests, which use all of it")]
mod support;
