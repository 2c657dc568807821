//! Standard output and standard error. Either may be closed, or a file on a full disk: no command panics then.

use std::{
    fmt::Display,
    io::{self, Write},
};

use crate::cli::{Exit, RESULT_NOT_SHOWN};

/// Prints a result and ends its line. `done` says what stands although its result may not be shown.
///
/// # Errors
/// If standard output does not take the result.
pub(super) fn print(result: impl Display, done: &str) -> Result<(), Exit> {
    write(format_args!("{result}\n"), done)
}

/// Prints a result that ends its lines itself.
///
/// # Errors
/// If standard output does not take the result.
pub(super) fn write(result: impl Display, done: &str) -> Result<(), Exit> {
    let mut stdout = io::stdout().lock();
    written(write!(stdout, "{result}").and_then(|()| stdout.flush()), done)
}

/// Explains why a result is not shown.
///
/// # Errors
/// If it was not written.
pub(super) fn written(result: io::Result<()>, done: &str) -> Result<(), Exit> {
    result.map_err(|e| Exit::new(RESULT_NOT_SHOWN, format_args!("{done}; standard output cannot be written: {e}")))
}

/// Prints to standard error. A message that cannot be printed is lost, and the exit code still tells the result.
pub(super) fn tell(message: impl Display) {
    let _ = write!(io::stderr().lock(), "{message}");
}
