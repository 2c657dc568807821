//! The journal on real files and processes: kills, stale holders, a Redis that lost its data, stopped processes.

use std::{
    fs::{self, File, OpenOptions},
    io::{Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::support::{Bench, On, Replica, journal_headers, until, until_checkpointed, until_held};

pub(crate) const SETTINGS: [(&str, &str); 1] = [("ROWLOCK_CSV_HEADER", "token,data")];

pub(crate) fn side_path(bench: &Bench, suffix: &str) -> String {
    format!("{}{suffix}", bench.csv.display())
}

pub(crate) async fn killed_after(bench: &Bench, rows: &[&str]) {
    let mut replica = bench.replica(&SETTINGS);
    for row in rows {
        replica.append_text(row).await;
    }
    replica.signal("KILL");
    replica.end();
}

/// Overwrites the content of the CSV and keeps its inode.
fn set_csv(bench: &Bench, content: &[u8]) {
    fs::write(&bench.csv, content).expect("writable");
}

#[tokio::test]
async fn rows_missing_after_kill_are_written_at_next_start() {
    for left in ["token,data\n1,one\n", "token,data\n1,one\n2,t", "token,data\n", "token,data\n1,\0\0\0\0\0\0\0\0\n"] {
        let bench = Bench::new(On::Embedded);
        killed_after(&bench, &["one", "two"]).await;
        set_csv(&bench, left.as_bytes());
        let _replica = bench.replica(&SETTINGS);
        until("the rows are back", async || bench.content() == "token,data\n1,one\n2,two\n").await;
    }
}

#[tokio::test]
async fn rebuild_keeps_foreign_lines_and_quarantines_old_end() {
    let bench = Bench::new(On::Embedded);
    killed_after(&bench, &["one"]).await;
    let mut csv = OpenOptions::new().append(true).open(&bench.csv).expect("opens");
    csv.write_all(b",foreign\n").expect("written");
    // A power cut left a hole in place of our row, and half a foreign line.
    set_csv(&bench, b"token,data\n1,\0\0\0\0,foreign\n,\"ha");
    let replica = bench.replica(&SETTINGS);
    // The repair may have used a token of its own.
    let token = replica.append_text("two").await["token"].clone();
    assert_eq!(bench.content(), format!("token,data\n1,one\n,foreign\n{token},two\n"));
    let quarantined = fs::read_to_string(side_path(&bench, ".torn")).expect("a side file");
    assert_eq!(quarantined, "1,\0\0\0\0,foreign\n,\"ha\n");
    assert!(!fs::exists(side_path(&bench, ".rebuild-0")).expect("known"), "the tail file is deleted");
}

#[tokio::test]
async fn open_line_in_place_of_lost_foreign_row_is_not_continued() {
    let bench = Bench::new(On::Embedded);
    let mut replica = bench.replica(&SETTINGS);
    replica.append_text("one").await;
    let mut foreign = OpenOptions::new().append(true).open(&bench.csv).expect("opens");
    foreign.write_all(b",f\n").expect("written");
    replica.append_text("two").await;
    replica.signal("KILL");
    replica.end();
    // A power cut lost the foreign row and ours behind it. Then another program died in a line of the same length.
    set_csv(&bench, b"token,data\n1,one\n,\"f");
    let _replica = bench.replica(&SETTINGS);
    until("our row is back", async || bench.content() == "token,data\n1,one\n2,two\n").await;
    assert_eq!(fs::read_to_string(side_path(&bench, ".torn")).expect("a side file"), "1,one\n,\"f\n");
}

#[tokio::test]
async fn lost_redis_counter_is_raised_without_client_errors() {
    let bench = Bench::new(On::Redis);
    let replicas = [(); 2].map(|()| bench.replica(&SETTINGS));
    // A token that no replica reaches by counting.
    bench.redis().cli(&["set", "{rowlock:rows.csv}:token", "1000000"]);
    for n in 0..5 {
        replicas[n % 2].append_text(&n.to_string()).await;
    }
    bench.redis().cli(&["flushall"]);
    assert_eq!(replicas[0].append_text("after").await["token"], json!(1_000_006));
    bench.redis().cli(&["flushall"]);
    let (a, b) = tokio::join!(replicas[0].append_text("a"), replicas[1].append_text("b"));
    let after = Some(1_000_006);
    assert!(a["token"].as_u64() > after && b["token"].as_u64() > after && a["token"] != b["token"], "{a} {b}");
    assert_eq!(bench.redis().cli(&["get", "{rowlock:rows.csv}:token"]), "1000008");
    assert_eq!(bench.tokens(), (1_000_001..=1_000_008).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_with_and_without_redis_share_file_safely() {
    let bench = Bench::new(On::Redis);
    let with = bench.replica(&SETTINGS);
    let without = Replica::start({
        let mut command = bench.command(&SETTINGS);
        command.env_remove("REDIS_CONN_STR");
        command
    });
    let posts = (0..400).map(|n| {
        let replica = if n % 2 == 0 { &with } else { &without };
        replica.append(json!({ "data": n.to_string() }))
    });
    let answers = futures_util::future::join_all(posts).await;
    assert!(answers.iter().all(|(status, _)| *status == 201), "{answers:?}");
    let rows = bench.rows();
    let tokens = bench.tokens();
    assert!(tokens.is_sorted(), "{tokens:?}");
    let mut data: Vec<usize> = rows.iter().map(|row| row["data"].parse().expect("ours")).collect();
    data.sort_unstable();
    assert_eq!(data, (0..400).collect::<Vec<_>>());
}

#[tokio::test]
async fn token_is_recorded_before_sleep() {
    let bench = Bench::new(On::Redis);
    let replica = bench.replica(&SETTINGS);
    let older = bench.replica(&[("ROWLOCK_CSV_HEADER", "token,data"), ("ROWLOCK_LOCK_KEY", "another")]);
    bench.redis().cli(&["set", "{rowlock:rows.csv}:token", "41"]);
    let sleeping = replica.append(json!({"data": "slept", "sleep": 0.4}));
    let meanwhile = async {
        until_held(&bench).await;
        until("the token is recorded", async || {
            // This replica uses another lock, which grants it token 1: it must be raised above the recorded token.
            older.append_text("older").await["token"] == json!(43)
        })
        .await;
    };
    let ((status, problem), ()) = tokio::join!(sleeping, meanwhile);
    assert_eq!((status, &problem["code"]), (503, &json!("lock_lost")), "the token became stale during the sleep");
    assert_eq!(bench.content(), "token,data\n43,older\n");
}

#[tokio::test]
async fn stale_holder_is_refused_after_sigstop() {
    let bench = Bench::new(On::Redis);
    let settings = [SETTINGS[0], ("ROWLOCK_LOCK_TTL", "300ms")];
    let (stopped, other) = (bench.replica(&settings), bench.replica(&settings));
    let began = Instant::now();
    let sleeping = stopped.append(json!({"data": "stale", "sleep": 1.5}));
    let meanwhile = async {
        until_held(&bench).await;
        // A process that is stopped while it records its token keeps the OS lock.
        let journal = File::open(side_path(&bench, ".journal")).expect("opens");
        until("its token is recorded", async || {
            let mut record = [0; 4];
            journal.read_exact_at(&mut record, 3 * 4096).expect("reads");
            record != [0; 4] && journal.try_lock().is_ok() && journal.unlock().is_ok()
        })
        .await;
        stopped.signal("STOP");
        assert_eq!(other.append_text("other").await["token"], json!(2));
        // Continue only after the sleep, so that it tries to write at once.
        until("its sleep is over", async || began.elapsed() > Duration::from_secs(2)).await;
        stopped.signal("CONT");
    };
    let ((status, problem), ()) = tokio::join!(sleeping, meanwhile);
    assert_eq!((status, &problem["outcome"]), (503, &json!("not_written")), "{problem}");
    stopped.append_text("again").await;
    assert_eq!(bench.content(), "token,data\n2,other\n3,again\n");
}

#[tokio::test]
async fn held_os_lock_answers_file_busy_and_writes_nothing() {
    let bench = Bench::new(On::Redis);
    let settings = [SETTINGS[0], ("ROWLOCK_WAIT_TIMEOUT", "1s")];
    let replicas = [(); 2].map(|()| bench.replica(&settings));
    replicas[0].append_text("before").await;
    let journal = File::open(side_path(&bench, ".journal")).expect("opens");
    journal.lock().expect("locks");
    let began = Instant::now();
    let posts = replicas.iter().map(|replica| replica.append(json!({"data": "busy"})));
    for (status, problem) in futures_util::future::join_all(posts).await {
        let expected = (503, &json!("file_busy"), &json!("not_written"));
        assert_eq!((status, &problem["code"], &problem["outcome"]), expected);
    }
    assert!(began.elapsed() < Duration::from_secs(5), "the replicas hang");
    let started = bench.command(&settings).args(["append", "--data", "x"]).output().expect("runs");
    assert_eq!(started.status.code(), Some(75), "{started:?}");
    journal.unlock().expect("unlocked");
    replicas[1].append_text("after").await;
    let data: Vec<_> = bench.rows().iter().map(|row| row["data"].clone()).collect();
    assert_eq!(data, ["before", "after"]);
}

/// Bytes that the process has read with system calls.
fn bytes_read(replica: &Replica) -> u64 {
    let io = fs::read_to_string(format!("/proc/{}/io", replica.pid())).expect("ours");
    io.lines().find_map(|line| line.strip_prefix("rchar: ")).expect("counted").parse().expect("a number")
}

#[tokio::test]
async fn start_reads_only_bytes_after_checkpoint() {
    let bench = Bench::new(On::Embedded);
    let mut file = File::create(&bench.csv).expect("made");
    let rows = "0,a row that exists already\n".repeat(1 << 15);
    file.write_all(b"token,data\n").expect("written");
    for _ in 0..64 {
        file.write_all(rows.as_bytes()).expect("written");
    }
    let size = file.metadata().expect("known").len();
    let adopting = bench.replica(&SETTINGS);
    assert!(bytes_read(&adopting) > size, "a CSV without a journal is read through");
    adopting.append_text("new").await;
    drop(adopting);
    let started = bench.replica(&SETTINGS);
    started.append_text("newer").await;
    assert!(bytes_read(&started) < size / 16, "read {} of {size}", bytes_read(&started));
    let content = fs::read(&bench.csv).expect("readable");
    assert!(content.ends_with(b"already\n1,new\n2,newer\n"));
}

#[tokio::test]
async fn stop_makes_checkpoint_so_csv_can_be_moved() {
    let bench = Bench::new(On::Embedded);
    let mut replica = bench.replica(&SETTINGS);
    replica.append_text("old").await;
    replica.signal("TERM");
    assert!(replica.end().success());
    assert_eq!(journal_headers(&bench).iter().max().expect("two").1, fs::metadata(&bench.csv).expect("there").len());
    fs::rename(&bench.csv, bench.folder().join("2026.csv")).expect("renamed");
    let replica = bench.replica(&SETTINGS);
    assert_eq!(replica.append_text("new").await["token"], json!(2), "tokens continue");
    assert_eq!(bench.content(), "token,data\n2,new\n");
}

/// The start of a header in any version: magic, length and checksum of the body, then the version.
pub(crate) fn header_of_format_2() -> Vec<u8> {
    let body = 2_u32.to_le_bytes();
    [&b"rowlockJ"[..], &4_u32.to_le_bytes(), &crc32c::crc32c(&body).to_le_bytes(), &body].concat()
}

/// Bytes that damage both headers.
pub(crate) const BOTH_HEADERS: [(u64, &[u8]); 2] = [(40, b"xxxx"), (4096 + 40, b"xxxx")];

/// Overwrites bytes of the journal at these offsets.
pub(crate) fn damage_journal(bench: &Bench, bytes: &[(u64, &[u8])]) {
    let mut journal = OpenOptions::new().write(true).open(side_path(bench, ".journal")).expect("opens");
    for (at, bytes) in bytes {
        journal.seek(SeekFrom::Start(*at)).expect("seeks");
        journal.write_all(bytes).expect("written");
    }
}

#[tokio::test]
async fn foreign_damaged_or_newer_journal_fails_start() {
    let refused = |bench: &Bench, says: &str| {
        let before = fs::read(&bench.csv).ok();
        let output = bench.run(&["serve"], &SETTINGS);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        let last = stderr.lines().last().expect("a line");
        assert!(last.starts_with("rowlock: ") && last.contains(says), "{stderr} does not say {says:?}");
        assert_eq!(fs::read(&bench.csv).ok(), before, "the CSV was touched");
    };
    let bench = Bench::new(On::Embedded);
    killed_after(&bench, &["one"]).await;
    set_csv(&bench, b"other,header\n1,2\n");
    refused(&bench, "holds rows of another");

    let damage = async |bytes: &[(u64, &[u8])]| {
        let bench = Bench::new(On::Embedded);
        killed_after(&bench, &["one"]).await;
        damage_journal(&bench, bytes);
        bench
    };
    let bench = damage(&BOTH_HEADERS).await;
    refused(&bench, "is damaged");
    let bench = damage(&[(40, b"xxxx")]).await;
    bench.replica(&SETTINGS).append_text("one header is enough").await;
    let bench = damage(&[(0, &header_of_format_2())]).await;
    refused(&bench, "has format 2, and this version supports format 1");
}

#[tokio::test]
async fn journal_upgraded_by_newer_version_refuses_appends() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&SETTINGS);
    replica.append_text("one").await;
    let mut journal = OpenOptions::new().write(true).open(side_path(&bench, ".journal")).expect("opens");
    journal.write_all(&header_of_format_2()).expect("written");
    let (status, problem) = replica.append(json!({"data": "two"})).await;
    assert_eq!((status, &problem["outcome"]), (500, &json!("not_written")));
    until("the log says why", async || replica.log().contains("a newer version is in use")).await;
    assert_eq!(bench.content(), "token,data\n1,one\n");
}

#[tokio::test]
async fn journal_has_configured_size() {
    let bench = Bench::new(On::Embedded);
    let size = || fs::metadata(side_path(&bench, ".journal")).expect("there").len();
    let row = "x".repeat(100_000);
    for (setting, bytes) in [("1MiB", 1 << 20), ("3MiB", 3 << 20), ("2MiB", 2 << 20)] {
        let mut replica = bench.replica(&[SETTINGS[0], ("ROWLOCK_JOURNAL_BYTES", setting)]);
        for _ in 0..40 {
            replica.append_text(&row).await;
        }
        assert_eq!(size(), bytes);
        replica.signal("TERM");
        replica.end();
    }
    assert_eq!(bench.rows().len(), 120);
}

/// Builds a library that replaces the system's file locks, as on a volume where they do nothing or do not exist.
fn without_locks(bench: &Bench, answer: &str) -> String {
    let (source, library) = (bench.folder().join("flock.c"), bench.folder().join("flock.so"));
    fs::write(&source, format!("#include <errno.h>\nint flock(int fd, int how) {{ {answer} }}\n")).expect("written");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
    assert!(built.expect("a C compiler").success());
    library.display().to_string()
}

#[tokio::test]
async fn volume_without_file_locks_is_refused_unless_accepted() {
    for answer in ["return 0;", "errno = ENOTSUP; return -1;"] {
        let bench = Bench::new(On::Redis);
        let library = without_locks(&bench, answer);
        let output = bench.run(&["serve"], &[("LD_PRELOAD", &library)]);
        assert_eq!(output.status.code(), Some(1));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("no working file locks") && stderr.contains("ROWLOCK_UNLOCKED_VOLUME"), "{stderr}");
        let replica = bench.replica(&[SETTINGS[0], ("LD_PRELOAD", &library), ("ROWLOCK_UNLOCKED_VOLUME", "accept")]);
        replica.append_text("x").await;
        assert!(replica.log().contains("file locks do not work on this volume"), "{}", replica.log());
    }
}

#[tokio::test]
async fn side_files_get_mode_of_csv() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::with_file(On::Embedded, b"token,data\n");
    fs::set_permissions(&bench.csv, fs::Permissions::from_mode(0o660)).expect("set");
    let replica = bench.replica(&[]);
    set_csv(&bench, b"token,data\n\"torn");
    replica.append_text("x").await;
    for suffix in [".journal", ".keys", ".torn"] {
        let mode = fs::metadata(side_path(&bench, suffix)).expect(suffix).permissions().mode();
        assert_eq!(mode & 0o777, 0o660, "{suffix}");
    }
}

