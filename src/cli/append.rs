//! `rowlock append`: appends rows under the same lock to the same file, without a server.

use std::{borrow::Cow, io::Read, time::Duration};

use serde::Serialize;

use crate::cli::{
    Exit, FAILED, SYNC_FAILED, TRY_AGAIN, WRONG_USAGE,
    interrupt::{self, Interrupt},
    output,
    serve::open_error_code,
};
use crate::{
    api::acknowledgement::Acknowledgement,
    commit::{self, AppendError, Appender, Outcome},
    config::{Config, Switch},
    csv::{
        idempotency_key::{KEY_BYTES_MAX, Key},
        rows::Rows,
        schema::Data,
    },
    simulation::Simulation,
};

pub(super) const EXAMPLES: &str = "\
Exit codes: 0 appended; 1 failed; 2 wrong usage or a wrong setting; 73 appended, but standard output did not take the result;
74 a sync failed, and it is unknown whether the row stands; 75 the lock was not granted in time, try again; 130 or 143 interrupted
by SIGINT or SIGTERM before the row was written, with the lock released. After 0 and 73 the row stands.

Examples:
  rowlock append --data hello
  rowlock append --csv /data/rows.csv --redis redis://localhost --data hello --idempotency-key order-17
  rowlock append --data - <lines.txt                   each line is a row; all are appended, or none
  rowlock append --data hello --sleep 5                hold the lock for 5 s before the write; Ctrl-C releases it";

/// The arguments of `rowlock append`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The row's first data cell; `-` reads the lines of standard input, all appended or none.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    data: String,
    /// Seconds to hold the lock before the write.
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = parse_sleep)]
    sleep: Duration,
    /// Leave the lock to expire after the write, as if this process had crashed.
    #[arg(long)]
    skip_release: bool,
    /// Idempotency key: a repeat with the same key and data writes the rows once.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Output<'a> {
    rows: usize,
    #[serde(flatten)]
    ack: &'a Acknowledgement,
}

pub(super) async fn run(config: Config, args: Args) -> Result<(), Exit> {
    let simulation = Simulation { sleep: args.sleep, skip_release: args.skip_release };
    if simulation.sleep > config.max_sleep {
        let max = config.max_sleep.as_secs_f64();
        return Err(Exit::new(WRONG_USAGE, format_args!("--sleep: accepted: 0 to {max} seconds (ROWLOCK_MAX_SLEEP)")));
    }
    if simulation.wants_own_turn() && config.simulation == Switch::Off {
        return Err(Exit::new(WRONG_USAGE, "--sleep and --skip-release are switched off here (ROWLOCK_SIMULATION)"));
    }
    let lines = if args.data == "-" { read_lines(config.queue_bytes)? } else { vec![args.data] };
    // This batch has the queue to itself, so it may fill it.
    let config = Config { queue_rows: config.queue_rows.max(lines.len()), queue_bytes: usize::MAX, ..config };
    let mut interrupt = Interrupt::listen().map_err(|e| Exit::new(FAILED, e))?;
    let opened = tokio::select! {
        opened = commit::open(&config, Default::default()) => opened,
        code = interrupt.received() => return Err(interrupt::not_written(code)),
    };
    let (appender, mut committer) = opened.map_err(|e| Exit::new(open_error_code(&e), e))?;
    let rows = rows(&appender, lines)?;
    if rows.is_empty() {
        return Err(Exit::new(FAILED, "standard input is empty: nothing appended"));
    }
    let key = args.idempotency_key.map(|text| {
        let accepted = format_args!("--idempotency-key: accepted: 1 to {KEY_BYTES_MAX} printable ASCII characters");
        Key::new(&text, &rows).ok_or_else(|| Exit::new(WRONG_USAGE, accepted))
    });
    let result = append(&appender, rows, simulation, key.transpose()?, &mut interrupt).await;
    appender.close();
    tokio::select! {
        // The lock is released after the answer. An error of the committer is in `result` as well.
        _ = committer.ended() => {}
        // The lock then expires by itself.
        _ = interrupt.received() => {}
    }
    print(&result?, args.json)
}

