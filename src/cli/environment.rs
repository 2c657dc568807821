//! Variables of the environment that look like settings and are none. A misspelt setting would have no effect without a word.

use std::collections::BTreeSet;

use clap::Command;
use strsim::normalized_damerau_levenshtein;

use crate::{config::TokenSource, failpoints};

/// The names of most settings begin with it.
const PREFIX: &str = "ROWLOCK_";
/// How similar an unknown variable must be to a setting, from 0 to 1, for the setting to be named.
const NAMED_FROM: f64 = 0.6;
/// How similar a variable with another prefix must be to a setting to be taken for a misspelt one.
const MISSPELT_FROM: f64 = 0.8;

/// A variable that is no setting.
#[derive(Debug, PartialEq, Eq)]
struct Unknown<'a> {
    name: &'a str,
    /// The setting with the most similar name.
    nearest: Option<&'a str>,
}

/// Warns about unknown variables, of the environment and of `.env`. Shows no value, which may be a secret.
pub(super) fn warn_of_unknown_variables(command: &Command) {
    let variables: Vec<String> = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).collect();
    for Unknown { name, nearest } in unknown(&variables, &settings(command)) {
        tracing::warn!(variable = name, nearest, "no setting has the name of this variable, so it has no effect");
    }
}

/// The variables of all options of all commands, and those without an option.
fn settings(command: &Command) -> BTreeSet<String> {
    let without_option = [TokenSource::VARIABLE].iter().chain(failpoints::VARIABLES);
    let mut settings = without_option.map(|name| (*name).to_owned()).collect();
    add_options(command, &mut settings);
    settings
}

fn add_options(command: &Command, settings: &mut BTreeSet<String>) {
    let variables = command.get_arguments().filter_map(|arg| arg.get_env()?.to_str());
    settings.extend(variables.map(str::to_owned));
    command.get_subcommands().for_each(|command| add_options(command, settings));
}

fn unknown<'a>(variables: &'a [String], settings: &'a BTreeSet<String>) -> Vec<Unknown<'a>> {
    let candidates = variables.iter().filter(|name| !settings.contains(*name) && !is_service_link(name, variables));
    let examined = candidates.map(|name| (name, nearest(name, settings)));
    examined
        .filter(|(name, nearest)| name.starts_with(PREFIX) || nearest.is_some_and(|(_, same)| same >= MISSPELT_FROM))
        .map(|(name, nearest)| Unknown {
            name,
            nearest: nearest.filter(|(_, same)| *same >= NAMED_FROM).map(|(setting, _)| setting),
        })
        .collect()
}

/// The setting with the most similar name, and how similar it is.
fn nearest<'a>(name: &str, settings: &'a BTreeSet<String>) -> Option<(&'a str, f64)> {
    let upper = name.to_ascii_uppercase();
    let similarity = |setting: &str| match upper.strip_prefix(PREFIX) {
        // A common prefix would make all settings similar, so it is left out.
        Some(stem) => {
            let other = [PREFIX, "REDIS_"].iter().find_map(|prefix| setting.strip_prefix(prefix)).unwrap_or(setting);
            normalized_damerau_levenshtein(stem, other).max(normalized_damerau_levenshtein(stem, setting))
        }
        None => normalized_damerau_levenshtein(&upper, setting),
    };
    let compared = settings.iter().map(|setting| (&**setting, similarity(setting)));
    compared.max_by(|(_, one), (_, other)| one.total_cmp(other))
}

/// Kubernetes and Docker announce a service by variables that begin with its name, such as `ROWLOCK_SERVICE_HOST`.
fn is_service_link(name: &str, variables: &[String]) -> bool {
    let services = variables.iter().filter_map(|variable| variable.strip_suffix("_SERVICE_HOST"));
    services
        .filter_map(|service| name.strip_prefix(service))
        .any(|rest| rest.starts_with("_SERVICE_") || rest == "_PORT" || rest.starts_with("_PORT_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(variables: &[&str], expected: &[(&str, Option<&str>)]) {
        let settings = [
            "REDIS_CONN_STR",
            "REDIS_CSV_FILE_NAME",
            "ROWLOCK_API_TOKENS",
            "ROWLOCK_AUTH",
            "ROWLOCK_LISTEN",
            "ROWLOCK_LOCK_TTL",
            "ROWLOCK_TLS_CERT",
            "ROWLOCK_WAIT_TIMEOUT",
        ];
        let settings = settings.map(str::to_owned).into();
        let variables: Vec<_> = variables.iter().map(|&name| name.to_owned()).collect();
        let found = unknown(&variables, &settings);
        let found: Vec<_> = found.iter().map(|unknown| (unknown.name, unknown.nearest)).collect();
        assert_eq!(found, expected, "{variables:?}");
    }

    #[test]
    fn misspelt_variable_is_unknown_and_its_setting_named() {
        for (name, nearest) in [
            ("ROWLOCK_API_TOKEN", Some("ROWLOCK_API_TOKENS")),
            ("ROWLOCK_TOKENS", Some("ROWLOCK_API_TOKENS")),
            ("ROWLOCK_WAITTIMEOUT", Some("ROWLOCK_WAIT_TIMEOUT")),
            ("ROWLOCK_LOCK_TLL", Some("ROWLOCK_LOCK_TTL")),
            ("ROWLOCK_TLS_CRET", Some("ROWLOCK_TLS_CERT")),
            ("ROWLOCK_CSV_FILE_NAME", Some("REDIS_CSV_FILE_NAME")),
            ("ROWLOCK_CONN_STR", Some("REDIS_CONN_STR")),
            ("ROWLOCK_REDIS_CONN_STR", Some("REDIS_CONN_STR")),
            ("ROWLOCK_FLAVOUR", None),
            ("rowlock_listen", Some("ROWLOCK_LISTEN")),
            ("ROWLOKC_API_TOKENS", Some("ROWLOCK_API_TOKENS")),
            ("REDIS_CONN_STRING", Some("REDIS_CONN_STR")),
            ("REDIS_CSV_FILENAME", Some("REDIS_CSV_FILE_NAME")),
            ("REDIS_CONNSTR", Some("REDIS_CONN_STR")),
        ] {
            check(&[name], &[(name, nearest)]);
        }
    }

    #[test]
    fn setting_or_foreign_variable_is_not_unknown() {
        check(&["ROWLOCK_LISTEN", "REDIS_CONN_STR", "PATH", "REDIS_URL", "REDIS_PORT", "RUST_LOG", "TLS_CERT"], &[]);
    }

    #[test]
    fn service_links_are_not_unknown() {
        let links = ["ROWLOCK_SERVICE_HOST", "ROWLOCK_SERVICE_PORT_HTTP", "ROWLOCK_PORT", "ROWLOCK_PORT_80_TCP_ADDR"];
        check(&links, &[]);
        check(&["ROWLOCK_PORT"], &[("ROWLOCK_PORT", None)]);
        check(&["ROWLOCK_B_SERVICE_HOST", "ROWLOCK_B_PORT", "ROWLOCK_PORT"], &[("ROWLOCK_PORT", None)]);
    }
}