#[tokio::test]
async fn checkpoints_are_made_when_idle_and_under_load() {
    let bench = Bench::new(On::Redis);
    let replicas = [(); 2].map(|()| bench.replica(&SETTINGS));
    let first = journal_headers(&bench).iter().max().expect("two").0;
    replicas[0].append_text("one").await;
    until_checkpointed(&bench).await;
    let quiet = journal_headers(&bench).iter().max().expect("two").0;
    assert!(quiet > first);
    let row = "x".repeat(50_000);
    let posts = (0..60).map(|n| replicas[n % 2].append_text(&row));
    futures_util::future::join_all(posts).await;
    until("a checkpoint under load", async || journal_headers(&bench).iter().max().expect("two").0 > quiet).await;
    until_checkpointed(&bench).await;
    assert_eq!(bench.rows().len(), 61);
}

/// Files that an early version wrote: two rows and a batch before a checkpoint; a row, a batch and a row after it.
fn bench_with_fixture(csv_bytes: usize) -> Bench {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/journal_format_1");
    let read = |name: &str| fs::read(folder.join(name)).expect("a fixture");
    let bench = Bench::with_file(On::Embedded, &read("rows.csv")[..csv_bytes]);
    fs::write(side_path(&bench, ".keys"), read("rows.csv.keys")).expect("writable");
    let journal = Command::new("gzip").arg("-dc").arg(folder.join("rows.csv.journal.gz")).output().expect("gzip runs");
    assert!(journal.status.success(), "{journal:?}");
    fs::write(side_path(&bench, ".journal"), journal.stdout).expect("writable");
    bench
}

