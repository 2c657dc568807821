//! One process's storage on real files.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::FileExt,
    path::Path,
    time::Instant,
};

use tempfile::TempDir;

use crate::{
    csv::{
        idempotency_key::Key,
        row_splitter::ROW_BYTES_MAX,
        rows::Rows,
        schema::{Data, InvalidField},
    },
    storage::{
        AppendEntry, AppendError, EntryOutcome, NewRows, Options, ReadError, Reader, Refusal, Storage, Turn,
        journal::{Header, Layout, Rebuild},
        side_files::side_path,
    },
};

/// Options for a file in a new folder.
fn options(header: &str, journal_bytes: u64) -> (TempDir, Options) {
    let folder = tempfile::tempdir().expect("a folder");
    let options = Options {
        path: folder.path().join("rows.csv"),
        header: header.to_owned(),
        replica: "r".to_owned(),
        journal_bytes,
        keys: 50,
        accept_unlocked: false,
        is_repair: false,
        meter: Default::default(),
    };
    (folder, options)
}

fn rows_of(storage: &Storage, data: &[Data<'_>]) -> Rows {
    let mut rows = storage.schema().rows();
    data.iter().for_each(|data| storage.schema().push(data, &mut rows).expect("fits"));
    rows
}

/// Appends rows under token 1. `held` is asked after the refresh and before the first byte.
fn append_rows(storage: &mut Storage, rows: &Rows, held: &dyn Fn() -> bool) -> Result<Vec<EntryOutcome>, AppendError> {
    let now = Instant::now();
    let turn = Turn { token: 1, lease: 1, granted: now, timestamp: "", deadline: now, still_held: held };
    storage.append(&[AppendEntry { rows, key: None, keys_seen: 0, waited_ms: 0, released: true }], &turn)
}

fn append(storage: &mut Storage, text: &str) -> EntryOutcome {
    let rows = rows_of(storage, &[Data::Text(text.into())]);
    append_rows(storage, &rows, &|| true).expect("appended").remove(0)
}

/// Appends a row with the key of this number, by a request that arrived when `seen` keys were recorded.
pub(super) fn append_key(storage: &mut Storage, number: u64, seen: u64) -> EntryOutcome {
    let rows = rows_of(storage, &[Data::Text("x".into())]);
    let (now, key) = (Instant::now(), Key::new(&format!("k{number}"), &rows).expect("a key"));
    let turn = Turn { token: 1, lease: 1, granted: now, timestamp: "", deadline: now, still_held: &|| true };
    let entry = AppendEntry { rows: &rows, key: Some(&key), keys_seen: seen, waited_ms: 0, released: true };
    storage.append(&[entry], &turn).expect("judged").remove(0)
}

fn append_as_another_program(path: &Path, text: &str) {
    let file = OpenOptions::new().append(true).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).expect("writable");
}

#[test]
fn lost_lease_or_held_os_lock_writes_nothing() {
    let (_folder, options) = options("token,data", 1 << 20);
    let path = options.path.clone();
    let mut storage = Storage::open(options).expect("opens");
    let rows = rows_of(&storage, &[Data::Text("x".into())]);
    let mut append = |held: bool| append_rows(&mut storage, &rows, &|| held);
    assert!(matches!(append(false), Err(AppendError::LeaseLost)));
    let stopped = fs::File::open(side_path(&path, ".journal")).expect("opens");
    stopped.lock().expect("locks");
    assert!(matches!(append(true), Err(AppendError::Busy)));
    assert_eq!(fs::read_to_string(&path).expect("reads"), "token,data\n");
    stopped.unlock().expect("unlocks");
    assert!(append(true).is_ok());
    assert_eq!(fs::read_to_string(&path).expect("reads"), "token,data\n1,x\n");
}

