//! Usage errors in one line that names the variable, the value, and what is accepted.

use std::path::PathBuf;

use clap::{
    Command,
    builder::ValueParser,
    error::{ContextKind, ContextValue, ErrorKind},
};

use crate::cli::{Exit, WRONG_USAGE};

/// The variable whose value is not UTF-8, if there is one. The value is not shown, because it may be a secret.
fn broken_text(command: &Command) -> Option<Exit> {
    let is_path = |parser: &ValueParser| parser.type_id() == clap::value_parser!(PathBuf).type_id();
    let texts = command.get_arguments().filter(|arg| !is_path(arg.get_value_parser()));
    let mut variables = texts.filter_map(|arg| arg.get_env()?.to_str());
    let broken = variables.find_map(|name| text_of_variable(name).err());
    broken.or_else(|| command.get_subcommands().find_map(broken_text))
}

/// The value of a variable; `None` if it is unset or empty.
///
/// # Errors
/// Wrong usage, if the value is not UTF-8.
pub(super) fn text_of_variable(name: &str) -> Result<Option<String>, Exit> {
    let value = std::env::var_os(name).map(std::ffi::OsString::into_string).transpose();
    let value = value.map_err(|_| {
        Exit::new(WRONG_USAGE, format_args!("{name}: its value is not accepted, because it is not UTF-8"))
    })?;
    Ok(value.filter(|value| !value.is_empty()))
}

/// Explains a wrong value in one line. Other errors keep clap's text, with usage and hints.
pub(super) fn explain(command: &Command, error: &clap::Error) -> Exit {
    let broken = (error.kind() == ErrorKind::InvalidUtf8).then(|| broken_text(command)).flatten();
    broken.unwrap_or_else(|| explain_value(command, error))
}

fn explain_value(command: &Command, error: &clap::Error) -> Exit {
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
    Exit::new(WRONG_USAGE, format_args!("{name}: {} is not accepted; accepted: {}", quoted(value), accepted(error)))
}

/// The value in quotes, on one line.
fn quoted(value: &str) -> String {
    serde_json::Value::from(value).to_string()
}

fn accepted(error: &clap::Error) -> String {
    if let Some(source) = std::error::Error::source(error) {
        return source.to_string();
    }
    match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(values)) if !values.is_empty() => values.join(", "),
        _ => "a value that is not empty".to_owned(),
    }
}
