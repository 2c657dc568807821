//! `rowlock check`: checks the CSV and its journal, and repairs them.

use std::{fmt::Write, path::PathBuf, sync::LazyLock};

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};

use crate::cli::{Exit, FAILED, SYNC_FAILED, TRY_AGAIN, output, serve::open_error_code};
use crate::{
    commit::{self, RepairError},
    config::Config,
    storage::{
        self, CheckOptions, Fault, Finding, JournalReport, JournalState, OpenError, Plan, RepairChoice, Replaced,
        Report,
    },
};

/// Shorter files are read too quickly for a progress bar.
const PROGRESS_BYTES_MIN: u64 = 64 << 20;

pub(super) const EXAMPLES: &str = "\
Exit codes: 0 the CSV is whole, and true to its journal; 1 it is not, or it cannot be checked; 2 wrong usage or a wrong setting;
73 whole, but standard output did not take the result; 74 a sync failed; 75 another process holds the file, try again.

Examples:
  rowlock check rows.csv
  rowlock check rows.csv --json
  rowlock check rows.csv --repair                      says what it will change, then changes it under the lock";

/// The arguments of `rowlock check`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The CSV; unless given, the one of the settings.
    file: Option<PathBuf>,
    /// Repair the CSV and its journal under the lock, after printing what will change. Where the CSV is not the file that the
    /// journal describes, `keep-file` leaves it as it is and moves the journal's rows to `<csv>.torn`, and `restore` writes them to
    /// it; unless given, rows of an edited file are restored and another file is kept.
    #[arg(long, value_name = "HOW", num_args = 0..=1, require_equals = true, default_missing_value = "default")]
    repair: Option<Repair>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// The values of `--repair`.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Repair {
    #[value(hide = true)]
    Default,
    KeepFile,
    Restore,
}

impl From<Repair> for RepairChoice {
    fn from(repair: Repair) -> Self {
        match repair {
            Repair::Default => Self::Default,
            Repair::KeepFile => Self::KeepFile,
            Repair::Restore => Self::Restore,
        }
    }
}

pub(super) async fn run(config: Config, args: Args) -> Result<(), Exit> {
    let config = Config { csv: args.file.unwrap_or(config.csv), ..config };
    let options =
        CheckOptions { path: config.csv.clone(), header: config.csv_header.clone(), keys: config.idempotency_keys };
    let mut checked = check(&options).await;
    if let (Some(_), Err(OpenError::Missing(path))) = (args.repair, &checked) {
        output::tell(format_args!("rowlock: will create {} with its header, since it is missing\n", path.display()));
        storage::create_missing(&options).map_err(|e| Exit::new(FAILED, e))?;
        checked = check(&options).await;
    }
    let mut report = checked.map_err(|e| Exit::new(check_error_code(&e), e))?;
    if let Some(repair) = args.repair {
        let plan = report.plan(repair.into());
        output::tell(format_args!("rowlock: {}\n", describe_plan(&report, plan)));
        if plan != Plan::Nothing {
            let replaced = commit::repair(&config, options.clone(), plan).await;
            let replaced = replaced.map_err(|e| Exit::new(repair_error_code(&e), e))?;
            if let Some(replaced) = &replaced {
                output::tell(format_args!("rowlock: {}\n", describe_replaced(&report, replaced)));
            }
            report = check(&options).await.map_err(|e| Exit::new(check_error_code(&e), e))?;
        }
    }
    let text =
        if args.json { serde_json::to_string(&report).map_err(|e| Exit::new(FAILED, e))? } else { describe(&report) };
    let printed = output::print(text, if report.whole { "the CSV is whole" } else { "the CSV is not whole" });
    Exit::verdict(report.whole, printed)
}

/// Runs the check on a thread that may block.
async fn check(options: &CheckOptions) -> Result<Report, OpenError> {
    let options = options.clone();
    let checked = tokio::task::spawn_blocking(move || storage::check(&options, &progress)).await;
    checked.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))
}

/// Shows a progress bar on a terminal, for large files.
fn progress(done: u64, total: u64) {
    static BAR: LazyLock<ProgressBar> = LazyLock::new(|| {
        let style =
            ProgressStyle::with_template("{bar:40} {percent}% of {total_bytes}, {binary_bytes_per_sec}, {eta} left");
        ProgressBar::new(0).with_style(style.expect("a template"))
    });
    if total >= PROGRESS_BYTES_MIN {
        BAR.set_length(total);
        BAR.set_position(done);
        if done >= total {
            BAR.finish_and_clear();
        }
    }
}

fn check_error_code(e: &OpenError) -> u8 {
    match e {
        OpenError::Busy(_) => TRY_AGAIN,
        _ => FAILED,
    }
}

fn repair_error_code(e: &RepairError) -> u8 {
    match e {
        RepairError::Held(_) | RepairError::Append(storage::AppendError::Busy) => TRY_AGAIN,
        RepairError::Append(storage::AppendError::Sync(_)) => SYNC_FAILED,
        RepairError::Open(commit::OpenError::Storage(e)) => check_error_code(e),
        RepairError::Open(e) => open_error_code(e),
        RepairError::Append(_) | RepairError::Panicked => FAILED,
    }
}

