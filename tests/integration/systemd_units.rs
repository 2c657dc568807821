//! The systemd unit: one that systemd takes, with little that it leaves open.

use std::{fs, process::Command};

use crate::support::{Bench, On};

const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/systemd/rowlock.service");
/// In tenths of what `systemd-analyze security` counts, of 100 for a service that may do all. Its 1.1 are the network,
/// which is what a service is for, and the host's root directory, read-only.
const EXPOSURE_MAX: u32 = 15;

#[test]
fn the_unit_is_sound_and_leaves_little_open() {
    let help = Command::new("systemd-analyze").arg("--help").output();
    if !help.is_ok_and(|help| String::from_utf8_lossy(&help.stdout).contains("--threshold")) {
        println!("not verified: there is no systemd-analyze of systemd 250 or newer");
        return;
    }
    let bench = Bench::new(On::Embedded);
    let path = bench.folder().join("rowlock.service");
    let analyze = |unit: &str, args: &[&str]| {
        fs::write(&path, unit.replace("/usr/local/bin/rowlock", env!("CARGO_BIN_EXE_rowlock"))).expect("writable");
        let output = Command::new("systemd-analyze").args(args).arg(&path).output().expect("systemd-analyze runs");
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        (output.status.success(), said)
    };
    let unit = fs::read_to_string(UNIT).expect("readable");
    // What it says of other units of this host is none of ours.
    let complaints = |unit: &str| {
        let (is_sound, said) = analyze(unit, &["verify"]);
        let ours: Vec<_> = said.lines().filter(|line| line.contains("rowlock")).map(str::to_owned).collect();
        if is_sound || !ours.is_empty() { ours } else { vec![said] }
    };
    assert_eq!(complaints(&unit), [""; 0]);
    let threshold = format!("--threshold={EXPOSURE_MAX}");
    let security = ["security", "--offline=yes", "--no-pager", &threshold];
    let (is_low, said) = analyze(&unit, &security);
    assert!(is_low, "{said}");
    // Both would see it otherwise.
    assert!(!complaints(&unit.replace("Restart=on-failure", "Restart=on-filure")).is_empty());
    assert!(!analyze(&unit.replace("NoNewPrivileges=yes", "").replace("CapabilityBoundingSet=\n", ""), &security).0);
}

#[test]
fn the_unit_waits_longer_for_the_end_than_the_service_takes() {
    let unit = fs::read_to_string(UNIT).expect("readable");
    let seconds = |before: &str| -> u32 {
        let rest = unit.split(before).nth(1).unwrap_or_else(|| panic!("no {before}"));
        rest.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).expect("seconds")
    };
    let takes = seconds("ROWLOCK_DRAIN_DELAY=") + seconds("ROWLOCK_GRACE=");
    assert!(seconds("\nTimeoutStopSec=") >= takes + 5);
}
