//! The report of a run.

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::load::{
    engine::{Engine, Phase},
    plan::{Amount, Plan},
    tally::{Replica, Tally, Timeline},
    verify::Verdict,
};

/// Above this share of its one core, the load test itself may be the limit.
const BUSY_CORES: f64 = 0.9;

/// How requests are paced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Each connection waits for an answer before the next request.
    Closed,
    /// At a fixed rate.
    Open,
}

/// The report of a run; `--json` prints it as JSON.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The run's name, in each of its rows.
    pub run: String,
    /// The seed of the row data.
    pub seed: u64,
    /// The URLs.
    pub targets: Vec<String>,
    /// How requests were paced.
    pub mode: Mode,
    /// Concurrent requests.
    pub concurrency: usize,
    /// The rate of an open loop, in requests per second.
    pub rate_per_s: Option<f64>,
    /// Bytes of data in a row.
    pub row_bytes: usize,
    /// Rows per request.
    pub rows_each: u64,
    /// Whether requests had keys.
    pub keys: bool,
    /// From the first request to the last answer.
    pub elapsed_s: f64,
    /// Whether it was interrupted.
    pub interrupted: bool,
    /// Why it gave up, if it did.
    pub gave_up: Option<String>,
    /// Requests by outcome.
    pub requests: Requests,
    /// Of acknowledged requests; in an open loop, from when they were due.
    pub latency: Latency,
    /// In an open loop: from when they were sent.
    pub latency_from_send: Option<Latency>,
    /// The share of each replica.
    pub replicas: Vec<Share>,
    /// Attempts by answer.
    pub answers: Vec<Answers>,
    /// Jain's index of the replicas' shares; `None` for a single replica.
    pub fairness: Option<f64>,
    /// Different tokens in the answers: each is one hold of the lock.
    pub syncs: u64,
    /// Acknowledged rows per token.
    pub rows_per_sync: Option<f64>,
    /// The processor time of the load test itself.
    pub generator: Generator,
    /// The verification of the CSV, if it was requested and the run was not aborted.
    pub verification: Option<Verification>,
    #[serde(skip)]
    pub(super) latencies: Latencies,
    #[serde(skip)]
    pub(super) verify_requested: bool,
}

/// Requests by outcome.
#[derive(Debug, Serialize)]
pub struct Requests {
    /// Requests that were due.
    pub offered: u64,
    /// Requests that were started.
    pub sent: u64,
    /// Acknowledged as durable.
    pub acknowledged: u64,
    /// Certainly not written.
    pub not_written: u64,
    /// Perhaps written.
    pub unknown: u64,
    /// Retries.
    pub repeats: u64,
    /// Acknowledged by a retry whose rows an earlier attempt had written.
    pub replayed: u64,
    /// Due per second.
    pub offered_per_s: f64,
    /// Started per second.
    pub sent_per_s: f64,
    /// Acknowledged per second.
    pub acknowledged_per_s: f64,
    /// Acknowledged rows per second.
    pub acknowledged_rows_per_s: f64,
}

impl Requests {
    fn of(plan: &Plan, tally: &Tally, sent: u64, elapsed_s: f64) -> Self {
        let offered = match (plan.rate, plan.amount) {
            (None, _) => sent,
            (Some(rate), amount) => {
                let all = match amount {
                    Amount::Requests(requests) => requests,
                    Amount::Duration(duration) => (duration.as_secs_f64() * rate).ceil() as u64,
                };
                all.min((elapsed_s * rate) as u64 + 1).max(sent)
            }
        };
        let per_s = |number: u64| number as f64 / elapsed_s;
        Self {
            offered,
            sent,
            acknowledged: tally.acknowledged,
            not_written: tally.not_written,
            // Requests without an answer at an abort are unknown as well.
            unknown: sent - tally.acknowledged - tally.not_written,
            repeats: tally.attempts.saturating_sub(sent),
            replayed: tally.replayed,
            offered_per_s: per_s(offered),
            sent_per_s: per_s(sent),
            acknowledged_per_s: per_s(tally.acknowledged),
            acknowledged_rows_per_s: per_s(tally.acknowledged * plan.rows_each()),
        }
    }
}

/// Quantiles of latency.
#[derive(Debug, Serialize)]
pub struct Latency {
    /// The median.
    pub p50_ms: f64,
    /// The 90th percentile.
    pub p90_ms: f64,
    /// The 99th percentile.
    pub p99_ms: f64,
    /// The 99.9th percentile.
    pub p99_9_ms: f64,
    /// The maximum.
    pub max_ms: f64,
    /// The mean.
    pub mean_ms: f64,
}

/// The share of one replica.
#[derive(Debug, Serialize)]
pub struct Share {
    /// Its URL.
    pub target: String,
    /// Its name in answers; `None` without an acknowledgement.
    pub replica: Option<String>,
    /// Acknowledged requests.
    pub acknowledged: u64,
    /// Their latency.
    pub latency: Latency,
}

/// Attempts with the same answer.
#[derive(Debug, Serialize)]
pub struct Answers {
    /// The status; 0 without an answer.
    pub status: u16,
    /// The code of a refusal, or why there was no answer.
    pub code: String,
    /// How many.
    pub count: u64,
}

/// The cost of the load test itself.
#[derive(Debug, Serialize)]
pub struct Generator {
    /// Processor time.
    pub cpu_s: f64,
    /// Processor time divided by elapsed time.
    pub cores: f64,
    /// Whether its one thread was nearly always busy: then the service may be faster than measured.
    pub is_the_limit: bool,
}

