//! Random histories on a simulated disk, checked against the promises: the real storage code on files that lose power and fail
//! to sync.
//!
//! A history has several replicas with fresh, stale and doubly granted tokens, batches of requests that wait while other replicas
//! write, retries with keys, foreign rows appended with and without the lock (whole lines, with and without a line end, and half
//! lines of a writer that died), kills and power cuts at any step (any subset of the unsynced pieces survives, each cut anywhere),
//! failed syncs, checkpoints at any time, and crashes during recovery. Files have a header or none, LF or CRLF, and rows of up to
//! several pages of the journal. A reader lives through the history and looks at the files in the middle of the writers' steps.
//! `ROWLOCK_HISTORIES` sets how many histories run, `ROWLOCK_SEED` the first seed.

mod disk;
mod failing_calls;
mod file;
mod foreign;
mod foreign_lines;
mod history;
mod keys;
mod live_reader;
mod moments;
mod open;
mod promises;
mod reader;
mod request;
mod requests;
mod scenario;
mod text;

use std::{panic, rc::Rc};

use crate::storage::testing::simulation::{history::History, scenario::Scenario, text::text};

/// Runs histories until one breaks a promise, and prints that one.
fn run_histories(is_direct: bool) {
    let (count, first) = (setting("ROWLOCK_HISTORIES", 20_000), setting("ROWLOCK_SEED", 0));
    for seed in first..first + count {
        run(seed, Scenario::draw(seed, is_direct));
    }
}

fn run(seed: u64, scenario: Scenario) {
    let mut history = History::new(seed, scenario);
    let host = Rc::clone(&history.host);
    let run = panic::AssertUnwindSafe(|| history.run());
    if panic::catch_unwind(run).is_err() {
        if let Ok(host) = host.try_borrow() {
            eprintln!("{}", host.trace.join("\n"));
        }
        panic!("history {seed} of {scenario:?} breaks a promise");
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// A server loses a record without rows that an idle replica has read: no rows prove that it was durable.
#[test]
fn record_that_the_server_loses_is_not_believed() {
    let mut history = History::new(0, Scenario::plain(true));
    history.host.borrow_mut().calm = true;
    let before = history.host.borrow().files[1].cache.clone();
    history.fence_by(1, (1, 1));
    history.refresh_by(2);
    history.host.borrow_mut().files[1].revert(&before);
    history.append_by(2, (2, 2));
    assert_eq!(history.highest_token_by(0), 2, "another replica finds the record that followed");
}

/// A second failed call does not make storage forget that the row may be written.
#[test]
fn append_that_two_calls_interrupt_is_written_once() {
    for (first, second) in (0..24).flat_map(|first| (0..24).map(move |second| (first, second))) {
        let mut history = History::new(0, Scenario::plain(true));
        history.host.borrow_mut().calm = true;
        assert_eq!(history.append_with_failures(first, second), 1, "calls {first} and {second} fail");
    }
}

/// A sync that succeeds after another process's sync failed proves nothing: the page cache is clean, and not on the disk.
#[test]
fn checkpoint_after_failed_sync_of_another_is_dropped() {
    for seed in 0..50 {
        let mut history = History::new(seed, Scenario::plain(false));
        history.host.borrow_mut().calm = true;
        history.append_by(0, (1, 1));
        history.checkpoint_by(0);
        history.checkpoint_by(1);
        history.host.borrow_mut().fails_next_sync = true;
        history.checkpoint_by(1);
        history.checkpoint_by(0);
        history.checkpoint_by(0);
        history.lose_power();
        history.append_by(2, (2, 2));
        let host = history.host.borrow();
        assert!(host.csv_sync_failed, "the sync of replica 1 has failed");
        assert_eq!(text(&host.files[0].cache).matches("row").count(), 2, "{}", host.trace.join("\n"));
    }
}

/// Regression: half a line with a stray quote appended without the lock before our rows, a power cut, and foreign lines.
#[test]
fn stray_quote_before_our_rows_keeps_foreign_lines() {
    run(1_135_188, Scenario::plain(false));
}

/// Regression: a rebuild that a power cut stopped after its truncation, and a writer that died in a line that begins like the
/// truncated one.
#[test]
fn half_line_like_truncated_one_leaves_no_remnant() {
    run(1_156_388, Scenario::plain(false));
}

/// Regression: a truncation that a power cut undid in part, under a line that another writer appended after it.
#[test]
fn mixed_parts_of_two_lines_are_not_a_line() {
    run(2_328_990, Scenario::plain(false));
}

/// Regression: half a line that came, after a power cut, in the place of a foreign row before our rows, and of its length.
#[test]
fn line_in_place_of_a_lost_row_is_not_continued() {
    run(106_784, Scenario::plain(false));
}

/// Regression: an append whose hold began with a failed call was answered with the outcome of an earlier one.
#[test]
fn interrupted_append_is_not_answered_for_another_one() {
    run(66_366, Scenario::plain(true));
}

/// Regression: a row of several lines without a token, cut short by a power cut in the middle of a rebuild, was kept as another's.
#[test]
fn remnant_of_a_row_of_several_lines_is_not_a_row() {
    run(84_655, Scenario::draw(84_655, false));
}

/// Regression: a rebuild that held the first row of a headerless file did not know how wide whole rows are.
#[test]
fn half_a_row_is_no_row_of_a_file_of_unknown_width() {
    run(46_567, Scenario::draw(46_567, true));
}

#[test]
fn random_histories_keep_every_promise() {
    run_histories(false);
}

#[test]
fn random_histories_of_several_hosts_keep_every_promise() {
    run_histories(true);
}
