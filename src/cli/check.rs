//! `rowlock check`: is the CSV whole and true to its journal? And what is to be done where it isn't.

use std::{fmt::Write, path::PathBuf, sync::LazyLock};

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};

use crate::cli::{Exit, FAILED, SYNC_FAILED, TRY_AGAIN, serve::open_failed};
use crate::{
    commit::{self, RepairError},
    config::Config,
    storage::{self, CheckOptions, Fault, Finding, JournalState, OpenError, Plan, Replaced, Report},
};

/// A shorter file is read before anybody wonders.
const PROGRESS_FROM_BYTES: u64 = 64 << 20;

/// What to look at.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The CSV; that of the settings unless given.
    file: Option<PathBuf>,
    /// Mend what can be mended, under the lock, after saying what it will change.
    #[arg(long)]
    repair: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(config: Config, args: Args) -> Result<(), Exit> {
    let config = Config { csv: args.file.unwrap_or(config.csv), ..config };
    let options =
        CheckOptions { path: config.csv.clone(), header: config.csv_header.clone(), keys: config.idempotency_keys };
    let mut report = look(&options).await?;
    if args.repair {
        let plan = report.plan();
        eprintln!("rowlock: {}", describe_plan(&report, plan));
        if plan != Plan::Nothing {
            let replaced = commit::repair(&config, options.clone(), plan).await;
            let replaced = replaced.map_err(|e| Exit::new(repair_failed(&e), e))?;
            replaced.iter().for_each(|replaced| eprintln!("rowlock: {}", describe_replaced(&report, replaced)));
            report = look(&options).await?;
        }
    }
    let text =
        if args.json { serde_json::to_string(&report).map_err(|e| Exit::new(FAILED, e))? } else { describe(&report) };
    println!("{text}");
    if report.whole { Ok(()) } else { Err(Exit { code: FAILED, message: String::new() }) }
}

/// On a thread that may block.
async fn look(options: &CheckOptions) -> Result<Report, Exit> {
    let options = options.clone();
    let look = tokio::task::spawn_blocking(move || storage::check(&options, &progress)).await;
    look.map_err(|e| Exit::new(FAILED, e))?.map_err(|e| Exit::new(look_failed(&e), e))
}

/// On a terminal, and only where there is something to wait for.
fn progress(done: u64, of: u64) {
    static BAR: LazyLock<ProgressBar> = LazyLock::new(|| {
        let style =
            ProgressStyle::with_template("{bar:40} {percent}% of {total_bytes}, {binary_bytes_per_sec}, {eta} left");
        ProgressBar::new(0).with_style(style.expect("a template"))
    });
    if of >= PROGRESS_FROM_BYTES {
        BAR.set_length(of);
        BAR.set_position(done);
        if done >= of {
            BAR.finish_and_clear();
        }
    }
}

fn look_failed(e: &OpenError) -> u8 {
    match e {
        OpenError::Busy(_) => TRY_AGAIN,
        _ => FAILED,
    }
}

fn repair_failed(e: &RepairError) -> u8 {
    match e {
        RepairError::Held(_) | RepairError::Append(storage::AppendError::Busy) => TRY_AGAIN,
        RepairError::Append(storage::AppendError::Sync(_)) => SYNC_FAILED,
        RepairError::Open(commit::OpenError::Storage(e)) => look_failed(e),
        RepairError::Open(e) => open_failed(e),
        RepairError::Append(_) | RepairError::Gone => FAILED,
    }
}

fn describe_plan(report: &Report, plan: Plan) -> String {
    let csv = report.file.display();
    let journal = &report.journal;
    match (plan, journal.state) {
        (Plan::Nothing, JournalState::Newer) => format!("{csv}.journal was written by a newer version: upgrade this one; nothing is changed"),
        (Plan::Nothing, _) if report.whole => "nothing to repair".to_owned(),
        (Plan::Nothing, _) => "what is wrong stands before the last checkpoint, where nothing tells what was there: mend it by hand; nothing is changed".to_owned(),
        (Plan::ReplaceJournal, JournalState::Foreign) => format!(
            "will put the rows of {} records that {csv}.journal owes to another file into {csv}.torn, keep the journal as {csv}.journal.old, and begin a new one for this file as it is",
            journal.records
        ),
        (Plan::ReplaceJournal, _) => format!(
            "will put what looks like rows in the damaged {csv}.journal, and does not stand in its place in {csv}, into {csv}.torn, keep the journal as {csv}.journal.old, and begin a new one; keys that the journal alone held are forgotten"
        ),
        (Plan::Recover, JournalState::Missing | JournalState::OtherFile) => {
            format!("will take {csv} as it is into its journal, and set a torn last line aside in {csv}.torn")
        }
        (Plan::Recover, JournalState::Sound) => format!("will set what is torn aside in {csv}.torn, and cut it from {csv}"),
        (Plan::Recover, _) => format!(
            "will bring {} rows ({} bytes) from the journal into {csv}, and set what is torn aside in {csv}.torn",
            journal.rows_to_recover, journal.bytes_to_recover
        ),
    }
}

