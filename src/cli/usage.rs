//! Usage errors in one line that names the variable, the value, and what is accepted.

use clap::{
    Command,
    builder::Resettable,
    error::{ContextKind, ContextValue, ErrorKind},
};

use crate::cli::{Exit, WRONG_USAGE};

/// An empty variable counts as unset.
pub(super) fn without_empty_variables(command: Command) -> Command {
    command.mut_args(|arg| {
        let empty = arg.get_env().is_some_and(|name| std::env::var_os(name).is_some_and(|value| value.is_empty()));
        if empty { arg.env(Resettable::Reset) } else { arg }
    })
}

/// Hides the settings of a replica in the help of `load`, which uses none of them.
pub(super) fn without_replica_options(mut command: Command) -> Command {
    // Propagates global options to the subcommands.
    command.build();
    command.mut_subcommand("load", |load| {
        load.mut_args(|arg| {
            let is_global = arg.is_global_set();
            arg.hide(is_global)
        })
    })
}

/// Explains a wrong value in one line. Other errors keep clap's text, with usage and hints.
pub(super) fn explain(command: &Command, error: &clap::Error) -> Exit {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let is_value = matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue);
    let (true, Some(arg), Some(value)) = (is_value, text(ContextKind::InvalidArg), text(ContextKind::InvalidValue))
    else {
        return Exit { code: WRONG_USAGE, message: error.render().to_string() };
    };
    let flag = arg.split(' ').next().unwrap_or(arg);
    let variable = command
        .get_arguments()
        .find(|known| known.get_long().is_some_and(|long| flag.strip_prefix("--") == Some(long)));
    let name = match variable.and_then(|arg| arg.get_env()) {
        Some(variable) => format!("{} ({flag})", variable.to_string_lossy()),
        None => flag.to_owned(),
    };
    Exit::new(WRONG_USAGE, format_args!("{name}: {value:?} is not accepted; accepted: {}", accepted(error)))
}

fn accepted(error: &clap::Error) -> String {
    if let Some(source) = std::error::Error::source(error) {
        return source.to_string();
    }
    match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(values)) => values.join(", "),
        _ => "see --help".to_owned(),
    }
}