#[test]
fn key_that_may_be_forgotten_is_refused() {
    let (_folder, options) = options("token,data", 1 << 20);
    let mut storage = Storage::open(options).expect("opens");
    // More keys are recorded while a repeat of one of the newest 50 waits.
    (0..100).for_each(|n| assert!(matches!(append_key(&mut storage, n, n), EntryOutcome::Written { .. })));
    assert!(matches!(append_key(&mut storage, 1, 51), EntryOutcome::Replayed(_)), "it was remembered when it arrived");
    append_key(&mut storage, 100, 100);
    assert_eq!(append_key(&mut storage, 0, 50), EntryOutcome::Refused(Refusal::KeyMayBeForgotten));
    assert_eq!(append_key(&mut storage, 200, 50), EntryOutcome::Refused(Refusal::KeyMayBeForgotten));
    assert!(matches!(append_key(&mut storage, 200, 51), EntryOutcome::Written { .. }));
}

#[test]
fn new_key_is_accepted_where_older_ones_cannot_be_read() {
    for (keys, loses_file) in [(50, false), (120, false), (20, false), (50, true)] {
        let (_folder, mut options) = options("token,data", 1 << 20);
        let mut storage = Storage::open(options.clone()).expect("opens");
        (0..300).for_each(|n| assert!(matches!(append_key(&mut storage, n, n), EntryOutcome::Written { .. })));
        storage.close().expect("a checkpoint");
        if loses_file {
            fs::remove_file(side_path(&options.path, ".keys")).expect("removed");
        }
        options.keys = keys;
        let mut storage = Storage::open(options).expect("opens");
        let seen = storage.keys_recorded().load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(seen, 300);
        assert!(matches!(append_key(&mut storage, 1_000, seen), EntryOutcome::Written { .. }), "{keys} {loses_file}");
        if !loses_file {
            assert!(matches!(append_key(&mut storage, 299, seen), EntryOutcome::Replayed(_)), "{keys}");
        }
    }
}

#[test]
fn refused_batch_does_not_decide_a_files_width() {
    let wide = [Data::List(vec![Some("a".into()), Some("b".into()), Some("c".into())])];
    let narrow = [Data::List(vec![Some("x".into()), Some("y".into())])];
    let (_folder, options) = options("none", 1 << 20);
    let path = options.path.clone();
    let mut storage = Storage::open(options.clone()).expect("opens");
    let (wide, narrow) = (rows_of(&storage, &wide), rows_of(&storage, &narrow));
    assert!(matches!(append_rows(&mut storage, &wide, &|| false), Err(AppendError::LeaseLost)));
    // Too large for one record, and alone in its batch.
    let large = rows_of(&storage, &[Data::List(vec![Some("x".repeat(600 << 10).into()), None, None, None])]);
    let refused = append_rows(&mut storage, &large, &|| true).expect("judged").remove(0);
    assert!(matches!(refused, EntryOutcome::Refused(Refusal::TooLarge { .. })), "{refused:?}");
    let mut other = Storage::open(options).expect("opens");
    append_rows(&mut other, &narrow, &|| true).expect("appended");
    let refused = append_rows(&mut storage, &wide, &|| true).expect("judged").remove(0);
    let too_wide = InvalidField::new("data", "3 cells, but the file's rows have 2");
    assert_eq!(refused, EntryOutcome::Refused(Refusal::InvalidField(too_wide)));
    append(&mut storage, "one");
    assert_eq!(fs::read_to_string(&path).expect("reads"), "x,y\none,\n");
}

#[test]
fn longest_row_that_is_written_is_read_back_whole() {
    let (_folder, options) = options("data", 256 << 20);
    let mut storage = Storage::open(options.clone()).expect("opens");
    let mut reader = Reader::open(&options).expect("opens");
    // The quotes around the cell and the line end count as well.
    let cell = |bytes: usize| "forged,row\n".repeat(bytes / 11) + &"x".repeat(bytes % 11);
    let refused = append(&mut storage, &cell(ROW_BYTES_MAX - 2));
    assert_eq!(refused, EntryOutcome::Refused(Refusal::RowTooLarge { bytes_max: ROW_BYTES_MAX as u64 }));
    assert!(matches!(append(&mut storage, &cell(ROW_BYTES_MAX - 3)), EntryOutcome::Written { .. }));
    append(&mut storage, "next");
    let page = reader.last(10).expect("reads");
    let lengths: Vec<_> = page.rows.iter().map(|row| row.end - row.start).collect();
    assert_eq!(lengths, [5], "a page ends with the row that exceeds its size");
    let page = reader.from(0, 10).expect("reads");
    assert_eq!((page.rows.len(), page.rows[0].end - page.rows[0].start), (1, ROW_BYTES_MAX as u64));
}