/// The verification of the CSV.
#[derive(Debug, Serialize)]
pub struct Verification {
    /// Where it was read.
    pub source: String,
    /// Whether there is no fault.
    pub pass: bool,
    /// Why it could not be read.
    pub error: Option<String>,
    /// What was found in it.
    #[serde(flatten)]
    pub verdict: Option<Verdict>,
}

impl Verification {
    pub(super) fn new(source: String, verdict: Result<Verdict, String>) -> Self {
        let (verdict, error) = match verdict {
            Ok(verdict) => (Some(verdict), None),
            Err(error) => (None, Some(error)),
        };
        Self { source, pass: verdict.as_ref().is_some_and(|verdict| verdict.pass), error, verdict }
    }
}

/// Latencies for histogram and plot.
#[derive(Debug)]
pub(super) struct Latencies {
    pub(super) all: Histogram<u64>,
    pub(super) from_send: Option<Histogram<u64>>,
    pub(super) replicas: Vec<(String, Histogram<u64>)>,
    pub(super) timeline: Option<Timeline>,
}

impl Report {
    pub(super) fn new(plan: &Plan, run: &str, engine: &Engine, cpu: Duration) -> Self {
        let elapsed_s = engine.elapsed().as_secs_f64().max(1e-9);
        let mut tally = engine.tally.borrow_mut();
        let sent = engine.started();
        let requests = Requests::of(plan, &tally, sent, elapsed_s);
        let acknowledged_rows = tally.acknowledged * plan.rows_each();
        let syncs = tally.tokens.count();
        let cores = cpu.as_secs_f64() / elapsed_s;
        let replicas: Vec<Replica> = std::mem::take(&mut tally.replicas);
        let several = (replicas.len() > 1).then(|| jain(replicas.iter().map(|replica| replica.acknowledged)));
        let gave_up = engine.gave_up.borrow().clone();
        Self {
            run: run.to_owned(),
            seed: plan.seed,
            targets: plan.targets.iter().map(ToString::to_string).collect(),
            mode: if plan.rate.is_some() { Mode::Open } else { Mode::Closed },
            concurrency: plan.concurrency,
            rate_per_s: plan.rate,
            row_bytes: plan.row_bytes,
            rows_each: plan.rows_each(),
            keys: plan.keys,
            elapsed_s,
            interrupted: gave_up.is_none() && engine.phase() > Phase::Running,
            gave_up,
            requests,
            latency: Latency::of(&tally.latency),
            latency_from_send: tally.from_send.as_ref().map(Latency::of),
            replicas: replicas.iter().map(|replica| Share::of(replica, plan)).collect(),
            answers: answers(&tally.answers),
            fairness: several,
            syncs,
            rows_per_sync: (syncs > 0).then(|| acknowledged_rows as f64 / syncs as f64),
            generator: Generator { cpu_s: cpu.as_secs_f64(), cores, is_the_limit: cores > BUSY_CORES },
            verification: None,
            latencies: Latencies {
                all: tally.latency.clone(),
                from_send: tally.from_send.clone(),
                replicas: replicas.into_iter().filter_map(|r| Some((r.name?.into(), r.latency))).collect(),
                timeline: tally.timeline.take(),
            },
            verify_requested: plan.verify.is_some(),
        }
    }

    /// Whether the run completed with acknowledged requests, and the verification passed if it was requested.
    pub fn is_good(&self) -> bool {
        let is_verified = self.verification.as_ref().map_or(!self.verify_requested, |verification| verification.pass);
        is_verified && self.gave_up.is_none() && self.requests.acknowledged > 0
    }
}

fn answers(counts: &BTreeMap<(u16, Cow<'static, str>), u64>) -> Vec<Answers> {
    counts.iter().map(|((status, code), &count)| Answers { status: *status, code: code.to_string(), count }).collect()
}

/// Jain's index of fairness: 1 if all shares are equal, 1/n if one replica has all. Jain, Chiu and Hawe, "A quantitative measure of fairness", 1984.
fn jain(shares: impl Iterator<Item = u64>) -> f64 {
    let (count, sum, squares) = shares
        .map(|share| share as f64)
        .fold((0.0, 0.0, 0.0), |(count, sum, squares), share| (count + 1.0, sum + share, squares + share * share));
    if squares == 0.0 { 1.0 } else { sum * sum / (count * squares) }
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Self {
        let ms = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        Self {
            p50_ms: ms(0.5),
            p90_ms: ms(0.9),
            p99_ms: ms(0.99),
            p99_9_ms: ms(0.999),
            max_ms: histogram.max() as f64 / 1000.0,
            mean_ms: histogram.mean() / 1000.0,
        }
    }
}

impl Share {
    fn of(replica: &Replica, plan: &Plan) -> Self {
        Self {
            target: plan.targets[replica.target].to_string(),
            replica: replica.name.as_deref().map(str::to_owned),
            acknowledged: replica.acknowledged,
            latency: Latency::of(&replica.latency),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jains_index_is_one_for_equal_shares() {
        assert_eq!(jain([5, 5, 5].into_iter()), 1.0);
        assert_eq!(jain([9, 0, 0].into_iter()), 1.0 / 3.0);
        assert_eq!(jain([0, 0].into_iter()), 1.0);
    }
}
