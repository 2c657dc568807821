//! The report as text for a terminal.

use std::fmt::{self, Write};

use indicatif::{HumanBytes, HumanCount};

use crate::load::{
    engine::RETRY_FOR,
    report::{Answers, Latency, Mode, Report, Verification},
    verify::Fault,
};

/// The widest bar.
const BAR_CHARS: u64 = 40;

/// Milliseconds with three or four digits.
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
    /// Text for a terminal of 100 columns.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_head(f)?;
        self.write_requests(f)?;
        self.write_latency(f)?;
        self.write_histogram(f)?;
        self.write_answers(f)?;
        self.write_generator(f)?;
        match &self.verification {
            Some(verification) => write_verification(f, verification),
            None if self.verify_requested => f.write_str("\nVERIFY: not done, because the run was aborted\n"),
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
        writeln!(f, "  {mode}, {concurrency} connections, {rows} of {row_bytes} bytes per request{keys}")?;
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
                format!("{} of them found their rows already written", count(requests.replayed))
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
                "  {backlog} were due but not sent: all {concurrency} connections were busy. The real latency is worse than shown."
            )?;
        }
        if requests.not_written + requests.unknown > 0 && !self.interrupted && self.gave_up.is_none() {
            writeln!(f, "  Retries end after {} s.", RETRY_FOR.as_secs())?;
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
                line(f, "from when due", &self.latency, self.requests.acknowledged)?;
                line(f, "from when sent", from_send, self.requests.acknowledged)?;
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
            writeln!(f, "{rows:.1} rows per sync ({} holds of the lock)", count(self.syncs))?;
        }
        writeln!(f, "{:.2} cores used by this load test", self.generator.cores)?;
        if self.generator.is_the_limit {
            writeln!(
                f,
                "  THE LOAD TEST WAS THE LIMIT: its one thread was always busy. Run several at the same time."
            )?;
        }
        Ok(())
    }
}

fn write_verification(f: &mut fmt::Formatter<'_>, verification: &Verification) -> fmt::Result {
    let word = if verification.pass { "PASS" } else { "FAIL" };
    writeln!(f, "\nVERIFY {}: {word}", verification.source)?;
    if let Some(error) = &verification.error {
        writeln!(f, "  the CSV could not be read: {error}")?;
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
        let flag = if finding.is_some() { "  <-- FAIL" } else { "" };
        writeln!(f, "  {:<24}{:>14}{flag}", fault.name(), count(finding.map_or(0, |finding| finding.count)))?;
        for sample in finding.iter().flat_map(|finding| &finding.samples) {
            writeln!(f, "      {sample}")?;
        }
    }
    writeln!(f, "  {:<24}{:>14}", "other rows", count(verdict.others))
}

/// Keeps the end of a name, which differs more often than its start.
fn shortened(name: &str, chars_max: usize) -> String {
    let chars = name.chars().count();
    if chars <= chars_max {
        return name.to_owned();
    }
    let end: String = name.chars().skip(chars - chars_max + 1).collect();
    format!("…{end}")
}

/// Ranges that cover all values, six per decade.
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
        text.write_char(rest).expect("writing to memory cannot fail");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_cover_all_values_and_no_others() {
        assert_eq!(bars(12, 21), [(10, 15), (15, 20), (20, 30)]);
        assert_eq!(bars(1, 1), [(1, 10)]);
        let all = bars(1, 3_600_000_000);
        assert!(all.windows(2).all(|pair| pair[0].1 == pair[1].0) && all[all.len() - 1].1 > 3_600_000_000);
        assert_eq!((bar(0), bar(8), bar(11)), (String::new(), "█".into(), "█▍".into()));
    }

    #[test]
    fn milliseconds_have_three_or_four_digits() {
        assert_eq!([123, 12_345, 123_456, 1_234_567].map(ms_text), ["0.123", "12.35", "123.5", "1235"]);
    }
}
