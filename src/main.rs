//! The `rowlock` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    rowlock::cli::main()
}
