//! The command line: reads `.env`, parses arguments, starts logging, runs the command. Each command is a file.

mod append;
mod check;
mod environment;
mod health;
mod interrupt;
mod load;
mod lock;
mod output;
mod serve;
mod settings;
mod usage;

use std::{ffi::OsString, process::ExitCode};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{Config, LogFormat, TokenSource, variable};

/// Exit code: the command failed.
const FAILED: u8 = 1;
/// Exit code: the command or a setting is wrong.
const WRONG_USAGE: u8 = 2;
/// Exit code: done, but standard output did not take the result (`EX_CANTCREAT` of sysexits.h).
const RESULT_NOT_SHOWN: u8 = 73;
/// Exit code: a sync failed (`EX_IOERR` of sysexits.h).
const SYNC_FAILED: u8 = 74;
/// Exit code: the lock was not granted in time, try again (`EX_TEMPFAIL` of sysexits.h).
const TRY_AGAIN: u8 = 75;

/// Many replicas, one CSV: rows posted over HTTP are appended under one lock.
///
/// Without a command, rowlock serves. Each setting is an option and an environment variable. Variables are also read from a `.env`
/// file in the working directory; variables of the environment take precedence over it.
#[derive(Debug, Parser)]
#[command(name = "rowlock", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    config: Config,
}

const EXAMPLES: &str = "\
Environment variables without an option:
  API tokens: role:token,…, or @FILE with such entries, reloaded on SIGHUP. Roles: append (appends), read (rows, lock, events,
  metrics), admin (everything). Unset: no token is required, and only a loopback address is served.
  [env: ROWLOCK_API_TOKENS]
  Collector for traces, by OTLP over HTTP, such as http://127.0.0.1:4318; OpenTelemetry's other variables work as well. Unset: no
  traces.
  [env: OTEL_EXPORTER_OTLP_ENDPOINT]

Examples:
  rowlock                                              serve rows.csv on 127.0.0.1:8080, embedded lock
  rowlock serve --redis redis://localhost --csv a.csv  one of many replicas
  rowlock append --data hello                          one row, without a server
  rowlock lock                                         the lock's holder and waiters
  rowlock check rows.csv                               check a CSV against its journal
  rowlock load --url http://127.0.0.1:8080 --requests 100000 --verify rows.csv
                                                       measure throughput, and verify the acknowledged rows
  curl -d data=hello http://127.0.0.1:8080/append      one row, sent to a server";

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve HTTP until SIGTERM or SIGINT (the default).
    #[command(after_help = serve::EXAMPLES)]
    Serve,
    /// Append to the CSV without a server, under the same lock.
    #[command(after_help = append::EXAMPLES)]
    Append(append::Args),
    /// Show the lock's holder and waiters, or release the lock by force.
    #[command(after_help = lock::EXAMPLES)]
    Lock(lock::Args),
    /// Check the CSV against its journal, and repair it.
    #[command(after_help = check::EXAMPLES)]
    Check(check::Args),
    /// Check whether a replica is ready: exits 0 if it is, 1 if not. For container health checks.
    #[command(after_help = health::EXAMPLES)]
    Health(health::Args),
    /// Load-test replicas, and verify that the CSV holds every acknowledged row.
    #[command(after_help = load::EXAMPLES)]
    Load(load::Args),
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    match parse().and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Exit { code, message }) => {
            output::tell(message);
            ExitCode::from(code)
        }
    }
}

/// The failure of a command.
struct Exit {
    code: u8,
    /// With a line break at its end; empty, if the result says it all.
    message: String,
}

impl Exit {
    /// One line, after the program's name.
    fn new(code: u8, message: impl std::fmt::Display) -> Self {
        Self { code, message: format!("rowlock: {message}\n") }
    }

    /// A command that printed its result: it failed if the result is not good, and then its message says only that it could not be
    /// printed.
    fn verdict(is_good: bool, printed: Result<(), Self>) -> Result<(), Self> {
        if is_good {
            return printed;
        }
        Err(Self { code: FAILED, message: printed.err().map(|exit| exit.message).unwrap_or_default() })
    }
}