fn describe_replaced(report: &Report, replaced: &Replaced) -> String {
    let Replaced { kept_as, rows_quarantined } = replaced;
    let csv = report.file.display();
    format!("kept the old journal as {}; {rows_quarantined} of its rows are in {csv}.torn", kept_as.display())
}

fn describe(report: &Report) -> String {
    let mut text = String::new();
    write_report(&mut text, report).expect("memory writes");
    text
}

fn write_report(out: &mut String, report: &Report) -> std::fmt::Result {
    let csv = report.file.display();
    let verdict = match (report.whole, report.findings.is_empty(), report.journal.state) {
        (true, _, JournalState::Missing) => "whole; it has no journal yet",
        (true, ..) => "whole, and true to its journal",
        (false, true, JournalState::Damaged | JournalState::Foreign | JournalState::Newer) => {
            "whole, but NO START ACCEPTS ITS JOURNAL"
        }
        (false, true, _) => "NOT YET TRUE TO ITS JOURNAL",
        (false, false, _) => "NOT WHOLE",
    };
    writeln!(out, "{csv}: {verdict}")?;
    let token = report.newest_token.map(|token| format!(", newest token {token}")).unwrap_or_default();
    write!(out, "  {} rows, {}{token}", HumanCount(report.rows), HumanBytes(report.bytes))?;
    for Finding { fault, count, samples } in &report.findings {
        write!(out, "\n  {}: {}", name(*fault), HumanCount(*count))?;
        for sample in samples {
            write!(out, "\n    at byte {}: {}", sample.offset, sample.detail)?;
        }
    }
    let journal = &report.journal;
    let (owed, bytes) = (HumanCount(journal.rows_to_recover), HumanBytes(journal.bytes_to_recover));
    let says = match journal.state {
        JournalState::Sound => "all of it stands in the CSV".to_owned(),
        JournalState::OwesRows => {
            format!("{owed} rows ({bytes}) wait to be brought into the CSV: start a replica, or --repair")
        }
        JournalState::Rebuilding => "the CSV's end is being made anew: start a replica, or --repair".to_owned(),
        JournalState::InDoubt => "a sync has failed: start a replica, or --repair, once the disk is well".to_owned(),
        JournalState::Missing => "none; a start reads the CSV through and makes one".to_owned(),
        JournalState::OtherFile => {
            "knows another CSV, or this one before it was cut short, and owes it nothing: a start takes this one"
                .to_owned()
        }
        JournalState::Foreign => {
            "OWES ROWS TO ANOTHER CSV, or to this one before it was cut short: put that file back, or --repair"
                .to_owned()
        }
        JournalState::Damaged => "DAMAGED: no start accepts it; --repair saves what can be saved".to_owned(),
        JournalState::Newer => "written by a newer version: upgrade this one".to_owned(),
    };
    write!(out, "\n  journal: {says}")?;
    if journal.bytes > 0 && !matches!(journal.state, JournalState::Damaged | JournalState::Newer) {
        write!(
            out,
            "\n    {} records since the checkpoint at byte {}, newest token {}, {} keys recorded",
            HumanCount(journal.records),
            journal.checkpoint_bytes,
            journal.newest_token,
            HumanCount(journal.keys)
        )?;
    }
    if report.quarantined_bytes > 0 {
        write!(
            out,
            "\n  {csv}.torn: {} were set aside; look at them, then delete it",
            HumanBytes(report.quarantined_bytes)
        )?;
    }
    Ok(())
}

fn name(fault: Fault) -> &'static str {
    match fault {
        Fault::TornLine => "torn lines (too few cells)",
        Fault::MergedLine => "merged lines (too many cells)",
        Fault::BrokenQuote => "text behind a closing quote",
        Fault::EndlessQuote => "quotes that never end",
        Fault::Nul => "NUL bytes (a hole that a power cut left)",
        Fault::OpenLine => "a torn last line",
        Fault::TokenBack => "tokens that go back",
        Fault::RepeatedKey => "keys that stand twice",
        Fault::NotAsJournaled => "rows that are other than the journal has them",
    }
}
