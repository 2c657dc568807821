//! `rowlock lock`: shows the lock's holder, and releases it by force.

use serde::Serialize;

use crate::cli::{Exit, FAILED, SYNC_FAILED, TRY_AGAIN, output, serve::open_error_code};
use crate::{
    api::lock_status::{ForcedRelease, LockState, LockStatus, Waiter},
    commit::{self, AppendError, LockStatusError},
    config::Config,
};

pub(super) const EXAMPLES: &str = "\
Exit codes: 0 done; 1 failed; 2 wrong usage or a wrong setting; 73 done, but standard output did not take the result; 74 a sync
failed; 75 the lock cannot be reached, or another process holds the file, try again.

Examples:
  rowlock lock                                         the holder and the waiters
  rowlock lock --redis redis://localhost --json
  rowlock lock release                                 take the lock from its holder";

/// The arguments of `rowlock lock`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    /// Print the result as JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Subcommand)]
enum Action {
    /// Show the lock's holder, token, time to live and waiters (the default).
    Status,
    /// Take the lock from its holder: a newer token is recorded first, so that the old holder can no longer write.
    Release,
}

pub(super) async fn run(config: Config, args: Args) -> Result<(), Exit> {
    let (text, done) = match args.action.unwrap_or(Action::Status) {
        Action::Status => {
            let status = commit::lock_status(&config).await.map_err(|e| Exit::new(status_error_code(&e), e))?;
            (text(&status, args.json, describe), "the lock was looked up")
        }
        Action::Release => {
            let opened = commit::open(&config, Default::default()).await;
            let (appender, mut committer) = opened.map_err(|e| Exit::new(open_error_code(&e), e))?;
            let released = appender.force_release().await;
            appender.close();
            // An error of the committer is in `released` as well.
            let _ = committer.ended().await;
            let released = released.map_err(|e| Exit::new(exit_code(&e), e))?;
            let done = if released.released { "the lock was released" } else { "nothing held the lock" };
            (text(&released, args.json, describe_release), done)
        }
    };
    output::print(text.map_err(|e| Exit::new(FAILED, e))?, done)
}

fn status_error_code(e: &LockStatusError) -> u8 {
    match e {
        LockStatusError::Open(e) => open_error_code(e),
        LockStatusError::Outage(_) | LockStatusError::NoAnswer => TRY_AGAIN,
    }
}

fn exit_code(e: &AppendError) -> u8 {
    match e {
        AppendError::LockUnavailable(_) | AppendError::LockRejected | AppendError::FileBusy => TRY_AGAIN,
        AppendError::SyncFailed => SYNC_FAILED,
        _ => FAILED,
    }
}

fn text<T: Serialize>(value: &T, json: bool, describe: impl Fn(&T) -> String) -> serde_json::Result<String> {
    if json { serde_json::to_string(value) } else { Ok(describe(value)) }
}

fn describe(status: &LockStatus) -> String {
    let token = status.token.map(|token| format!(", token {token}")).unwrap_or_default();
    let ttl = status.ttl_ms.map(|ms| format!(", expires in {ms} ms unless renewed")).unwrap_or_default();
    let holder = status.holder.as_deref().unwrap_or_default();
    let mut text = match status.state {
        LockState::Free => "free".to_owned(),
        LockState::Held => format!("held by {holder}{token}{ttl}"),
        LockState::Foreign => {
            let key_type = status.foreign_type.as_deref().unwrap_or("unknown");
            format!("held by a client that is no replica (foreign, its key is of type {key_type}){ttl}")
        }
    };
    for (at, Waiter { replica, waited_ms }) in status.waiters.iter().enumerate() {
        text.push_str(&format!("\n{:>3}. {replica} waits {waited_ms} ms", at + 1));
    }
    text
}

fn describe_release(release: &ForcedRelease) -> String {
    let ForcedRelease { released, holder, token } = release;
    let holder = holder.as_deref().unwrap_or("a client that is no replica");
    if *released {
        format!("released: {holder} held it; a holder with a token below {token} can no longer write")
    } else {
        format!("nobody had it, or a running process keeps it; a holder with a token below {token} can no longer write")
    }
}
