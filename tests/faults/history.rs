//! What was asked of the replicas, and what they answered: all that the checker knows beside the file.

use std::fmt::Write;

use rowlock::random::Random;
use serde::{Deserialize, Serialize};

/// The header of every run's file.
pub(crate) const HEADER: &str = "timestamp,replica,token,key,data";
/// What every line of a foreign writer begins its data with.
pub(crate) const FOREIGN: &str = "foreign-";

/// One run.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct History {
    pub(crate) seed: u64,
    pub(crate) ops: Vec<Op>,
    pub(crate) snapshots: Vec<Snapshot>,
    pub(crate) holds: Vec<Hold>,
    /// A row that was read at the offset of its answer, and was another one.
    pub(crate) misread: Vec<String>,
}

/// One row, or a batch of them.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Op {
    /// The number of its first row; see `row`.
    pub(crate) first: u64,
    pub(crate) rows: u64,
    pub(crate) key: Option<String>,
    pub(crate) attempts: Vec<Attempt>,
}

/// One request, in microseconds since the run began.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Attempt {
    pub(crate) place: usize,
    pub(crate) sent_us: u64,
    pub(crate) ended_us: u64,
    pub(crate) answer: Answer,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    Acked(Acked),
    /// It says that nothing was written.
    NotWritten(u16, String),
    /// It says that it does not know.
    Unknown(u16, String),
    /// None came.
    Lost(String),
    /// No connection was made.
    NotSent(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Acked {
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    pub(crate) token: u64,
    pub(crate) replica: String,
    pub(crate) replayed: bool,
}

/// The file as a replica served it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    pub(crate) sent_us: u64,
    pub(crate) place: usize,
    pub(crate) text: String,
}

/// How long somebody else held the lock by a plain `SET`, and how long the file was when it began and ended.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hold {
    pub(crate) bytes_before: u64,
    pub(crate) bytes_after: u64,
    /// Whether the lock was still the foreigner's when its own time had not run out yet.
    pub(crate) kept: bool,
}

/// What is known of an op in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    Acked,
    NotWritten,
    Unknown,
}

impl Op {
    pub(crate) fn known(&self) -> Known {
        if self.acked().is_some() {
            return Known::Acked;
        }
        let in_doubt = |attempt: &Attempt| matches!(attempt.answer, Answer::Unknown(..) | Answer::Lost(_));
        if self.attempts.iter().any(in_doubt) { Known::Unknown } else { Known::NotWritten }
    }

    /// The first answer that says it is written, and when it came.
    pub(crate) fn acked(&self) -> Option<(&Acked, u64)> {
        self.attempts.iter().find_map(|attempt| match &attempt.answer {
            Answer::Acked(acked) => Some((acked, attempt.ended_us)),
            _ => None,
        })
    }

    pub(crate) fn first_sent_us(&self) -> u64 {
        self.attempts.first().map_or(u64::MAX, |attempt| attempt.sent_us)
    }
}

/// The data of row `number` of a run: of many lengths, with all that needs quoting, and made again by the checker.
pub(crate) fn row(seed: u64, number: u64) -> String {
    let mut random = Random(seed ^ number.wrapping_mul(0xd134_2543_de82_ef95));
    let bytes = if random.chance(3) { random.below(3000) } else { random.below(120) };
    let mut row = format!("{seed}-{number}:");
    while row.len() < bytes {
        let awkward = ["\",\"", "\r\n", "å", ",", "\n", "plain"][random.below(6)];
        write!(row, "{awkward}{}", random.below(1000)).expect("memory takes it");
    }
    row
}

/// The number that a row claims to have.
pub(crate) fn number_of(seed: u64, data: &str) -> Option<u64> {
    let (claimed, rest) = data.split_once('-')?;
    (claimed.parse() == Ok(seed)).then_some(())?;
    rest.split_once(':')?.0.parse().ok()
}
