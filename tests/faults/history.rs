//! What clients sent and what they received. The checker compares it with the file.

use std::{collections::HashMap, fmt::Write};

use rowlock::random::Random;
use serde::{Deserialize, Serialize};

/// The header of every run's file.
pub(crate) const HEADER: &str = "timestamp,replica,token,key,data";
/// The data of a foreign writer's lines begins with this.
pub(crate) const FOREIGN: &str = "foreign-";

/// One run.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct History {
    pub(crate) seed: u64,
    pub(crate) ops: Vec<Op>,
    pub(crate) snapshots: Vec<Snapshot>,
    pub(crate) holds: Vec<ForeignHold>,
    /// Reads at an acknowledged offset that returned another row.
    pub(crate) wrong_reads: Vec<String>,
    /// The data of rows that do not follow from seed and number: another program has sent them.
    #[serde(default)]
    pub(crate) texts: HashMap<u64, String>,
}

impl History {
    /// The data of row `number`.
    pub(crate) fn row(&self, number: u64) -> String {
        self.texts.get(&number).cloned().unwrap_or_else(|| row(self.seed, number))
    }
}

/// An append of one row or of a batch, with all its attempts.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Op {
    /// The number of its first row; see `row`.
    pub(crate) first: u64,
    pub(crate) rows: u64,
    pub(crate) key: Option<String>,
    pub(crate) attempts: Vec<Attempt>,
}

/// One request. Times are in microseconds since the run began.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Attempt {
    pub(crate) slot: usize,
    pub(crate) sent_us: u64,
    pub(crate) ended_us: u64,
    pub(crate) result: AttemptResult,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum AttemptResult {
    Acknowledged(Acknowledgement),
    /// Status and code of an error with the outcome `not_written`.
    NotWritten(u16, String),
    /// Status and code of an error with the outcome `unknown`.
    Unknown(u16, String),
    /// The request was sent, but no complete response arrived.
    NoResponse(String),
    /// The connection failed before the request was sent.
    NotSent(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Acknowledgement {
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    pub(crate) token: u64,
    pub(crate) replica: String,
    pub(crate) replayed: bool,
}

/// The whole file as a replica served it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    pub(crate) sent_us: u64,
    pub(crate) slot: usize,
    pub(crate) text: String,
}

/// A period in which a foreign client held the lock by a plain `SET`, with the file's length at its begin and end.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ForeignHold {
    pub(crate) bytes_before: u64,
    pub(crate) bytes_after: u64,
    /// Whether the foreign client still had the lock before its time to live was over.
    pub(crate) still_held: bool,
}

/// What a client knows of an append after its last attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Acknowledged,
    NotWritten,
    Unknown,
}

impl Op {
    pub(crate) fn outcome(&self) -> Outcome {
        if self.acknowledgement().is_some() {
            return Outcome::Acknowledged;
        }
        let may_be_written =
            |attempt: &Attempt| matches!(attempt.result, AttemptResult::Unknown(..) | AttemptResult::NoResponse(_));
        if self.attempts.iter().any(may_be_written) { Outcome::Unknown } else { Outcome::NotWritten }
    }

    /// The first acknowledgement, and when it arrived.
    pub(crate) fn acknowledgement(&self) -> Option<(&Acknowledgement, u64)> {
        self.attempts.iter().find_map(|attempt| match &attempt.result {
            AttemptResult::Acknowledged(ack) => Some((ack, attempt.ended_us)),
            _ => None,
        })
    }

    pub(crate) fn first_sent_us(&self) -> u64 {
        self.attempts.first().map_or(u64::MAX, |attempt| attempt.sent_us)
    }
}

/// The data of row `number`, which the checker computes again: of many lengths, with all characters that need quotes.
pub(crate) fn row(seed: u64, number: u64) -> String {
    let mut random = Random(seed ^ number.wrapping_mul(0xd134_2543_de82_ef95));
    let bytes = if random.chance(3) { random.below(3000) } else { random.below(120) };
    let mut row = format!("{seed}-{number}:");
    while row.len() < bytes {
        let part = ["\",\"", "\r\n", "å", ",", "\n", "plain"][random.below(6)];
        write!(row, "{part}{}", random.below(1000)).expect("a string can be written");
    }
    row
}

/// The number that a row's data begins with.
pub(crate) fn number_of(seed: u64, data: &str) -> Option<u64> {
    let (seed_text, rest) = data.split_once('-')?;
    (seed_text.parse() == Ok(seed)).then_some(())?;
    rest.split_once(':')?.0.parse().ok()
}