#[test]
fn failed_sync_of_another_process_during_an_append_is_told() {
    let (_folder, options) = options("token,data", 1 << 20);
    let journal = OpenOptions::new().write(true).open(side_path(&options.path, ".journal"));
    assert!(journal.is_err(), "there is no file yet");
    let mut storage = Storage::open(options.clone()).expect("opens");
    let journal = OpenOptions::new().write(true).open(side_path(&options.path, ".journal")).expect("opens");
    let large = rows_of(&storage, &[Data::Text("x".repeat(400 << 10).into())]);
    for _ in 0..2 {
        append_rows(&mut storage, &large, &|| true).expect("appended");
    }
    let fail_a_sync = || journal.write_all_at(&[1], Layout::REAL.sync_failed_flag_offset()).is_ok();
    let told = append_rows(&mut storage, &large, &fail_a_sync);
    assert!(matches!(told, Err(AppendError::SyncFailedElsewhere)), "{told:?}");
    append_rows(&mut storage, &large, &|| true).expect("the files are written again, and the row is appended");
    assert_eq!(fs::read_to_string(&options.path).expect("reads").lines().count(), 4);
}

/// Rows of a reader that follows the file, as text.
fn cells(news: &NewRows) -> Vec<String> {
    news.rows.iter().map(|row| row.cells.join(",")).collect()
}

#[test]
fn reader_goes_back_when_a_rebuild_moves_rows() {
    let (_folder, options) = options("token,data", 1 << 20);
    let path = options.path.clone();
    let mut storage = Storage::open(options.clone()).expect("opens");
    let mut reader = Reader::open(&options).expect("opens");
    append(&mut storage, "r1");
    let begin = reader.end_position().expect("reads");
    append_as_another_program(&path, "of another width\n");
    append(&mut storage, "r2");
    let news = reader.new_rows(begin, 10).expect("reads");
    assert_eq!(cells(&news), ["of another width", "1,r2"]);
    let parts = reader.parts();
    let last = reader.last(1).expect("reads").rows[0].clone();
    assert_eq!(parts.read(last.start, last.end - last.start).expect("reads"), b"1,r2\n");

    // Half a line slips in front of our row, so the end of the file is rebuilt, without the line that is no row.
    let slip = || {
        append_as_another_program(&path, "half");
        true
    };
    let rows = rows_of(&storage, &[Data::Text("r3".into())]);
    append_rows(&mut storage, &rows, &slip).expect("appended");
    assert_eq!(fs::read_to_string(&path).expect("reads"), "token,data\n1,r1\n1,r2\n1,r3\n");
    assert!(parts.read(last.start, last.end - last.start).is_err(), "rows that moved are not served in parts");
    let news = reader.new_rows(news.end, 10).expect("reads");
    assert_eq!(cells(&news), ["1,r1", "1,r2", "1,r3"], "from where no row can have moved");
    assert_eq!(reader.last(1).expect("reads").rows.len(), 1);
    assert!(reader.position_at(last.start).expect("reads").is_none(), "no row begins there any more");
    assert_eq!(cells(&reader.new_rows(news.end, 10).expect("reads")), [""; 0], "each row is sent again only once");
    append(&mut storage, "r4");
    assert_eq!(cells(&reader.new_rows(news.end, 10).expect("reads")), ["1,r4"]);
}

