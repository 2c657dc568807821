//! `rowlock lock`: who has the lock, and its forced release.

use serde::Serialize;

use crate::cli::{Exit, FAILED, SYNC_FAILED, TRY_AGAIN, serve::open_failed};
use crate::{
    api::lock_status::{LockState, LockStatus, Waiter},
    commit::{self, AppendError, Forced},
    config::Config,
};

/// What to do about the lock.
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
    /// Show who has the lock, its token, how long it lives unless it is renewed, and who waits (the default).
    Status,
    /// Take the lock from whoever has it: a newer token is recorded first, so that the old holder writes nothing any more.
    Release,
}

pub(super) async fn run(config: Config, args: Args) -> Result<(), Exit> {
    let open_failed = |e| Exit::new(open_failed(&e), e);
    let said = match args.action.unwrap_or(Action::Status) {
        Action::Status => {
            let status = commit::lock_status(&config).await.map_err(open_failed)?;
            status.map(|status| say(&status, args.json, describe))
        }
        Action::Release => {
            let (appender, ended) = commit::open(&config, Default::default()).await.map_err(open_failed)?;
            let forced = appender.force_release().await;
            appender.close();
            let _ = ended.await;
            forced.map(|forced| say(&forced, args.json, describe_forced))
        }
    };
    let said = said.map_err(|e| Exit::new(exit_code(&e), e))?;
    println!("{}", said.map_err(|e| Exit::new(FAILED, e))?);
    Ok(())
}

fn exit_code(e: &AppendError) -> u8 {
    match e {
        AppendError::LockUnavailable(_) | AppendError::FileBusy => TRY_AGAIN,
        AppendError::SyncFailed => SYNC_FAILED,
        _ => FAILED,
    }
}

fn say<T: Serialize>(value: &T, json: bool, describe: impl Fn(&T) -> String) -> serde_json::Result<String> {
    if json { serde_json::to_string(value) } else { Ok(describe(value)) }
}

fn describe(status: &LockStatus) -> String {
    let token = status.token.map(|token| format!(", token {token}")).unwrap_or_default();
    let ttl = status.ttl_ms.map(|ms| format!(", expires in {ms} ms unless renewed")).unwrap_or_default();
    let holder = status.holder.as_deref().unwrap_or_default();
    let mut text = match status.state {
        LockState::Free => "free".to_owned(),
        LockState::Held => format!("held by {holder}{token}{ttl}"),
        LockState::Foreign => format!("held by a client that is no replica{ttl}"),
    };
    for (place, Waiter { replica, waited_ms }) in status.waiters.iter().enumerate() {
        text.push_str(&format!("\n{:>3}. {replica} waits {waited_ms} ms", place + 1));
    }
    text
}

fn describe_forced(forced: &Forced) -> String {
    let Forced { released, holder, token } = forced;
    let holder = holder.as_deref().unwrap_or("a client that is no replica");
    if *released {
        format!("released: {holder} had it; older tokens than {token} write nothing any more")
    } else {
        format!("nobody had it, or its own process keeps it; older tokens than {token} write nothing any more")
    }
}
