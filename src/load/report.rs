//! What a run has found, for people and for programs.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
    time::Duration,
};

use hdrhistogram::Histogram;
use indicatif::{HumanBytes, HumanCount};
use serde::Serialize;

use crate::load::{
    Amount, Fault, Plan,
    engine::{Engine, Phase, RETRY_FOR},
    tally::{Replica, Timeline},
    verify::Verdict,
};

/// A generator that is busier than this on its one core may be what was measured.
const BUSY: f64 = 0.9;
/// The widest bar.
const BAR_CHARS: u64 = 40;

/// How requests are paced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Each waits for the one before.
    Closed,
    /// At a rate.
    Open,
}

/// All of it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The run's mark, which each of its rows has.
    pub run: String,
    /// What its rows are filled from.
    pub seed: u64,
    /// Where requests went.
    pub targets: Vec<String>,
    /// How they were paced.
    pub mode: Mode,
    /// Under way at once.
    pub concurrency: usize,
    /// Asked for, in requests a second.
    pub rate_per_s: Option<f64>,
    /// In the data of a row.
    pub row_bytes: usize,
    /// In a request.
    pub rows_each: u64,
    /// Whether requests had keys.
    pub keys: bool,
    /// From the first request to the last answer.
    pub elapsed_s: f64,
    /// Whether it was ended before it was done.
    pub interrupted: bool,
    /// Why it gave up, if it did.
    pub gave_up: Option<String>,
    /// How many.
    pub requests: Requests,
    /// Of acknowledged requests, from the intended send time in an open loop.
    pub latency: Latency,
    /// In an open loop: from the moment that they were really sent.
    pub latency_from_send: Option<Latency>,
    /// What each replica acknowledged.
    pub replicas: Vec<Share>,
    /// Each attempt.
    pub answers: Vec<Answers>,
    /// Jain's index of what replicas acknowledged; none where there are not several.
    pub fairness: Option<f64>,
    /// Different tokens in the answers: each is one hold of the lock, and one sync.
    pub syncs: u64,
    /// Acknowledged rows for each of these.
    pub rows_per_sync: Option<f64>,
    /// The load test itself.
    pub generator: Generator,
    /// The file, if it was to be read back and nobody kept it from that.
    pub verification: Option<Verification>,
    #[serde(skip)]
    pub(super) latencies: Latencies,
    #[serde(skip)]
    verify_wanted: bool,
}

/// Requests, by what became of them.
#[derive(Debug, Serialize)]
pub struct Requests {
    /// Due.
    pub offered: u64,
    /// Sent at least once, or tried to be.
    pub sent: u64,
    /// Durable.
    pub acknowledged: u64,
    /// Certainly not written.
    pub not_written: u64,
    /// Perhaps written.
    pub unknown: u64,
    /// Sent again.
    pub repeats: u64,
    /// Acknowledged as having been written before, under their key.
    pub replayed: u64,
    /// Due, a second.
    pub offered_per_s: f64,
    /// Sent, a second.
    pub sent_per_s: f64,
    /// Durable, a second.
    pub acknowledged_per_s: f64,
    /// Rows in them, a second.
    pub acknowledged_rows_per_s: f64,
}

/// A distribution, in milliseconds.
#[derive(Debug, Serialize)]
pub struct Latency {
    /// Half of them took no longer.
    pub p50_ms: f64,
    /// 90 of 100.
    pub p90_ms: f64,
    /// 99 of 100.
    pub p99_ms: f64,
    /// 999 of 1000.
    pub p99_9_ms: f64,
    /// The longest.
    pub max_ms: f64,
    /// The mean.
    pub mean_ms: f64,
}

/// One replica's part.
#[derive(Debug, Serialize)]
pub struct Share {
    /// Through which address.
    pub target: String,
    /// As its answers name it; none if there were none.
    pub replica: Option<String>,
    /// Requests.
    pub acknowledged: u64,
    /// How long they took.
    pub latency: Latency,
}

/// Answers of one kind.
#[derive(Debug, Serialize)]
pub struct Answers {
    /// 0 where there was none.
    pub status: u16,
    /// The refusal's, or why there was no answer.
    pub code: String,
    /// How many.
    pub count: u64,
}

/// What the load test itself took.
#[derive(Debug, Serialize)]
pub struct Generator {
    /// Processor time.
    pub cpu_s: f64,
    /// That, as a part of the elapsed time on one core.
    pub cores: f64,
    /// Its one thread had hardly a pause: the service may be quicker than it looks.
    pub is_the_limit: bool,
}