/// Appends the rows. A signal ends the wait for the lock and the sleep, but not the write.
async fn append(
    appender: &Appender,
    rows: Rows,
    simulation: Simulation,
    key: Option<Key>,
    interrupt: &mut Interrupt,
) -> Result<Acknowledgement, Exit> {
    let appended = appender.append(rows, simulation, key);
    tokio::pin!(appended);
    let (result, interrupted) = tokio::select! {
        result = &mut appended => (result, None),
        code = interrupt.received() => {
            appender.refuse_waiting();
            tokio::select! {
                result = &mut appended => (result, Some(code)),
                // The volume may not answer for long.
                code = interrupt.received() => interrupt::end_at_once(code),
            }
        }
    };
    result.map_err(|e| match (e, interrupted) {
        (AppendError::Draining, Some(code)) => interrupt::not_written(code),
        (e, _) => Exit::new(exit_code(&e), e),
    })
}

pub(super) fn parse_sleep(text: &str) -> Result<Duration, String> {
    let secs = text.parse().ok().and_then(|secs| Duration::try_from_secs_f64(secs).ok());
    secs.ok_or_else(|| "a number of seconds, such as 2 or 0.5".to_owned())
}

fn read_lines(bytes_max: usize) -> Result<Vec<String>, Exit> {
    let mut text = String::new();
    let read = std::io::stdin().lock().take(bytes_max as u64 + 1).read_to_string(&mut text);
    read.map_err(|e| Exit::new(FAILED, format_args!("standard input: {e}")))?;
    if text.len() > bytes_max {
        return Err(Exit::new(
            FAILED,
            format_args!("standard input: more than {bytes_max} bytes (ROWLOCK_QUEUE_BYTES); nothing appended"),
        ));
    }
    // Editors and PowerShell begin a file with a BOM.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    Ok(text.lines().map(str::to_owned).collect())
}

fn rows(appender: &Appender, lines: Vec<String>) -> Result<Rows, Exit> {
    let schema = appender.schema();
    let mut rows = schema.rows();
    for (at, line) in lines.into_iter().enumerate() {
        let pushed = schema.push(&Data::Text(Cow::Owned(line)), &mut rows);
        pushed.map_err(|e| Exit::new(FAILED, format_args!("line {}: {e}; nothing appended", at + 1)))?;
    }
    Ok(rows)
}

fn exit_code(e: &AppendError) -> u8 {
    match e {
        AppendError::SyncFailed => SYNC_FAILED,
        AppendError::QueueFull
        | AppendError::WaitTimeout(_)
        | AppendError::LockUnavailable(_)
        | AppendError::LockRejected
        | AppendError::LockLost
        | AppendError::KeyInFlight
        | AppendError::KeyMayBeForgotten
        | AppendError::FileBusy
        | AppendError::StorageStuck(Outcome::NotWritten)
        | AppendError::Draining => TRY_AGAIN,
        AppendError::InvalidField(_)
        | AppendError::KeyReused
        | AppendError::BatchTooLarge(_)
        | AppendError::RowTooLarge(_)
        | AppendError::DiskFull
        | AppendError::FileReplaced
        | AppendError::StorageStuck(_)
        | AppendError::Internal(_) => FAILED,
    }
}

fn print(ack: &Acknowledgement, json: bool) -> Result<(), Exit> {
    let Acknowledgement { rows, offset, bytes, token, waited_ms, held_ms, released, replayed, .. } = ack;
    let plural = if *rows == 1 { "" } else { "s" };
    let done = format!("appended {rows} row{plural}");
    if json {
        let text = serde_json::to_string(&Output { rows: *rows, ack }).map_err(|e| Exit::new(FAILED, e))?;
        return output::print(text, &done);
    }
    let replayed = if *replayed { "; written before, under this key" } else { "" };
    let left = if *released { "" } else { "; the lock is left to expire" };
    output::print(
        format_args!(
            "{done} at offset {offset} ({bytes} bytes), token {token}, waited {waited_ms} ms, held {held_ms} ms{left}{replayed}"
        ),
        &done,
    )
}
