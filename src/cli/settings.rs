//! Which settings a command uses: it shows those in its help, accepts their flags, and reads their variables.

use std::ffi::OsString;

use clap::{Arg, ArgMatches, Args, Command, builder::Resettable, parser::ValueSource};

use crate::{
    cli::{Exit, WRONG_USAGE},
    config::{
        Config,
        heading::{FILE, LOCK, PROCESS, SIMULATION},
    },
};

/// Whether a command uses a setting. Without a command, rowlock serves, which uses them all.
fn uses(command: &str, setting: &Arg) -> bool {
    let (heading, id) = (setting.get_help_heading(), setting.get_id().as_str());
    let opens_file = matches!(heading, Some(LOCK | FILE | PROCESS));
    match command {
        "append" => opens_file || heading == Some(SIMULATION) || id == "queue_bytes",
        "check" | "lock" => opens_file && id != "formula_guard",
        "health" => matches!(id, "listen" | "tls_cert" | "log_format"),
        "load" => id == "log_format",
        _ => true,
    }
}

/// The settings that a command does not use.
fn unused(command: &str) -> Vec<String> {
    let settings = Config::augment_args(Command::new("settings"));
    let unused = settings.get_arguments().filter(|setting| !uses(command, setting));
    unused.map(|setting| setting.get_id().to_string()).collect()
}

/// The command line in which the command that these arguments name reads the variables of its own settings only, so that a
/// wrong value of another one does no harm. An empty variable counts as unset.
pub(super) fn for_arguments(command: Command, arguments: &[OsString]) -> Command {
    let unused = command_of(command.clone(), arguments).map(|name| unused(&name)).unwrap_or_default();
    let mut command = command.mut_args(|arg| {
        let is_empty = arg.get_env().is_some_and(|name| std::env::var_os(name).is_some_and(|value| value.is_empty()));
        let is_unused = unused.iter().any(|id| arg.get_id() == id.as_str());
        if is_empty || is_unused { arg.env(Resettable::Reset) } else { arg }
    });
    // Copies the settings into the commands.
    command.build();
    hide_unused(command)
}

/// The command that these arguments name; `None` if there is none, or if they are wrong.
fn command_of(command: Command, arguments: &[OsString]) -> Option<String> {
    let matches = without_variables(command).try_get_matches_from(arguments).ok()?;
    matches.subcommand_name().map(str::to_owned)
}

fn without_variables(command: Command) -> Command {
    command.mut_args(|arg| arg.env(Resettable::Reset)).mut_subcommands(without_variables)
}

/// Hides in the help of each command the settings that it does not use.
fn hide_unused(command: Command) -> Command {
    command.mut_subcommands(|subcommand| {
        let unused = unused(subcommand.get_name());
        hide(subcommand, &unused)
    })
}

fn hide(command: Command, unused: &[String]) -> Command {
    let command = command.mut_args(|arg| {
        let is_unused = unused.iter().any(|id| arg.get_id() == id.as_str());
        if is_unused { arg.hide(true) } else { arg }
    });
    command.mut_subcommands(|subcommand| hide(subcommand, unused))
}

/// Refuses the flag of a setting that the command does not use.
///
/// # Errors
/// Wrong usage, which names the flag.
pub(super) fn refuse_unused_flags(command: &Command, matches: &ArgMatches) -> Result<(), Exit> {
    let Some(name) = matches.subcommand_name() else { return Ok(()) };
    let is_given = |id: &&String| matches.value_source(id) == Some(ValueSource::CommandLine);
    let Some(id) = unused(name).into_iter().find(|id| is_given(&id)) else { return Ok(()) };
    let flag = command.get_arguments().find(|arg| arg.get_id() == id.as_str()).and_then(Arg::get_long);
    let flag = flag.unwrap_or(&id);
    Err(Exit::new(WRONG_USAGE, format_args!("--{flag}: rowlock {name} has no use for it; see rowlock {name} --help")))
}
