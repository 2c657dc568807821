//! `rowlock load`: a load test that verifies the CSV.

use std::{
    num::NonZeroU64,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::cli::{Exit, FAILED, WRONG_USAGE, append::parse_sleep, output};
use crate::{
    client::{Connector, Target, Trust},
    config::{parse_run_time, parse_whole},
    load::{self, Amount, Plan, ROW_BYTES_MIN, Report, Sleep, VerifyFrom},
};

/// The default of `ROWLOCK_BATCH_LIMIT`.
const REQUEST_BYTES_MAX: u64 = 64 << 20;
const ROW_BYTES_MAX: u64 = 1 << 20;

pub(super) const EXAMPLES: &str = "\
Latency is measured for acknowledged requests, from the first attempt to the 201, with retries and waits. With --rate, it is
measured from the time when a request was due, so that a stalled service does not look fast because the load slowed down
(coordinated omission); latency from the time when it was sent is reported as well.

A refused request is retried at the next --url, after its Retry-After, if its rows are certainly not written. With --keys,
requests with an unknown outcome are retried as well. Retries end after 60 s.

--verify and --verify-http read the CSV back. The exit code is 1 unless each acknowledged row is there exactly once and complete,
no refused or never sent row is there, no line is torn, and the order of rows and tokens is right. Other rows may be in the file.
An interrupt (Ctrl-C) ends the run with a report once all requests are answered; a second one ends it at once.

Exit codes: 0 passed; 1 failed; 2 wrong usage; 73 passed, but standard output did not take the result.

Examples:
  rowlock load --url http://127.0.0.1:8080 --requests 100000 --verify rows.csv
  rowlock load --url http://a:8080 --url http://b:8080 --duration 30s --concurrency 256 --verify-http
  rowlock load --url http://127.0.0.1:8080 --duration 1m --rate 5000 --plot latency.svg     latency at a fixed rate
  rowlock load --url http://127.0.0.1:8080 --requests 1000 --batch 1000                     a million rows in CSV batches
  rowlock load --url http://a:8080 --url http://b:8080 --duration 1m --keys --verify rows.csv   for tests that kill replicas
  rowlock load --url http://127.0.0.1:8080 --requests 500 --sleep 0.1 --sleep-every 50 --skip-release-every 200";

/// The arguments of `rowlock load`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// URL of a replica or load balancer; may be repeated. Connections are distributed round robin.
    #[arg(long = "url", value_name = "URL", required = true, value_parser = Target::parse)]
    urls: Vec<Target>,
    /// Number of requests to send. Either this or --duration is required.
    #[arg(long, value_name = "N", value_parser = parse_requests)]
    requests: Option<u64>,
    /// How long to send requests, such as 30s.
    #[arg(long, value_name = "D", value_parser = parse_run_time)]
    duration: Option<Duration>,
    /// Concurrent requests, each on its own connection.
    #[arg(long, value_name = "C", default_value = "64", value_parser = parse_concurrency)]
    concurrency: u64,
    /// Requests per second, sent without waiting for earlier answers. Unset: each connection sends its next request after an answer.
    #[arg(long, value_name = "R", value_parser = parse_rate)]
    rate: Option<f64>,
    /// Bytes of data in a row; one row in eight needs CSV quotes.
    #[arg(long, value_name = "B", default_value = "100", value_parser = parse_row_bytes)]
    row_bytes: u64,
    /// Rows per request, sent as CSV to /append/batch. Unset: one row per request, sent as JSON to /append.
    #[arg(long, value_name = "B", value_parser = parse_batch)]
    batch: Option<u64>,
    /// Seconds to hold the lock before the write, in every Nth request (--sleep-every).
    #[arg(long, value_name = "S", value_parser = parse_sleep)]
    sleep: Option<Duration>,
    /// Every Nth request sleeps (--sleep).
    #[arg(long, value_name = "N", value_parser = parse_every)]
    sleep_every: Option<NonZeroU64>,
    /// In every Nth request, leave the lock to expire, as if the replica had crashed.
    #[arg(long, value_name = "N", value_parser = parse_every)]
    skip_release_every: Option<NonZeroU64>,
    /// Send an Idempotency-Key with each request, and retry requests with an unknown outcome.
    #[arg(long)]
    keys: bool,
    /// Seed of the row data; random unless given.
    #[arg(long, value_name = "S", value_parser = parse_seed)]
    seed: Option<u64>,
    /// API token with the role `append`, and `read` for --verify-http. Prefer the variable: other users can see a command line.
    #[arg(long, value_name = "T", env = "ROWLOCK_LOAD_TOKEN", hide_env_values = true)]
    token: Option<Token>,
    /// For https: PEM file of the certificate authorities that sign the replicas' certificates; the system's unless given.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Read the CSV back from this file, and compare it with what was sent.
    #[arg(long, value_name = "FILE")]
    verify: Option<PathBuf>,
    /// Read the CSV back from /rows.csv of the first --url that answers.
    #[arg(long)]
    verify_http: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    /// Write a plot of latency over time and of its distribution to this file.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

/// Its `Debug` shows nothing of it.
#[derive(Clone)]
struct Token(String);

impl From<String> for Token {
    fn from(token: String) -> Self {
        Self(token)
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(hidden)")
    }
}

pub(super) fn run(args: Args) -> Result<(), Exit> {
    let plan = plan(&args)?;
    let trust = args.ca.clone().map_or(Trust::System, Trust::File);
    let connector = Connector::new(&trust).map_err(|e| Exit::new(WRONG_USAGE, format_args!("--ca: {e}")))?;
    // Created before the run, so that a long run does not end with a file that cannot be written.
    let plot = args.plot.as_deref().map(create).transpose()?;
    let report = load::run(&plan, connector).map_err(|e| Exit::new(FAILED, e))?;
    if let Some(mut file) = plot {
        std::io::Write::write_all(&mut file, report.to_svg().as_bytes())
            .map_err(|e| Exit::new(FAILED, format_args!("--plot: {e}")))?;
    }
    let printed = print(&report, args.json);
    Exit::verdict(report.is_good(), printed)
}

fn create(path: &Path) -> Result<std::fs::File, Exit> {
    std::fs::File::create(path).map_err(|e| Exit::new(WRONG_USAGE, format_args!("--plot: {}: {e}", path.display())))
}

fn print(report: &Report, json: bool) -> Result<(), Exit> {
    let done = if report.is_good() { "the load test passed" } else { "the load test failed" };
    if json {
        output::print(serde_json::to_string(report).map_err(|e| Exit::new(FAILED, e))?, done)
    } else {
        output::write(report, done)
    }
}

fn plan(args: &Args) -> Result<Plan, Exit> {
    let wrong = |message: &str| Err(Exit::new(WRONG_USAGE, message));
    let amount = match (args.requests, args.duration) {
        (Some(requests), None) => Amount::Requests(requests),
        (None, Some(duration)) => Amount::Duration(duration),
        _ => return wrong("--requests or --duration: accepted: exactly one of them"),
    };
    if args.concurrency < args.urls.len() as u64 {
        return wrong("--concurrency: accepted: at least one for each --url");
    }
    if args.batch.is_some() && (args.sleep.is_some() || args.skip_release_every.is_some()) {
        return wrong("--batch: a batch cannot sleep or skip the release; leave out --sleep and --skip-release-every");
    }
    if args.batch.is_some_and(|batch| batch * args.row_bytes > REQUEST_BYTES_MAX) {
        return wrong("--batch and --row-bytes: accepted: together at most 64 MiB a request");
    }
    let sleep = match (args.sleep, args.sleep_every) {
        (Some(length), Some(every)) => Some(Sleep { length, every }),
        (None, None) => None,
        _ => return wrong("--sleep and --sleep-every: accepted: both or none of them"),
    };
    let verify = match (&args.verify, args.verify_http) {
        (Some(_), true) => return wrong("--verify or --verify-http: accepted: one of them"),
        (Some(file), false) => Some(VerifyFrom::File(file.clone())),
        (None, true) => Some(VerifyFrom::Http),
        (None, false) => None,
    };
    // An empty variable counts as unset.
    let authorization = args.token.as_ref().filter(|token| !token.0.is_empty()).map(|token| {
        let mut value = hyper::header::HeaderValue::try_from(format!("Bearer {}", token.0)).map_err(|_| {
            Exit::new(WRONG_USAGE, "ROWLOCK_LOAD_TOKEN (--token): accepted: printable ASCII characters")
        })?;
        value.set_sensitive(true);
        Ok(value)
    });
    Ok(Plan {
        targets: args.urls.clone(),
        amount,
        concurrency: args.concurrency as usize,
        rate: args.rate,
        row_bytes: args.row_bytes as usize,
        batch: args.batch.map(|batch| batch as u32),
        sleep,
        skip_release_every: args.skip_release_every,
        keys: args.keys,
        seed: args.seed.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0 >> 32),
        authorization: authorization.transpose()?,
        verify,
        plot: args.plot.is_some(),
    })
}

fn parse_requests(text: &str) -> Result<u64, String> {
    parse_whole(text, 1, 1_000_000_000)
}

fn parse_concurrency(text: &str) -> Result<u64, String> {
    parse_whole(text, 1, 10_000)
}

fn parse_row_bytes(text: &str) -> Result<u64, String> {
    parse_whole(text, ROW_BYTES_MIN as u64, ROW_BYTES_MAX)
}

fn parse_batch(text: &str) -> Result<u64, String> {
    parse_whole(text, 1, 1_000_000)
}

fn parse_every(text: &str) -> Result<NonZeroU64, String> {
    let every = parse_whole(text, 1, 1_000_000_000)?;
    Ok(NonZeroU64::new(every).expect("at least 1"))
}

fn parse_seed(text: &str) -> Result<u64, String> {
    parse_whole(text, 0, u64::MAX)
}

fn parse_rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (0.01..=1e6).contains(rate));
    rate.ok_or_else(|| "requests a second, from 0.01 to 1000000".to_owned())
}
