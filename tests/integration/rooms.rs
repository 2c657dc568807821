//! Arrows between rooms go down only; lock and storage never meet; http knows no Redis, the core no axum.

use std::{fs, path::Path};

/// Each room, and which of ours it may name.
const MAY_NAME: [(&str, &[&str]); 17] = [
    ("cli", &["server", "config", "record", "commit", "lock", "storage", "schema", "client", "load"]),
    ("load", &["client", "schema", "quoting", "random"]),
    ("server", &["http", "commit", "config", "metrics", "client"]),
    ("http", &["commit", "record", "schema", "config", "quoting", "formula", "metrics", "corpus"]),
    ("commit", &["lock", "storage", "record", "schema", "config", "points", "metrics"]),
    ("lock", &["record", "config", "metrics"]),
    ("storage", &["record", "schema", "points", "quoting", "metrics", "corpus", "random"]),
    ("schema", &["record", "formula"]),
    ("record", &["formula"]),
    ("config", &[]),
    ("points", &[]),
    ("metrics", &[]),
    ("quoting", &[]),
    ("random", &[]),
    ("formula", &[]),
    ("corpus", &[]),
    ("client", &[]),
];

/// Libraries that belong to some rooms alone.
const KEPT_IN: [(&str, &[&str]); 10] = [
    ("axum", &["http", "server"]),
    ("tower_http", &["http"]),
    ("utoipa_axum", &["http"]),
    ("utoipa_swagger_ui", &["http"]),
    ("deadpool", &["lock"]),
    ("redis", &["lock"]),
    ("csv_core", &["http", "storage", "load"]),
    ("clap", &["cli", "config"]),
    ("metrics", &["metrics"]),
    ("metrics_exporter_prometheus", &["metrics"]),
];

fn sources(path: &Path) -> Vec<String> {
    if path.is_file() {
        return vec![fs::read_to_string(path).expect("readable")];
    }
    fs::read_dir(path).expect("a room").flat_map(|entry| sources(&entry.expect("an entry").path())).collect()
}

fn source(room: &str) -> String {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let file = src.join(format!("{room}.rs"));
    sources(&if file.exists() { file } else { src.join(room) }).join("\n")
}

/// Rooms named by `crate::room` or in a braced `use crate::{…}`.
fn named(source: &str, room: &str) -> bool {
    let direct = source.contains(&format!("crate::{room}::")) || source.contains(&format!("crate::{room};"));
    let braced = source.split("use crate::{").skip(1).any(|rest| {
        let list = rest.split("};").next().unwrap_or_default();
        list.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == room)
    });
    direct || braced
}

/// A library of the same name as one of our rooms is told from it: that is named by `crate::`.
fn uses(source: &str, library: &str) -> bool {
    let (first, others) = source.split_once("use crate::{").unwrap_or((source, ""));
    let others = others.split("use crate::{").map(|rest| rest.split_once("};").map_or("", |(_, rest)| rest));
    std::iter::once(first).chain(others).any(|text| {
        text.match_indices(&format!("{library}::")).any(|(at, _)| {
            let before = &text[..at];
            !before.ends_with("crate::") && !before.ends_with(|c: char| c.is_alphanumeric() || c == '_')
        })
    })
}

#[test]
fn each_room_names_only_what_is_below_it() {
    for (room, allowed) in MAY_NAME {
        let source = source(room);
        for (other, _) in MAY_NAME {
            assert!(other == room || allowed.contains(&other) || !named(&source, other), "{room} names {other}");
        }
        for (library, homes) in KEPT_IN {
            assert!(homes.contains(&room) || !uses(&source, library), "{room} uses {library}");
        }
    }
    assert!(uses("metrics::counter!(x)", "metrics") && uses("use ::metrics::Counter;", "metrics"));
    assert!(!uses("use crate::{\n metrics::Meter,\n};\nuse crate::metrics::Meter;", "metrics"));
    assert!(named("use crate::{\n config::Config, lock::{self, Lock},\n};", "lock") && named("crate::lock::x", "lock"));
}

#[test]
fn every_module_of_the_crate_is_a_known_room() {
    let lib = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/lib.rs")).expect("readable");
    let modules: Vec<_> = lib
        .lines()
        .filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';'))
        .collect();
    assert_eq!(modules.len(), MAY_NAME.len());
    assert!(modules.iter().all(|module| MAY_NAME.iter().any(|(room, _)| room == module)), "{modules:?}");
}
