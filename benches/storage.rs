//! Compares storage with a plain append and `fdatasync` on the same disk: `cargo bench --bench storage`.
//!
//! The folder is the system's temporary folder, or `ROWLOCK_BENCH_DIR`. Work that needs no disk is measured in `/dev/shm`.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rowlock::{
    csv::{rows::Rows, schema::Data},
    storage::{AppendEntry, EntryOutcome, Options, Storage, Turn},
};
use tempfile::TempDir;

const BATCH: usize = 256;
/// With the default header a row of this data is about 100 bytes.
const DATA: &str = "forty bytes of data, as rows often have.";

fn folder() -> TempDir {
    match std::env::var_os("ROWLOCK_BENCH_DIR") {
        Some(folder) => TempDir::new_in(folder),
        None => TempDir::new(),
    }
    .expect("a folder")
}

fn open(folder: &Path) -> Storage {
    Storage::open(Options {
        path: folder.join("rows.csv"),
        header: "timestamp,replica,token,data".to_owned(),
        replica: "bench-1".to_owned(),
        journal_bytes: 128 << 20,
        keys: 1000,
        accept_unlocked: false,
        is_repair: false,
        meter: Default::default(),
    })
    .expect("opens")
}

/// A storage, and the last token that it was given.
struct Writer {
    storage: Storage,
    rows: Vec<Rows>,
    token: u64,
}

impl Writer {
    fn new(folder: &Path, rows: usize) -> Self {
        let storage = open(folder);
        let mut row = storage.schema().rows();
        storage.schema().push(&Data::Text(DATA.into()), &mut row).expect("fits");
        Self { storage, rows: vec![row; rows], token: 0 }
    }

    /// Like the committer: appends the batch, then ends a checkpoint if one is under way.
    fn append(&mut self) -> u64 {
        self.token += 1;
        let now = Instant::now();
        let turn = Turn {
            token: self.token,
            lease: u128::from(self.token),
            granted: now,
            timestamp: "2026-01-01T00:00:00.000Z",
            deadline: now + Duration::from_secs(1),
            still_held: &|| true,
        };
        let entries: Vec<_> = self
            .rows
            .iter()
            .map(|rows| AppendEntry { rows, key: None, keys_seen: 0, waited_ms: 0, released: true })
            .collect();
        let outcomes = self.storage.append(&entries, &turn).expect("written");
        let written = outcomes.iter().map(|outcome| match outcome {
            EntryOutcome::Written { bytes, .. } => *bytes,
            other => panic!("not written: {other:?}"),
        });
        let bytes = written.sum();
        self.storage.maintain().expect("maintained");
        bytes
    }
}

fn plain_append(file: &mut File, text: &[u8]) {
    file.write_all(text).expect("written");
    file.sync_data().expect("synced");
}

fn appends(c: &mut Criterion) {
    for rows in [1, BATCH] {
        let mut group = c.benchmark_group(format!("append of {rows}, durable"));
        group.measurement_time(Duration::from_secs(5));
        let folder = folder();
        let mut writer = Writer::new(folder.path(), rows);
        let text = vec![b'x'; writer.append() as usize];
        group.throughput(Throughput::Bytes(text.len() as u64));
        let mut file = OpenOptions::new().append(true).create(true).open(folder.path().join("plain")).expect("made");
        group.bench_function("plain append and fdatasync", |b| b.iter(|| plain_append(&mut file, &text)));
        group.bench_function("storage", |b| b.iter(|| writer.append()));
        group.finish();
    }
}

/// In memory a sync is free, so only the bookkeeping is measured.
fn bookkeeping(c: &mut Criterion) {
    let mut group = c.benchmark_group("bookkeeping, in memory");
    let folder = TempDir::new_in("/dev/shm").expect("a folder in memory");
    let mut writer = Writer::new(folder.path(), BATCH);
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("storage, a batch of 256", |b| b.iter(|| writer.append()));
    group.finish();
}

/// Alternates between both, so that other load on the machine affects both.
fn side_by_side(_: &mut Criterion) {
    for rows in [1, BATCH] {
        let folder = folder();
        let mut writer = Writer::new(folder.path(), rows);
        let text = vec![b'x'; writer.append() as usize];
        let mut file = OpenOptions::new().append(true).create(true).open(folder.path().join("plain")).expect("made");
        let (mut plain, mut storage): (Vec<Duration>, Vec<Duration>) = (0..5_000)
            .map(|_| {
                let began = Instant::now();
                plain_append(&mut file, &text);
                let between = Instant::now();
                writer.append();
                (between - began, between.elapsed())
            })
            .unzip();
        plain.sort_unstable();
        storage.sort_unstable();
        let (plain, storage) = (plain[plain.len() / 2], storage[storage.len() / 2]);
        let ratio = plain.as_secs_f64() / storage.as_secs_f64();
        println!("append of {rows} in turns: plain {plain:?}, storage {storage:?}: {ratio:.2} times as many batches");
    }
}

/// The pauses of checkpoints: the slowest appends compared with the median, over many checkpoints.
fn pauses(_: &mut Criterion) {
    for rows in [1, 16, BATCH] {
        let folder = folder();
        let mut writer = Writer::new(folder.path(), rows);
        let mut took: Vec<Duration> = (0..40_000)
            .map(|_| {
                let began = Instant::now();
                writer.append();
                began.elapsed()
            })
            .collect();
        took.sort_unstable();
        let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
        let (median, p99, p999, max) = (at(0.5), at(0.99), at(0.999), at(1.0));
        let ratio = p999.as_secs_f64() / median.as_secs_f64();
        println!(
            "append of {rows} with checkpoints: median {median:?}, p99 {p99:?}, p99.9 {p999:?} ({ratio:.1} times the median), max {max:?}"
        );
    }
}

criterion_group!(benches, appends, bookkeeping, side_by_side, pauses);
criterion_main!(benches);
