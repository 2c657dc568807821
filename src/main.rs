//! The `rowlock` command: reads `.env`, parses, starts logging, dispatches.

use std::process::ExitCode;

fn main() -> ExitCode {
    rowlock::cli::main()
}
