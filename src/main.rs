//! The `rowlock` command: reads `.env`, parses, starts logging, dispatches.

use std::process::ExitCode;

/// A request allocates on one thread what others free, in pieces that the system's allocator is slow with: see benches/RESULTS.md.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    rowlock::cli::main()
}