fn parse() -> Result<Cli, Exit> {
    read_dotenv()?;
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let mut command = settings::for_arguments(Cli::command(), &arguments);
    let matches = match command.try_get_matches_from_mut(arguments) {
        Ok(matches) => matches,
        Err(e) if e.use_stderr() => return Err(usage::explain(&command, &e)),
        Err(help) => return Err(show(&help)),
    };
    settings::refuse_unused_flags(&command, &matches)?;
    let mut cli = Cli::from_arg_matches(&matches).map_err(|e| usage::explain(&command, &e))?;
    if matches!(cli.command, None | Some(Command::Serve)) {
        let tokens = usage::text_of_variable(TokenSource::VARIABLE)?;
        cli.config.api_tokens = tokens.as_deref().map(TokenSource::parse);
    }
    Ok(cli)
}

/// Shows the help or the version, and ends the command.
fn show(help: &clap::Error) -> Exit {
    let printed = help.print().and_then(|()| std::io::Write::flush(&mut std::io::stdout()));
    let shown = output::written(printed, "no command was run");
    shown.err().unwrap_or(Exit { code: 0, message: String::new() })
}

/// Reads `.env` in the working directory only; the library's own search also reads parent directories.
fn read_dotenv() -> Result<(), Exit> {
    match dotenvy::from_path(".env") {
        Err(dotenvy::Error::LineParse(text, _)) => Err(Exit::new(
            WRONG_USAGE,
            format_args!(
                ".env: {} cannot be parsed; accepted: NAME=value, with the value in '…' if it has spaces, $ or #",
                dotenv_line(&text)
            ),
        )),
        Err(e) if !e.not_found() => Err(Exit::new(WRONG_USAGE, format_args!(".env cannot be read: {e}"))),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Names the line and the variable of a text that cannot be parsed, without the text, which may hold a secret.
fn dotenv_line(text: &str) -> String {
    let content = std::fs::read_to_string(".env").unwrap_or_default();
    let found = content.lines().enumerate().find(|(_, line)| line.contains(text));
    let Some((at, line)) = found else { return "a line".to_owned() };
    let name = line.split_once('=').map_or("", |(name, _)| name.trim());
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if is_name { format!("line {} ({name})", at + 1) } else { format!("line {}", at + 1) }
}

fn run(cli: Cli) -> Result<(), Exit> {
    start_logging(cli.config.log_format, !matches!(cli.command, None | Some(Command::Serve)));
    environment::warn_of_unknown_variables(&Cli::command());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|e| Exit::new(FAILED, e))?;
    let result = match cli.command {
        None | Some(Command::Serve) => runtime.block_on(serve::run(cli.config)),
        Some(Command::Append(args)) => runtime.block_on(append::run(cli.config, args)),
        Some(Command::Lock(args)) => runtime.block_on(lock::run(cli.config, args)),
        Some(Command::Check(args)) => runtime.block_on(check::run(cli.config, args)),
        Some(Command::Health(args)) => runtime.block_on(health::run(&cli.config, args)),
        // The load test has a runtime of its own, with one thread.
        Some(Command::Load(args)) => load::run(args),
    };
    runtime.shutdown_background();
    result
}

/// Logs go to standard error, so that results can be piped. A one-off command logs only warnings and errors.
fn start_logging(format: LogFormat, quiet: bool) {
    use tracing_subscriber::{EnvFilter, fmt};
    // The Redis client logs each failed call; the lock logs changes only.
    let default = if quiet { "warn,redis=off" } else { "info,redis=off" };
    let filter = EnvFilter::builder().parse_lossy(variable("RUST_LOG").as_deref().unwrap_or(default));
    // A line that standard error does not take is lost. The library would print an error there, and panic.
    let builder = fmt().log_internal_errors(false);
    let builder = builder.with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}