/// What the file says.
#[derive(Debug, Serialize)]
pub struct Verification {
    /// Where it was read.
    pub source: String,
    /// All is as it must be.
    pub pass: bool,
    /// Why it could not be read.
    pub error: Option<String>,
    /// What stands in it.
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

/// What is drawn.
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
        let sent = engine.taken();
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
        // Those that were cut off in the middle are unknown, too.
        let unknown = sent - tally.acknowledged - tally.not_written;
        let acknowledged_rows = tally.acknowledged * plan.rows_each();
        let syncs = tally.tokens.count();
        let cores = cpu.as_secs_f64() / elapsed_s;
        let replicas: Vec<Replica> = std::mem::take(&mut tally.replicas);
        let several = (replicas.len() > 1).then(|| jain(replicas.iter().map(|replica| replica.acknowledged)));
        let gave_up = engine.hopeless.borrow().clone();
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
            requests: Requests {
                offered,
                sent,
                acknowledged: tally.acknowledged,
                not_written: tally.not_written,
                unknown,
                repeats: tally.attempts.saturating_sub(sent),
                replayed: tally.replayed,
                offered_per_s: offered as f64 / elapsed_s,
                sent_per_s: sent as f64 / elapsed_s,
                acknowledged_per_s: tally.acknowledged as f64 / elapsed_s,
                acknowledged_rows_per_s: acknowledged_rows as f64 / elapsed_s,
            },
            latency: Latency::of(&tally.latency),
            latency_from_send: tally.from_send.as_ref().map(Latency::of),
            replicas: replicas.iter().map(|replica| Share::of(replica, plan)).collect(),
            answers: answers(&tally.answers),
            fairness: several,
            syncs,
            rows_per_sync: (syncs > 0).then(|| acknowledged_rows as f64 / syncs as f64),
            generator: Generator { cpu_s: cpu.as_secs_f64(), cores, is_the_limit: cores > BUSY },
            verification: None,
            latencies: Latencies {
                all: tally.latency.clone(),
                from_send: tally.from_send.clone(),
                replicas: replicas.into_iter().filter_map(|r| Some((r.name?.into(), r.latency))).collect(),
                timeline: tally.timeline.take(),
            },
            verify_wanted: plan.verify.is_some(),
        }
    }

    /// Whether the run did what it was asked to, and the file holds what it must.
    pub fn is_good(&self) -> bool {
        let is_verified = self.verification.as_ref().map_or(!self.verify_wanted, |verification| verification.pass);
        is_verified && self.gave_up.is_none() && self.requests.acknowledged > 0
    }
}

fn answers(counts: &BTreeMap<(u16, std::borrow::Cow<'static, str>), u64>) -> Vec<Answers> {
    counts.iter().map(|((status, code), &count)| Answers { status: *status, code: code.to_string(), count }).collect()
}

/// 1 where all are equal, 1/n where one has all: Jain, Chiu and Hawe, "A quantitative measure of fairness", 1984.
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

/// To three or four digits.
pub(super) fn ms_text(us: u64) -> String {
    let ms = us as f64 / 1000.0;
    let places = if ms < 10.0 { 3 } else { usize::from(ms < 1000.0) + usize::from(ms < 100.0) };
    format!("{ms:.places$}")
}

fn count(number: u64) -> String {
    HumanCount(number).to_string()
}

fn per_s(rate: f64) -> String {
    format!("{}/s", if rate < 100.0 { format!("{rate:.1}") } else { count(rate.round() as u64) })
}

impl fmt::Display for Report {
    /// For a terminal of 100 columns.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_head(f)?;
        self.write_requests(f)?;
        self.write_latency(f)?;
        self.write_histogram(f)?;
        self.write_answers(f)?;
        self.write_generator(f)?;
        match &self.verification {
            Some(verification) => write_verification(f, verification),
            None if self.verify_wanted => f.write_str("\nVERIFY: not done, since the run was cut off\n"),
            None => Ok(()),
        }
    }
}

impl Report {
    fn write_head(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { run, seed, concurrency, row_bytes, rows_each, elapsed_s, .. } = self;
        let rows = if *rows_each == 1 { "1 row".to_owned() } else { format!("{} rows", count(*rows_each)) };
        let mode = match (self.mode, self.rate_per_s) {
            (Mode::Open, Some(rate)) => format!("open loop at {}", per_s(rate)),
            _ => "closed loop".to_owned(),
        };
        let keys = if self.keys { ", keys" } else { "" };
        writeln!(f, "run {run}, seed {seed}: {elapsed_s:.2} s")?;
        writeln!(f, "  {mode}, {concurrency} connections, {rows} of {row_bytes} bytes a request{keys}")?;
        for target in &self.targets {
            writeln!(f, "  {target}")?;
        }
        if let Some(reason) = &self.gave_up {
            writeln!(f, "  GAVE UP: {reason}")?;
        } else if self.interrupted {
            writeln!(f, "  interrupted")?;
        }
        Ok(())
    }