#[test]
fn reader_needs_no_lock_and_trusts_no_row_underway() {
    let (_folder, options) = options("token,data", 1 << 20);
    let path = options.path.clone();
    let mut storage = Storage::open(options.clone()).expect("opens");
    let mut reader = Reader::open(&options).expect("opens");
    append(&mut storage, "r1");
    let stopped = fs::File::open(side_path(&path, ".journal")).expect("opens");
    stopped.lock().expect("locks");
    assert_eq!(
        reader.last(10).expect("reads").rows.len(),
        1,
        "a process that stopped with the OS lock hinders no reader"
    );
    stopped.unlock().expect("unlocks");
    append(&mut storage, "r2");
    // A writer was killed before its rows: their record may not be durable.
    let whole = fs::metadata(&path).expect("there").len();
    let csv = OpenOptions::new().write(true).open(&path).expect("opens");
    for cut in 1..5 {
        csv.set_len(whole - cut).expect("cut");
        let mut reader = Reader::open(&options).expect("opens");
        let rows = reader.last(10).expect("reads").rows;
        assert_eq!(rows.last().map(|row| row.end), Some(whole - 5), "cut by {cut}");
    }
}

#[test]
fn rows_that_a_rebuild_moves_are_not_served() {
    let (_folder, options) = options("token,data", 1 << 20);
    let mut storage = Storage::open(options.clone()).expect("opens");
    append(&mut storage, "r1");
    storage.close().expect("a checkpoint");
    let mut storage = Storage::open(options.clone()).expect("opens");
    append(&mut storage, "r2");
    let mut reader = Reader::open(&options).expect("opens");
    let rows = reader.last(10).expect("reads").rows;
    assert_eq!(rows.len(), 2);

    // A process was killed in the middle of a rebuild: its new tail is there in part.
    let journal = OpenOptions::new().read(true).write(true).open(side_path(&options.path, ".journal")).expect("opens");
    let mut pages = vec![0; Layout::REAL.space() as usize];
    journal.read_exact_at(&mut pages, 0).expect("reads");
    let (head, page) = Header::newest(&pages, Layout::REAL).expect("a header");
    let rebuild = Some(Rebuild { bytes: 5, which: 0, torn_at: 0, old_bytes: 5 });
    let head = Header { number: head.number + 1, rebuild, rebuilds: head.rebuilds + 1, ..head };
    journal.write_all_at(&head.encode(), (1 - page) * Layout::REAL.page).expect("writes");
    let csv = OpenOptions::new().write(true).open(&options.path).expect("opens");
    csv.set_len(rows[1].start).expect("cut");
    append_as_another_program(&options.path, "r2\n1,");
    for mut reader in [reader, Reader::open(&options).expect("opens")] {
        let found = reader.last(10).expect("reads").rows;
        assert_eq!(found, rows[..1]);
        assert!(matches!(reader.from(rows[1].end, 10), Err(ReadError::Behind { .. })));
    }
}

#[test]
fn rebuild_over_many_zeros_takes_no_longer_than_over_rows() {
    const BYTES: usize = 2 << 20;
    let rebuild = |foreign: &str| {
        let (_folder, options) = options("token,data", 1 << 20);
        let mut storage = Storage::open(options.clone()).expect("opens");
        append(&mut storage, "r1");
        append_as_another_program(&options.path, foreign);
        let rows = rows_of(&storage, &[Data::Text("r2".into())]);
        let slip = || {
            append_as_another_program(&options.path, "half");
            true
        };
        let began = Instant::now();
        append_rows(&mut storage, &rows, &slip).expect("appended");
        (began.elapsed(), fs::read_to_string(&options.path).expect("reads"))
    };
    let (rows_took, text) = rebuild(&",foreign row\n".repeat(BYTES / 13));
    assert!(text.ends_with("1,r2\n") && text.len() > BYTES);
    let (zeros_took, text) = rebuild(&("\0".repeat(BYTES - 1) + "\n"));
    assert_eq!(text, "token,data\n1,r1\n1,r2\n");
    assert!(zeros_took < 4 * rows_took, "zeros {zeros_took:?}, rows {rows_took:?}");
}
