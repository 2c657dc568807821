//! The manifests for Kubernetes: valid by its schemas, all applied, with enough time for a shutdown.

use std::{fs, path::Path};

use crate::support::{Bench, On, python_tool};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/kubernetes");
/// The newest version that the tool has schemas for, and an old one that is still common.
const VERSIONS: [&str; 2] = ["1.37", "1.30"];

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(FOLDER).join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// All manifests, without the kustomization.
fn manifests() -> Vec<String> {
    let entries = fs::read_dir(FOLDER).expect("readable");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect();
    names.retain(|name| name != "kustomization.yaml");
    names.sort();
    names
}

/// The errors that the validator finds, if any.
fn validation_errors(folder: &Path, version: &str, names: &[String]) -> Option<String> {
    let output = python_tool("kubernetes-validate")
        .args(["--strict", "--kubernetes-version", version])
        .args(names)
        .current_dir(folder)
        .output()
        .expect("it runs");
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    (!output.status.success()).then_some(text)
}

#[test]
fn manifests_are_valid_for_kubernetes() {
    let names = manifests();
    for version in VERSIONS {
        assert_eq!(validation_errors(Path::new(FOLDER), version, &names), None);
    }
    // The validator must find an unknown field, and a value of the wrong type.
    let folder = tempfile::tempdir().expect("a folder");
    for (right, wrong) in [("readOnlyRootFilesystem", "readOnlyRootFileSystem"), ("replicas: 3", "replicas: three")] {
        let text = read("deployment.yaml");
        assert!(text.contains(right));
        fs::write(folder.path().join("deployment.yaml"), text.replace(right, wrong)).expect("writable");
        assert!(validation_errors(folder.path(), VERSIONS[0], &["deployment.yaml".to_owned()]).is_some(), "{wrong}");
    }
}

#[test]
fn kustomization_applies_every_manifest() {
    let text = read("kustomization.yaml");
    let resources = text.split("resources:\n").nth(1).expect("resources");
    let mut named: Vec<_> = resources.lines().map_while(|line| line.strip_prefix("  - ")).map(str::to_owned).collect();
    named.sort();
    assert_eq!(named, manifests());
}

#[test]
fn stop_timeouts_exceed_drain_and_grace_time() {
    let seconds = |text: &str, before: &str| -> u32 {
        let rest = text.split(before).nth(1).unwrap_or_else(|| panic!("no {before}"));
        rest.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).expect("seconds")
    };
    let shutdown_s = |text: &str| seconds(text, "ROWLOCK_DRAIN_DELAY: ") + seconds(text, "ROWLOCK_GRACE: ");
    let pod = read("deployment.yaml");
    let stops_s = seconds(&pod, "command: [sleep, \"") + shutdown_s(&read("config.yaml"));
    assert!(seconds(&pod, "terminationGracePeriodSeconds: ") >= stops_s + 5);
    let compose = read("../../docker-compose.yml");
    let rowlock = compose.split("\n  app:\n").nth(1).expect("the service");
    assert!(seconds(rowlock, "stop_grace_period: ") >= shutdown_s(rowlock) + 5);
    // The load balancer waits longer for an answer than a row may wait and sleep.
    let balancer = read("../haproxy/haproxy.cfg");
    let answer = seconds(rowlock, "ROWLOCK_WAIT_TIMEOUT:-") + seconds(rowlock, "ROWLOCK_MAX_SLEEP:-");
    assert!(seconds(&balancer, "timeout server ") > answer);
}

#[test]
fn replica_with_the_settings_of_the_manifests_warns_of_nothing() {
    let config = read("config.yaml");
    let settings = config.split("\ndata:\n").nth(1).expect("settings").lines();
    let settings: Vec<_> = settings.filter_map(|line| line.trim().split_once(": ")).collect();
    let text = |value: &str| value.trim_matches('"').to_owned();
    let mut settings: Vec<_> = settings.into_iter().filter(|(name, _)| !name.starts_with('#')).collect();
    assert!(settings.iter().any(|(name, value)| *name == "ROWLOCK_SIMULATION" && text(value) == "off"), "{config}");
    settings.retain(|(name, _)| !matches!(*name, "REDIS_CSV_FILE_NAME" | "ROWLOCK_LISTEN" | "ROWLOCK_LOG_FORMAT"));
    let settings: Vec<_> = settings.into_iter().map(|(name, value)| (name, text(value))).collect();
    let mut settings: Vec<_> = settings.iter().map(|(name, value)| (*name, &**value)).collect();
    settings.extend([("ROWLOCK_LISTEN", "0.0.0.0:0"), ("ROWLOCK_API_TOKENS", "admin:token-of-an-administrator")]);
    // What Kubernetes adds for the service.
    settings.extend([("ROWLOCK_SERVICE_HOST", "10.0.0.1"), ("ROWLOCK_PORT", "tcp://10.0.0.1:80")]);
    let log = Bench::new(On::Embedded).replica(&settings).log();
    assert!(log.contains("INFO") && !log.contains("WARN"), "{log}");
}
