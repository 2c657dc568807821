//! `rowlock load`: a load test that verifies.

use std::{
    num::NonZeroU64,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::cli::{Exit, FAILED, WRONG_USAGE, append::parse_sleep};
use crate::{
    client::{Connector, Target, Trust},
    config::{parse_run_time, parse_whole},
    load::{self, Amount, Plan, ROW_BYTES_MIN, Report, Sleep, VerifyFrom},
};

/// A request must not outgrow what replicas take unless they are told to.
const REQUEST_BYTES_MAX: u64 = 64 << 20;
const ROW_BYTES_MAX: u64 = 1 << 20;

pub(super) const EXAMPLES: &str = "\
Latency is that of acknowledged requests, from their first attempt to their 201, repeats and waits included. With --rate it is
counted from the moment that a request was due, so that a service that stalls cannot hide it by slowing the load down
(coordinated omission); the figures from the real sending stand beside it.

A refusal that says when to come back (Retry-After) is waited for and repeated, at the next --url, if its rows are certainly not
written; with --keys what is not known is repeated as well, until it is. After 60 s a request is given up.

--verify and --verify-http look for every row that was sent, and exit 1 unless each acknowledged one is there once and whole, none
that was refused is, none that was never sent is, no line of the file is torn, and order and tokens are right. Rows of
others may stand in the file as well. An interrupt (Ctrl-C) ends the run with its report, a second one without waiting.

Examples:
  rowlock load --url http://127.0.0.1:8080 --requests 100000 --verify rows.csv
  rowlock load --url http://a:8080 --url http://b:8080 --duration 30s --concurrency 256 --verify-http
  rowlock load --url http://127.0.0.1:8080 --duration 1m --rate 5000 --plot latency.svg     is it quick at that rate?
  rowlock load --url http://127.0.0.1:8080 --requests 1000 --batch 1000                     a million rows in bodies of CSV
  rowlock load --url http://a:8080 --url http://b:8080 --duration 1m --keys --verify rows.csv   and kill replicas meanwhile
  rowlock load --url http://127.0.0.1:8080 --requests 500 --sleep 0.1 --sleep-every 50 --skip-release-every 200";

/// What to send, where, and how fast.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A replica, or what stands before replicas; once for each. Connections are shared out round robin.
    #[arg(long = "url", value_name = "URL", required = true, value_parser = Target::parse)]
    urls: Vec<Target>,
    /// How many requests to send in all, or else:
    #[arg(long, value_name = "N", value_parser = parse_requests)]
    requests: Option<u64>,
    /// How long to send requests, such as 30s.
    #[arg(long, value_name = "D", value_parser = parse_run_time)]
    duration: Option<Duration>,
    /// Requests under way at once, each on a connection of its own.
    #[arg(long, value_name = "C", default_value = "64", value_parser = parse_concurrency)]
    concurrency: u64,
    /// Requests a second, whether those before are answered or not; none: each waits for one before.
    #[arg(long, value_name = "R", value_parser = parse_rate)]
    rate: Option<f64>,
    /// Bytes of a row's data; one row in eight is such that it must be quoted.
    #[arg(long, value_name = "B", default_value = "100", value_parser = parse_row_bytes)]
    row_bytes: u64,
    /// Rows a request, as CSV to /append/batch; none: one row a request, as JSON to /append.
    #[arg(long, value_name = "B", value_parser = parse_batch)]
    batch: Option<u64>,
    /// Seconds that the lock is held before the row is written, in every --sleep-every'th request.
    #[arg(long, value_name = "S", value_parser = parse_sleep)]
    sleep: Option<Duration>,
    /// See --sleep.
    #[arg(long, value_name = "N", value_parser = parse_every)]
    sleep_every: Option<NonZeroU64>,
    /// Every so many requests the lock is left to expire, as if a replica had crashed.
    #[arg(long, value_name = "N", value_parser = parse_every)]
    skip_release_every: Option<NonZeroU64>,
    /// Send Idempotency-Keys, and repeat each request until it is known to be written or not.
    #[arg(long)]
    keys: bool,
    /// What rows are filled from; a random one unless given.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// With the role `append`, and `read` for --verify-http. A command line is seen by all: better in the environment.
    #[arg(long, value_name = "T", env = "ROWLOCK_LOAD_TOKEN", hide_env_values = true)]
    token: Option<Token>,
    /// For https: certificates, in PEM, that the replicas' own must be signed by; the system's unless given.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Read the CSV back from this file, and hold it against what was sent.
    #[arg(long, value_name = "FILE")]
    verify: Option<PathBuf>,
    /// Read it back from /rows.csv of the first replica that gives it.
    #[arg(long)]
    verify_http: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    /// Draw latency over time, and its distribution, into this file.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

/// It never prints.
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
    // A run of an hour should not end in a file that can't be written.
    let plot = args.plot.as_deref().map(create).transpose()?;
    let report = load::run(&plan, connector).map_err(|e| Exit::new(FAILED, e))?;
    if let Some(mut file) = plot {
        std::io::Write::write_all(&mut file, report.to_svg().as_bytes())
            .map_err(|e| Exit::new(FAILED, format_args!("--plot: {e}")))?;
    }
    print(&report, args.json)?;
    if report.is_good() { Ok(()) } else { Err(Exit { code: FAILED, message: String::new() }) }
}

fn create(path: &Path) -> Result<std::fs::File, Exit> {
    std::fs::File::create(path).map_err(|e| Exit::new(WRONG_USAGE, format_args!("--plot: {}: {e}", path.display())))
}

fn print(report: &Report, json: bool) -> Result<(), Exit> {
    if json {
        println!("{}", serde_json::to_string(report).map_err(|e| Exit::new(FAILED, e))?);
    } else {
        print!("{report}");
    }
    Ok(())
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
        return wrong(
            "--batch: its rows neither sleep nor skip the release; leave out --sleep and --skip-release-every",
        );
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
    // An empty variable is as good as none.
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

fn parse_rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (0.01..=1e6).contains(rate));
    rate.ok_or_else(|| "requests a second, from 0.01 to 1000000".to_owned())
}
