//! The systemd unit: systemd accepts it, and it is well sandboxed.

use std::{fs, process::Command};

use crate::support::{Bench, On, not_run};

const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/systemd/rowlock.service");
/// The highest accepted exposure level of `systemd-analyze security`, in tenths: 100 is a service without a sandbox. This unit has
/// 11, for the network and for read access to the host's root directory.
const EXPOSURE_MAX: u32 = 15;

#[test]
fn unit_is_valid_and_well_sandboxed() {
    let help = Command::new("systemd-analyze").arg("--help").output();
    if !help.is_ok_and(|help| String::from_utf8_lossy(&help.stdout).contains("--threshold")) {
        return not_run("systemd-analyze of systemd 250 or newer is missing");
    }
    let bench = Bench::new(On::Embedded);
    let path = bench.folder().join("rowlock.service");
    let analyze = |unit: &str, args: &[&str]| {
        fs::write(&path, unit.replace("/usr/local/bin/rowlock", env!("CARGO_BIN_EXE_rowlock"))).expect("writable");
        let output = Command::new("systemd-analyze").args(args).arg(&path).output().expect("systemd-analyze runs");
        let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        (output.status.success(), text)
    };
    let unit = fs::read_to_string(UNIT).expect("readable");
    // Complaints about other units of this host are ignored.
    let complaints = |unit: &str| {
        let (is_valid, text) = analyze(unit, &["verify"]);
        let ours: Vec<_> = text.lines().filter(|line| line.contains("rowlock")).map(str::to_owned).collect();
        if is_valid || !ours.is_empty() { ours } else { vec![text] }
    };
    assert_eq!(complaints(&unit), [""; 0]);
    let threshold = format!("--threshold={EXPOSURE_MAX}");
    let security = ["security", "--offline=yes", "--no-pager", &threshold];
    let (is_low, text) = analyze(&unit, &security);
    assert!(is_low, "{text}");
    // Both checks must find a fault.
    assert!(!complaints(&unit.replace("Restart=on-failure", "Restart=on-filure")).is_empty());
    assert!(!analyze(&unit.replace("NoNewPrivileges=yes", "").replace("CapabilityBoundingSet=\n", ""), &security).0);
}

#[test]
fn unit_stop_timeout_exceeds_drain_and_grace_time() {
    let unit = fs::read_to_string(UNIT).expect("readable");
    let seconds = |before: &str| -> u32 {
        let rest = unit.split(before).nth(1).unwrap_or_else(|| panic!("no {before}"));
        rest.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).expect("seconds")
    };
    let takes = seconds("ROWLOCK_DRAIN_DELAY=") + seconds("ROWLOCK_GRACE=");
    assert!(seconds("\nTimeoutStopSec=") >= takes + 5);
}
