//! SIGINT and SIGTERM for commands that hold the lock: they end in order, and release it.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::{Exit, output};

/// SIGINT and SIGTERM. As long as it lives, they do not end the process.
pub(super) struct Interrupt {
    int: Signal,
    term: Signal,
}

impl Interrupt {
    /// # Errors
    /// If the system takes no handler.
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self { int: signal(SignalKind::interrupt())?, term: signal(SignalKind::terminate())? })
    }

    /// Waits for the next signal, and returns the exit code for it: 128 and its number, as shells have it.
    pub(super) async fn received(&mut self) -> u8 {
        let kind = tokio::select! {
            _ = self.int.recv() => SignalKind::interrupt(),
            _ = self.term.recv() => SignalKind::terminate(),
        };
        u8::try_from(128 + kind.as_raw_value()).unwrap_or(u8::MAX)
    }
}

/// The end of a command that a signal interrupted before it wrote a row.
pub(super) fn not_written(code: u8) -> Exit {
    Exit::new(code, "interrupted: nothing was written")
}

/// Ends the process at a second signal, while the row is being written.
pub(super) fn end_at_once(code: u8) -> ! {
    output::tell("rowlock: interrupted twice: it is unknown whether the row was written\n");
    std::process::exit(code.into())
}