#[tokio::test]
async fn journal_of_first_version_is_read_and_continued() {
    let settings = [("ROWLOCK_IDEMPOTENCY_KEYS", "16"), ("ROWLOCK_JOURNAL_BYTES", "1MiB")];
    let content = "token,key,data\n1,,one\n2,before,\"two, \"\"quoted\"\"\"\n3,batch,three\n3,batch,\"fo\nur\"\n\
                   4,after,five\n5,batch-after,six\n5,batch-after,seven\n6,,eight\n";
    for missing in [0, 4] {
        let bench = bench_with_fixture(content.len() - missing);
        let check = bench.run(&["check"], &settings);
        assert_eq!(check.status.code(), Some(i32::from(missing > 0)), "{check:?}");

        let replica = bench.replica(&settings);
        for (key, data, offset, bytes, token) in
            [("before", "two, \"quoted\"", 22, 27, 2), ("after", "five", 79, 13, 4)]
        {
            let request = replica.post(&json!({"data": data})).header("idempotency-key", key);
            let response = request.send().await.expect("an answer");
            assert_eq!(response.headers()["idempotent-replayed"], "true", "{key}");
            let expected = json!({"offset": offset, "bytes": bytes, "token": token, "replica": "first", "waited_ms": 0, "held_ms": 0, "released": true});
            assert_eq!(response.json::<Value>().await.expect("JSON"), expected, "{key}");
        }
        // Replays and repairs may have used tokens of their own.
        let token = replica.append_text("nine").await["token"].as_u64().expect("a token");
        assert!(token > 6, "tokens continue: {token}");
        assert_eq!(bench.content(), format!("{content}{token},,nine\n"));
        until_checkpointed(&bench).await;
        assert!(bench.run(&["check"], &settings).status.success());
    }
}