    fn write_requests(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let requests = &self.requests;
        let line = |f: &mut fmt::Formatter<'_>, name: &str, number: u64, behind: String| {
            let line = format!("{name:<14}{:>14}  {behind}", count(number));
            writeln!(f, "{}", line.trim_end())
        };
        writeln!(f, "\n{:<14}{:>14}", "", "requests")?;
        line(f, "offered", requests.offered, format!("{:>12}", per_s(requests.offered_per_s)))?;
        line(f, "sent", requests.sent, format!("{:>12}", per_s(requests.sent_per_s)))?;
        let bytes = HumanBytes((requests.acknowledged_rows_per_s * self.row_bytes as f64) as u64);
        let rows = format!("   {} rows/s, {bytes}/s of data", count(requests.acknowledged_rows_per_s.round() as u64));
        line(f, "acknowledged", requests.acknowledged, format!("{:>12}{rows}", per_s(requests.acknowledged_per_s)))?;
        for (name, number) in [("not written", requests.not_written), ("unknown", requests.unknown)] {
            line(f, name, number, String::new())?;
        }
        if requests.repeats > 0 {
            let replayed = if requests.replayed > 0 {
                format!("{} of them found their row written", count(requests.replayed))
            } else {
                String::new()
            };
            line(f, "repeats", requests.repeats, replayed)?;
        }
        let backlog = requests.offered - requests.sent;
        if backlog > self.concurrency as u64 && !self.interrupted && self.gave_up.is_none() {
            let (backlog, concurrency) = (count(backlog), self.concurrency);
            writeln!(
                f,
                "  {backlog} were due and never sent: all {concurrency} connections were busy. Latency is worse than shown."
            )?;
        }
        if requests.not_written + requests.unknown > 0 && !self.interrupted && self.gave_up.is_none() {
            let what = if self.keys { "What is not known" } else { "What may be repeated" };
            writeln!(f, "  {what} is given up after {} s.", RETRY_FOR.as_secs())?;
        }
        Ok(())
    }

    fn write_latency(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, name: &str, latency: &Latency, acknowledged: u64| {
            write!(f, "{name:<24}")?;
            for ms in [latency.p50_ms, latency.p90_ms, latency.p99_ms, latency.p99_9_ms, latency.max_ms] {
                write!(f, "{ms:>10.3}")?;
            }
            writeln!(f, "{:>14}", count(acknowledged))
        };
        let columns = ["p50", "p90", "p99", "p99.9", "max"];
        write!(f, "\n{:<24}", "latency in ms")?;
        columns.iter().try_for_each(|column| write!(f, "{column:>10}"))?;
        writeln!(f, "{:>14}", "acknowledged")?;
        match &self.latency_from_send {
            None => line(f, "all", &self.latency, self.requests.acknowledged)?,
            Some(from_send) => {
                line(f, "from when it was due", &self.latency, self.requests.acknowledged)?;
                line(f, "from when it was sent", from_send, self.requests.acknowledged)?;
            }
        }
        if self.replicas.len() > 1 {
            for share in &self.replicas {
                let name = share.replica.as_deref().unwrap_or(&share.target);
                line(f, &format!("  {}", shortened(name, 21)), &share.latency, share.acknowledged)?;
            }
        }
        Ok(())
    }

    fn write_histogram(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = &self.latencies.all;
        if all.is_empty() {
            return Ok(());
        }
        writeln!(f)?;
        let bars: Vec<_> = bars(all.min(), all.max())
            .into_iter()
            .map(|(from, to)| (from, to, all.count_between(from, to - 1)))
            .collect();
        let most = bars.iter().map(|bar| bar.2).max().unwrap_or(1);
        for (from, to, number) in bars {
            let eighths = (number * BAR_CHARS * 8).div_ceil(most.max(1));
            let share = 100.0 * number as f64 / all.len() as f64;
            let range = format!("{} to {} ms", short_ms(from), short_ms(to));
            let line = format!("{range:>18}  {:<40}  {:>12}  {share:>5.1} %", bar(eighths), count(number));
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }

    fn write_answers(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{:<44}{:>14}", "answers", "attempts")?;
        for Answers { status, code, count: number } in &self.answers {
            let status = if *status == 0 { "none".to_owned() } else { status.to_string() };
            writeln!(f, "  {:<42}{:>14}", format!("{status} {code}"), count(*number))?;
        }
        Ok(())
    }

    fn write_generator(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f)?;
        if let Some(fairness) = self.fairness {
            writeln!(f, "{fairness:.4} fairness between replicas (Jain's index: 1 is equal)")?;
        }
        if let Some(rows) = self.rows_per_sync {
            writeln!(f, "{rows:.1} rows a sync ({} holds of the lock)", count(self.syncs))?;
        }
        writeln!(f, "{:.2} cores taken by this load test", self.generator.cores)?;
        if self.generator.is_the_limit {
            writeln!(f, "  THE LOAD TEST WAS ITSELF THE LIMIT: its one thread was always busy. Run several at once.")?;
        }
        Ok(())
    }
}