fn describe_plan(report: &Report, plan: Plan) -> String {
    let csv = report.file.display();
    let journal = &report.journal;
    match (plan, journal.state) {
        (Plan::Nothing, JournalState::Newer) => format!("{csv}.journal was written by a newer version: upgrade this one; nothing is changed"),
        (Plan::Nothing, _) if report.whole => "nothing to repair".to_owned(),
        (Plan::Nothing, _) => "the damage is before the last checkpoint, where the journal has no copy: repair it by hand; nothing is changed".to_owned(),
        (Plan::ReplaceJournal { restores }, state) => {
            let to = if restores { format!("{csv} itself") } else { format!("{csv}.torn") };
            match state {
                JournalState::Foreign => format!(
                    "will copy the rows of {} records in {csv}.journal, which belong to another file, to {to}, keep the journal as {csv}.journal.old, and create a new one for this file as it is",
                    journal.records
                ),
                JournalState::Edited => format!(
                    "will keep {csv} as it is, copy the rows of its journal that it does not have to {to}, keep the journal as {csv}.journal.old, and create a new one"
                ),
                _ => format!(
                    "will copy rows of the damaged {csv}.journal that are missing in {csv} to {to}, keep the journal as {csv}.journal.old, and create a new one; keys that only the journal held are forgotten"
                ),
            }
        }
        (Plan::Recover, JournalState::Missing | JournalState::OtherFile) => {
            format!("will create a journal for {csv} as it is, and move an incomplete last line to {csv}.torn")
        }
        (Plan::Recover, JournalState::Edited) => format!(
            "will restore {} rows of the journal in {csv} and move the text in their place to {csv}.torn; --repair=keep-file keeps it",
            journal.rows_to_recover
        ),
        (Plan::Recover, JournalState::Sound) => format!("will move incomplete lines from {csv} to {csv}.torn"),
        (Plan::Recover, _) => format!(
            "will write {} rows ({} bytes) from the journal to {csv}, and move incomplete lines to {csv}.torn",
            journal.rows_to_recover, journal.bytes_to_recover
        ),
    }
}

fn describe_replaced(report: &Report, replaced: &Replaced) -> String {
    let Replaced { kept_as, rows_quarantined, rows_restored } = replaced;
    let csv = report.file.display();
    let restored = if *rows_restored > 0 { format!("{rows_restored} are in {csv} again, ") } else { String::new() };
    format!("kept the old journal as {}; of its rows {restored}{rows_quarantined} are in {csv}.torn", kept_as.display())
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
        (false, _, JournalState::Damaged | JournalState::Foreign | JournalState::Newer | JournalState::Edited)
            if report.findings.iter().all(|found| found.fault == Fault::NotAsJournaled) =>
        {
            "whole, but REPLICAS DO NOT START WITH ITS JOURNAL"
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
    write!(out, "\n  journal: {}", describe_journal(journal))?;
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
            "\n  {csv}.torn: {} in quarantine; inspect it, then delete it",
            HumanBytes(report.quarantined_bytes)
        )?;
    }
    Ok(())
}

fn describe_journal(journal: &JournalReport) -> String {
    let (rows, bytes) = (HumanCount(journal.rows_to_recover), HumanBytes(journal.bytes_to_recover));
    let text = match journal.state {
        JournalState::Sound => "all of its rows are in the CSV",
        JournalState::OwesRows => {
            return format!("{rows} rows ({bytes}) are missing in the CSV: start a replica, or --repair");
        }
        JournalState::Rebuilding => "a rebuild of the CSV's tail was interrupted: start a replica, or --repair",
        JournalState::Edited => "DIFFERS FROM THE CSV, which was edited: see --repair=keep-file and --repair=restore",
        JournalState::InDoubt => "a sync has failed: check the disk, then start a replica, or --repair",
        JournalState::Missing => "none; the next start reads the CSV and creates one",
        JournalState::OtherFile => {
            "belongs to another CSV, or to this one before it was cut short, and holds no rows for it: the next start accepts this CSV"
        }
        JournalState::Foreign => {
            "HOLDS ROWS OF ANOTHER CSV, or of this one before it was cut short: put that file back, or --repair"
        }
        JournalState::Damaged => "DAMAGED: replicas do not start with it; --repair saves the rows that it can read",
        JournalState::Newer => "written by a newer version: upgrade this one",
    };
    text.to_owned()
}

fn name(fault: Fault) -> &'static str {
    match fault {
        Fault::TornLine => "torn lines (too few cells)",
        Fault::MergedLine => "merged lines (too many cells)",
        Fault::BrokenQuote => "text behind a closing quote",
        Fault::EndlessQuote => "quotes that are not closed within 64 MiB",
        Fault::Nul => "NUL bytes (from a power cut)",
        Fault::OpenLine => "a torn last line",
        Fault::OpenQuote => "a quote that is opened and never closed",
        Fault::TokenBack => "tokens that decrease",
        Fault::RepeatedKey => "duplicate keys",
        Fault::NotAsJournaled => "rows that differ from the journal",
    }
}
