//! No body within the limits takes more than three times `ROWLOCK_BATCH_LIMIT` in a replica with the default settings.
//!
//! What is compared is `VmHWM`, the most memory that the process ever had resident, after each body. Where the test may make a memory
//! cgroup (as root), the replica also lives in one of 512 MiB, the limit of the Compose file and the manifests, and must survive.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use reqwest::Method;
use serde_json::json;

use crate::support::{Bench, On, PATIENCE, Replica, answer};

/// The default.
const BATCH_LIMIT: usize = 64 << 20;
const CGROUP_BYTES: usize = 512 << 20;
const CSV: &str = "text/csv";
const CELLS: &str = "text/csv; header=absent";
const LINES: &str = "application/x-ndjson";
const JSON: &str = "application/json";

/// A cgroup with a memory limit, version 1 or 2. It must outlive the process that is in it.
struct MemoryCgroup(PathBuf);

impl MemoryCgroup {
    /// `None` where the system does not permit one, or counts the files of this folder as memory that cannot be freed.
    fn with(replica: &Replica, folder: &Path) -> Option<Self> {
        let on_disk = Command::new("stat").args(["-fc", "%T"]).arg(folder).output().ok()?.stdout != b"tmpfs\n";
        let roots = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        let (root, limit) = roots.into_iter().find(|(root, _)| Path::new(root).join("cgroup.procs").exists())?;
        let cgroup = Self(Path::new(root).join(format!("rowlock-test-{}", replica.pid())));
        fs::create_dir(&cgroup.0).ok().filter(|()| on_disk)?;
        fs::write(cgroup.0.join(limit), CGROUP_BYTES.to_string()).ok()?;
        fs::write(cgroup.0.join("cgroup.procs"), replica.pid().to_string()).ok()?;
        Some(cgroup)
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        // The system may still be clearing up after the process.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() || !self.0.exists() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

fn gzip(input: &[u8]) -> Vec<u8> {
    let mut child =
        Command::new("gzip").arg("-1").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("gzip runs");
    let (mut stdin, input) = (child.stdin.take().expect("piped"), input.to_vec());
    let writer = thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().expect("ends");
    writer.join().expect("no panic").expect("written");
    output.stdout
}

fn zstd(input: &[u8]) -> Vec<u8> {
    zstd::encode_all(input, 1).expect("packs")
}

/// A frame that asks the decoder for a window of 128 MiB.
fn zstd_of_wide_window(input: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("an encoder");
    encoder.window_log(27).and_then(|()| encoder.include_contentsize(false)).expect("settable");
    encoder.write_all(input).and_then(|()| encoder.finish()).expect("packs")
}

fn identity(input: &[u8]) -> Vec<u8> {
    input.to_vec()
}

/// `unit` repeated between `start` and `end`, `mib` MiB in all at most.
fn filled(start: &str, unit: &str, end: &str, mib: usize) -> Vec<u8> {
    let room = (mib << 20) - start.len() - end.len();
    [start.as_bytes(), &unit.as_bytes().repeat(room / unit.len()), end.as_bytes()].concat()
}

/// A content coding, and how to make it.
type Pack = (&'static str, fn(&[u8]) -> Vec<u8>);

/// What is sent, and the statuses and a part of the detail that are right.
struct Case {
    name: &'static str,
    content_type: &'static str,
    pack: Pack,
    body: Vec<u8>,
    expected: (u16, &'static str),
}

const PLAIN: Pack = ("identity", identity);
const GZIP: Pack = ("gzip", gzip);
const ZSTD: Pack = ("zstd", zstd);
const WIDE: Pack = ("zstd", zstd_of_wide_window);

impl Case {
    fn new(
        name: &'static str,
        content_type: &'static str,
        pack: Pack,
        body: Vec<u8>,
        expected: (u16, &'static str),
    ) -> Self {
        Self { name, content_type, pack, body, expected }
    }
}

const OF_JOURNAL: (u16, &str) = (413, "half of ROWLOCK_JOURNAL_BYTES");
const OF_MEMORY: (u16, &str) = (413, "bytes of memory (ROWLOCK_BATCH_LIMIT)");
const OF_ROW: (u16, &str) = (413, "one row is larger than 8388608 bytes");
const ACCEPTED: (u16, &str) = (201, "");

/// Sends the bodies to one replica, one after another.
async fn check(header: &str, file: &[u8], settings: &[(&str, &str)], cases: Vec<Case>) {
    let bench = if file.is_empty() { Bench::new(On::Embedded) } else { Bench::with_file(On::Embedded, file) };
    let defaults = [("ROWLOCK_JOURNAL_BYTES", "128MiB"), ("ROWLOCK_CSV_HEADER", header)];
    // Declared first, since it is dropped last, also when the test fails.
    let _cgroup;
    let replica = bench.replica(&[&defaults, settings].concat());
    _cgroup = MemoryCgroup::with(&replica, bench.folder());
    for Case { name, content_type, pack: (encoding, pack), body, expected: (expected, detail) } in cases {
        let request = replica.request(Method::POST, "/append/batch").header("content-type", content_type);
        let request = request.timeout(2 * PATIENCE);
        let (status, problem) = answer(request.header("content-encoding", encoding).body(pack(&body))).await;
        let peak = (replica.peak_kib() as usize) << 10;
        println!("{header:.40} {name}: {status}, {} MiB at most", peak >> 20);
        assert_eq!(status, expected, "{name}: {problem}");
        assert!(problem["detail"].as_str().unwrap_or_default().contains(detail), "{name}: {problem}");
        assert!(peak <= 3 * BATCH_LIMIT, "{header:.40} {name}: {} MiB", peak >> 20);
    }
    assert_eq!(replica.append(json!({"data": "alive"})).await.0, 201);
}

#[tokio::test]
async fn bodies_of_default_file_take_bounded_memory() {
    let case = Case::new;
    let tiny_rows = || filled("data\n", "x\n", "", 58);
    // Rows that are nearly as long as a row may be.
    let (long, quotes) = ("x".repeat(7 << 20), "\"".repeat(7 << 20));
    let (quoted_quotes, bare_quotes) = (format!("\"{quotes}{quotes}\"\n"), format!("x{quotes}\n"));
    check(
        "timestamp,replica,token,data",
        b"",
        &[],
        vec![
            case("tiny CSV rows", CSV, PLAIN, tiny_rows(), OF_JOURNAL),
            case("tiny CSV rows in gzip", CSV, GZIP, tiny_rows(), OF_JOURNAL),
            case("tiny CSV rows in zstd", CSV, ZSTD, tiny_rows(), OF_JOURNAL),
            case("a wide zstd window", CSV, WIDE, tiny_rows(), (400, "zstd window")),
            case("empty strings", LINES, ZSTD, filled("", "\"\"\n", "", 63), OF_JOURNAL),
            case("empty objects", LINES, ZSTD, filled("", "{}\n", "", 63), OF_JOURNAL),
            case("an array of numbers", JSON, ZSTD, filled("[0", ",0", "]", 63), (422, "row 1: accepted")),
            case("an array of strings", JSON, ZSTD, filled("[\"\"", ",\"\"", "]", 63), OF_JOURNAL),
            case("a row of numbers", JSON, ZSTD, filled("[[0", ",0", "]]", 63), OF_ROW),
            case("a row of many cells", JSON, ZSTD, filled("[[0", ",0", "]]", 7), (422, "cells, but the file has 1")),
            case("many fields", LINES, ZSTD, filled("{\"data\":0", ",\"a\":0", "}", 7), (422, "no such column")),
            case("deep arrays", JSON, ZSTD, filled("[", "[", "", 63), OF_ROW),
            case("no array", JSON, ZSTD, filled("{\"a\":[0", ",0", "]}", 63), (422, "accepted: an array")),
            case("many empty cells", CELLS, ZSTD, filled("", ",", "\n", 63), (422, "more than 1048576 cells")),
            case("a wide header", CSV, ZSTD, filled("a", ",a", "\n", 1), (422, "no such column")),
            case("one long line", CSV, ZSTD, filled("data\n", "x", "\n", 63), OF_ROW),
            case("quoted quotes", CSV, ZSTD, filled("data\n", &quoted_quotes, "", 60), ACCEPTED),
            case("quotes in bare cells", CSV, ZSTD, filled("data\n", &bare_quotes, "", 30), ACCEPTED),
            case("more quotes than fit", CSV, ZSTD, filled("data\n", &bare_quotes, "", 63), OF_MEMORY),
            case("long strings", LINES, ZSTD, filled("", &format!("\"\\n{long}\"\n"), "", 63), ACCEPTED),
            case(
                "long strings in arrays",
                JSON,
                ZSTD,
                filled("[[\"\"]", &format!(",[\"\\n{long}\"]"), "]", 63),
                ACCEPTED,
            ),
            case("usual rows", CSV, ZSTD, filled("data\n", &format!("{:79}\n", "x"), "", 40), ACCEPTED),
        ],
    )
    .await;
}

#[tokio::test]
async fn bodies_of_one_column_file_take_bounded_memory() {
    let case = Case::new;
    check(
        "data",
        b"",
        &[("ROWLOCK_FORMULA_GUARD", "on")],
        vec![
            // Rows of few bytes in the file, as many as a debug build parses in good time.
            case("tiny CSV rows", CSV, GZIP, filled("data\n", "x\n", "", 16), ACCEPTED),
            case("formulas", CSV, ZSTD, filled("data\n", "=a\n", "", 12), ACCEPTED),
            case("blank lines", CSV, ZSTD, filled("data\nx\n", "\n", "y\n", 63), OF_JOURNAL),
            case("usual rows", CSV, ZSTD, filled("data\n", &format!("{:99}\n", "x"), "", 62), ACCEPTED),
        ],
    )
    .await;
}

#[tokio::test]
async fn bodies_of_wide_files_take_bounded_memory() {
    let case = Case::new;
    let names: Vec<_> = std::iter::once("data".to_owned()).chain((1..10_000).map(|n| format!("c{n}"))).collect();
    check(
        &names.join(","),
        b"",
        &[],
        vec![
            case("empty objects", LINES, ZSTD, filled("", "{}\n", "", 63), OF_MEMORY),
            case("short CSV rows", CSV, ZSTD, filled("data\n", "x\n", "", 58), OF_MEMORY),
        ],
    )
    .await;
    let wide = ["x"].repeat(10_000).join(",") + "\n";
    check(
        "none",
        wide.as_bytes(),
        &[],
        vec![
            case("tiny rows", CELLS, ZSTD, filled("", "x\n", "", 30), OF_JOURNAL),
            case("more tiny rows", CELLS, ZSTD, filled("", "x\n", "", 60), OF_MEMORY),
            case("many cells", JSON, ZSTD, filled("[[0", ",0", "]]", 7), (422, "more than 1048576 cells")),
            case("empty cells", CELLS, ZSTD, filled("", &(",".repeat(9_999) + "\n"), "", 63), ACCEPTED),
        ],
    )
    .await;
}
