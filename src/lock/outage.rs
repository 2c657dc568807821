//! Why the lock's backend cannot be used: it does not answer, or it answers and refuses.

use std::time::Duration;

use redis::{ErrorKind, RedisError, ServerErrorKind};

/// How the last calls to the backend failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It does not answer.
    Unreachable,
    /// It answers and refuses, for a reason that may pass by itself: a failover, a dataset that is loaded, no memory left.
    RejectedForNow,
    /// It answers and refuses until somebody changes a setting: the password, the ACL, the address.
    Rejected,
}

/// An outage of the backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outage {
    /// How the last call failed.
    pub cause: Cause,
    /// For how long all calls have failed.
    pub lasted: Duration,
    /// The backend by name and address, without credentials.
    pub backend: String,
    /// What the backend answered, or why it did not.
    pub reason: String,
}

impl Cause {
    /// Whether the backend answers, but refuses.
    pub(super) fn is_rejection(self) -> bool {
        self != Self::Unreachable
    }
}

impl Outage {
    /// Whether the backend answers, but refuses.
    pub fn is_rejection(&self) -> bool {
        self.cause.is_rejection()
    }
}

impl std::fmt::Display for Outage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verb = if self.is_rejection() { "rejects this replica" } else { "cannot be reached" };
        write!(f, "{} {verb}: {}", self.backend, self.reason)
    }
}

/// Texts of `ERR` answers, without a code of their own, that a setting causes.
const LASTING_TEXTS: [&str; 6] = [
    "unknown command",
    // Of an ACL, by a script in Redis 7.0.
    "can't run this command",
    "DB index is out of range",
    "without any password configured",
    "cluster support disabled",
    "refused to authenticate",
];

/// What a cluster's client says of nodes that refuse it.
const CLUSTER_TEXTS: [&str; 6] =
    ["AuthenticationFailed", "NOAUTH", "NoPerm", "DENIED", "Incompatible type", "cluster support disabled"];

/// What an error of the client says about the backend.
pub(super) fn cause_of(e: &RedisError) -> Cause {
    match e.kind() {
        ErrorKind::AuthenticationFailed
        // Not Redis's protocol.
        | ErrorKind::Parse
        | ErrorKind::UnexpectedReturnType
        | ErrorKind::InvalidClientConfig
        | ErrorKind::RESP3NotSupported
        | ErrorKind::Server(ServerErrorKind::NoPerm | ServerErrorKind::Moved | ServerErrorKind::CrossSlot) => {
            Cause::Rejected
        }
        ErrorKind::Server(ServerErrorKind::ResponseError) => {
            let text = e.to_string();
            if LASTING_TEXTS.iter().any(|lasting| text.contains(lasting)) { Cause::Rejected } else { Cause::RejectedForNow }
        }
        ErrorKind::Server(_)
        | ErrorKind::MasterNameNotFoundBySentinel
        | ErrorKind::NoValidReplicasFoundBySentinel => Cause::RejectedForNow,
        ErrorKind::Extension => match e.code() {
            // DENIED: protected mode.
            Some("NOAUTH" | "WRONGPASS" | "DENIED") => Cause::Rejected,
            _ => Cause::RejectedForNow,
        },
        // A cluster's client tells only in words why it has no connection.
        ErrorKind::Io if e.detail().is_some_and(|text| CLUSTER_TEXTS.iter().any(|lasting| text.contains(lasting))) => {
            Cause::Rejected
        }
        _ => Cause::Unreachable,
    }
}

/// What Redis answered, in its own words, on one line.
pub(super) fn reason_of(e: &RedisError) -> String {
    let text = match (e.kind(), e.code(), e.detail()) {
        (ErrorKind::Parse, ..) => "the answer is not Redis's protocol".to_owned(),
        (ErrorKind::AuthenticationFailed, ..) => "it refuses the user name or password".to_owned(),
        (_, Some(code), Some(detail)) => format!("{code} {detail}"),
        _ => e.to_string(),
    };
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_is_told_from_silence_and_setting_from_state() {
        let io = RedisError::from(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
        assert_eq!(cause_of(&io), Cause::Unreachable);
        let extension = |code: &str| redis::make_extension_error(code.to_owned(), Some("said".to_owned()));
        for code in ["NOAUTH", "WRONGPASS", "DENIED"] {
            assert_eq!(cause_of(&extension(code)), Cause::Rejected, "{code}");
        }
        for code in ["OOM", "MISCONF", "NOREPLICAS", "BUSY"] {
            assert_eq!(cause_of(&extension(code)), Cause::RejectedForNow, "{code}");
            assert_eq!(reason_of(&extension(code)), format!("{code} said"));
        }
        for kind in [ServerErrorKind::BusyLoading, ServerErrorKind::ReadOnly, ServerErrorKind::ClusterDown] {
            assert_eq!(cause_of(&(ErrorKind::Server(kind), "x").into()), Cause::RejectedForNow, "{kind:?}");
        }
        for kind in [ServerErrorKind::NoPerm, ServerErrorKind::Moved, ServerErrorKind::CrossSlot] {
            assert_eq!(cause_of(&(ErrorKind::Server(kind), "x").into()), Cause::Rejected, "{kind:?}");
        }
        let err = |detail: &str| (ServerErrorKind::ResponseError.into(), "x", detail.to_owned()).into();
        assert_eq!(cause_of(&err("max number of clients reached")), Cause::RejectedForNow);
        assert_eq!(cause_of(&err("unknown command 'EVALSHA', with args beginning with: ")), Cause::Rejected);
    }
}