fn write_verification(f: &mut fmt::Formatter<'_>, verification: &Verification) -> fmt::Result {
    let word = if verification.pass { "PASS" } else { "FAIL" };
    writeln!(f, "\nVERIFY {}: {word}", verification.source)?;
    if let Some(error) = &verification.error {
        writeln!(f, "  it could not be read: {error}")?;
    }
    let Some(verdict) = &verification.verdict else { return Ok(()) };
    let mut line = |name: &str, number: u64| writeln!(f, "  {name:<24}{:>14}", count(number));
    line("attempted", verdict.attempted)?;
    line("acknowledged", verdict.acknowledged)?;
    line("present", verdict.present)?;
    line("unknown, present", verdict.unknown_present)?;
    line("unknown, absent", verdict.unknown_absent)?;
    for fault in Fault::ALL {
        let finding = verdict.findings.iter().find(|finding| finding.fault == fault);
        let mark = if finding.is_some() { "  <-- FAIL" } else { "" };
        writeln!(f, "  {:<24}{:>14}{mark}", fault.name(), count(finding.map_or(0, |finding| finding.count)))?;
        for sample in finding.iter().flat_map(|finding| &finding.samples) {
            writeln!(f, "      {sample}")?;
        }
    }
    writeln!(f, "  {:<24}{:>14}", "rows of others", count(verdict.others))
}

/// The end of a name tells more than its begin.
fn shortened(name: &str, chars_max: usize) -> String {
    let chars = name.chars().count();
    if chars <= chars_max {
        return name.to_owned();
    }
    let end: String = name.chars().skip(chars - chars_max + 1).collect();
    format!("…{end}")
}

/// Ranges that hold all values, six to a decade.
fn bars(min: u64, max: u64) -> Vec<(u64, u64)> {
    let steps = (0..12).flat_map(|decade| [10, 15, 20, 30, 50, 70].map(|step| step * 10_u64.pow(decade)));
    let edges: Vec<u64> = std::iter::once(1).chain(steps).collect();
    edges.windows(2).map(|edge| (edge[0], edge[1])).filter(|&(from, to)| to > min && from <= max).collect()
}

fn short_ms(us: u64) -> String {
    let ms = us as f64 / 1000.0;
    format!("{ms}")
}

fn bar(eighths: u64) -> String {
    let mut text = "█".repeat((eighths / 8) as usize);
    let rest = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'][(eighths % 8) as usize];
    if rest != ' ' {
        text.write_char(rest).expect("memory takes it");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jains_index_is_one_for_equals_and_the_less_the_fewer_have_all() {
        assert_eq!(jain([5, 5, 5].into_iter()), 1.0);
        assert_eq!(jain([9, 0, 0].into_iter()), 1.0 / 3.0);
        assert_eq!(jain([0, 0].into_iter()), 1.0);
    }

    #[test]
    fn bars_hold_all_values_and_no_others() {
        assert_eq!(bars(12, 21), [(10, 15), (15, 20), (20, 30)]);
        assert_eq!(bars(1, 1), [(1, 10)]);
        let all = bars(1, 3_600_000_000);
        assert!(all.windows(2).all(|pair| pair[0].1 == pair[1].0) && all[all.len() - 1].1 > 3_600_000_000);
        assert_eq!((bar(0), bar(8), bar(11)), (String::new(), "█".into(), "█▍".into()));
    }

    #[test]
    fn milliseconds_have_as_many_digits_as_help() {
        assert_eq!([123, 12_345, 123_456, 1_234_567].map(ms_text), ["0.123", "12.35", "123.5", "1235"]);
    }
}
