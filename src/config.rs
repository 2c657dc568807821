//! The configuration: one struct, filled from flags, environment and `.env`.

use std::{net::SocketAddr, num::NonZeroU32, path::PathBuf, time::Duration};

use bytesize::ByteSize;
use clap::{Args, ValueEnum};

/// Everything that can be set. Each field is a flag and an environment variable of the same meaning.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Configuration")]
pub struct Config {
    /// Redis to lock with: `redis://[user:pass@]host:port/db`, `rediss://…` (TLS), `redis+unix:///path`,
    /// `redis-sentinel://[user:pass@]host:port,host:port/db#master` (the sentinels' own password: `?sentinel_password=`),
    /// `redis-cluster://[user:pass@]host:port,host:port`; `rediss-sentinel` and `rediss-cluster` with TLS.
    /// None: the embedded lock, for replicas on this host only.
    #[arg(long = "redis", env = "REDIS_CONN_STR", value_name = "URL", global = true, hide_env_values = true)]
    pub redis: Option<RedisUrl>,

    /// For rediss…: certificates, in PEM, that Redis's own must be signed by; the system's unless set.
    #[arg(long, env = "ROWLOCK_REDIS_CA", value_name = "FILE", global = true, hide_env_values = true)]
    pub redis_ca: Option<PathBuf>,

    /// For rediss…: our own certificate in PEM, where Redis asks for one.
    #[arg(long, env = "ROWLOCK_REDIS_CERT", value_name = "FILE", global = true, hide_env_values = true)]
    pub redis_cert: Option<PathBuf>,

    /// For rediss…: the key of our own certificate, in PEM.
    #[arg(long, env = "ROWLOCK_REDIS_KEY", value_name = "FILE", global = true, hide_env_values = true)]
    pub redis_key: Option<PathBuf>,

    /// The CSV that rows are appended to; made, with its header, where it is missing.
    #[arg(
        long,
        env = "REDIS_CSV_FILE_NAME",
        value_name = "FILE",
        default_value = "rows.csv",
        global = true,
        hide_env_values = true
    )]
    pub csv: PathBuf,

    /// Address to serve on; port 0 takes a free one and logs it.
    #[arg(long, env = "ROWLOCK_LISTEN", value_name = "ADDR:PORT", default_value = "127.0.0.1:8080", value_parser = parse_address, global = true, hide_env_values = true)]
    pub listen: SocketAddr,

    /// This replica's name in rows, answers, logs and the lock; the host name and a random part unless set.
    #[arg(long, env = "ROWLOCK_REPLICA", value_name = "NAME", value_parser = parse_replica, global = true, hide_env_values = true)]
    pub replica: Option<String>,

    /// The lock's key in Redis; `{rowlock:<file name>}` unless set.
    #[arg(long, env = "ROWLOCK_LOCK_KEY", value_name = "KEY", value_parser = parse_lock_key, global = true, hide_env_values = true)]
    pub lock_key: Option<String>,

    /// How long a silent holder keeps the lock (100ms to 1h).
    #[arg(long, env = "ROWLOCK_LOCK_TTL", value_name = "DURATION", default_value = "10s", value_parser = parse_lock_ttl, global = true, hide_env_values = true)]
    pub lock_ttl: Duration,

    /// The longest that an append waits for its turn (1ms to 1h).
    #[arg(long, env = "ROWLOCK_WAIT_TIMEOUT", value_name = "DURATION", default_value = "30s", value_parser = parse_wait_timeout, global = true, hide_env_values = true)]
    pub wait_timeout: Duration,

    /// The longest accepted `sleep` (0s to 24h).
    #[arg(long, env = "ROWLOCK_MAX_SLEEP", value_name = "DURATION", default_value = "60s", value_parser = parse_max_sleep, global = true, hide_env_values = true)]
    pub max_sleep: Duration,

    /// off: requests with `sleep` or `skip_release` are refused (403).
    #[arg(
        long,
        env = "ROWLOCK_SIMULATION",
        value_name = "on|off",
        default_value = "on",
        global = true,
        hide_env_values = true,
        hide_possible_values = true
    )]
    pub simulation: Switch,

    /// A new file's header; `none`: no header, rows hold only data.
    #[arg(
        long,
        env = "ROWLOCK_CSV_HEADER",
        value_name = "COLUMNS",
        default_value = "timestamp,replica,token,data",
        global = true,
        hide_env_values = true
    )]
    pub csv_header: String,

    /// Rows that may wait in one replica (1 to 16777216).
    #[arg(long, env = "ROWLOCK_QUEUE_ROWS", value_name = "ROWS", default_value = "65536", value_parser = parse_queue_rows, global = true, hide_env_values = true)]
    pub queue_rows: usize,

    /// Bytes that may wait in one replica (64KiB to 16GiB).
    #[arg(long, env = "ROWLOCK_QUEUE_BYTES", value_name = "SIZE", default_value = "128MiB", value_parser = parse_queue_bytes, global = true, hide_env_values = true)]
    pub queue_bytes: usize,

    /// The largest body of /append (1KiB to 64MiB).
    #[arg(long, env = "ROWLOCK_BODY_LIMIT", value_name = "SIZE", default_value = "1MiB", value_parser = parse_body_limit, global = true, hide_env_values = true)]
    pub body_limit: usize,

    /// The largest body of /append/batch, once decoded (1KiB to 1GiB); half of ROWLOCK_JOURNAL_BYTES bounds its rows.
    #[arg(long, env = "ROWLOCK_BATCH_LIMIT", value_name = "SIZE", default_value = "64MiB", value_parser = parse_batch_limit, global = true, hide_env_values = true)]
    pub batch_limit: usize,

    /// How many of the newest idempotency keys are remembered; all replicas should say (1 to 16777216)
    #[arg(long, env = "ROWLOCK_IDEMPOTENCY_KEYS", value_name = "KEYS", default_value = "1000000", value_parser = parse_keys, global = true, hide_env_values = true)]
    pub idempotency_keys: usize,

    /// The size of the journal beside the CSV (1MiB to 4GiB); what one batch writes must fit half of it.
    #[arg(long, env = "ROWLOCK_JOURNAL_BYTES", value_name = "SIZE", default_value = "128MiB", value_parser = parse_journal_bytes, global = true, hide_env_values = true)]
    pub journal_bytes: usize,

    /// off: serve an address that others reach without asking for tokens. On a loopback address nobody is asked either way,
    /// unless ROWLOCK_API_TOKENS is set; where it is, tokens are always asked for.
    #[arg(
        long,
        env = "ROWLOCK_AUTH",
        value_name = "on|off",
        default_value = "on",
        global = true,
        hide_env_values = true,
        hide_possible_values = true
    )]
    pub auth: Switch,

    /// Who may do what: in the environment alone, since a command line is seen by all.
    #[arg(skip)]
    pub api_tokens: Option<TokenSource>,

    /// Requests a second that one client may make, and how many at once (as many as in a second unless set), such as 100 or
    /// 100:500. A client is a token, or else an address. None: as many as it likes.
    #[arg(long, env = "ROWLOCK_RATE_LIMIT", value_name = "RATE[:BURST]", value_parser = parse_rate_limit, global = true, hide_env_values = true)]
    pub rate_limit: Option<RateLimit>,

    /// Connections at once (1 to 1000000).
    #[arg(long, env = "ROWLOCK_MAX_CONNECTIONS", value_name = "CONNECTIONS", default_value = "10000", value_parser = parse_connections, global = true, hide_env_values = true)]
    pub max_connections: usize,

    /// Serve HTTPS: our certificate and its chain, in PEM; read again on SIGHUP.
    #[arg(long, env = "ROWLOCK_TLS_CERT", value_name = "FILE", global = true, hide_env_values = true)]
    pub tls_cert: Option<PathBuf>,

    /// Serve HTTPS: the key of our certificate, in PEM; read again on SIGHUP.
    #[arg(long, env = "ROWLOCK_TLS_KEY", value_name = "FILE", global = true, hide_env_values = true)]
    pub tls_key: Option<PathBuf>,

    /// Origins whose pages may use this service from a browser, separated by commas, such as `https://app.example.com`; `*` for all.
    /// None: no page of another origin may.
    #[arg(long, env = "ROWLOCK_CORS_ORIGINS", value_name = "ORIGINS", value_parser = parse_origins, global = true, hide_env_values = true)]
    pub cors_origins: Option<Origins>,

    /// on: an apostrophe is put in front of data cells that a spreadsheet would run as formulas.
    #[arg(
        long,
        env = "ROWLOCK_FORMULA_GUARD",
        value_name = "on|off",
        default_value = "off",
        global = true,
        hide_env_values = true,
        hide_possible_values = true
    )]
    pub formula_guard: Switch,

    /// accept: serve from a volume that has no file locks, with weaker promises.
    #[arg(
        long,
        env = "ROWLOCK_UNLOCKED_VOLUME",
        value_name = "refuse|accept",
        default_value = "refuse",
        global = true,
        hide_env_values = true,
        hide_possible_values = true
    )]
    pub unlocked_volume: UnlockedVolume,

    /// After SIGTERM, how long to go on serving while /readyz says no, so that a load balancer finds out (0s to 1h).
    #[arg(long, env = "ROWLOCK_DRAIN_DELAY", value_name = "DURATION", default_value = "0s", value_parser = parse_drain_delay, global = true, hide_env_values = true)]
    pub drain_delay: Duration,

    /// After that, how long to finish what was taken (0s to 1h).
    #[arg(long, env = "ROWLOCK_GRACE", value_name = "DURATION", default_value = "30s", value_parser = parse_grace, global = true, hide_env_values = true)]
    pub grace: Duration,

    /// text or json; the level is RUST_LOG.
    #[arg(
        long,
        env = "ROWLOCK_LOG_FORMAT",
        value_name = "text|json",
        default_value = "text",
        global = true,
        hide_env_values = true,
        hide_possible_values = true
    )]
    pub log_format: LogFormat,
}

/// A Redis address. It may hold a password, so it prints as nothing more than its kind.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl(String);

impl RedisUrl {
    /// The address itself, password included: for the client only, never for a log.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for RedisUrl {
    fn from(url: String) -> Self {
        Self(url)
    }
}

impl std::fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RedisUrl(hidden)")
    }
}

/// Where the tokens stand. They never print.
#[derive(Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// `role:token`, separated by commas.
    Text(String),
    /// In a file.
    File(PathBuf),
}

impl TokenSource {
    /// The variable that it is read from.
    pub const VARIABLE: &str = "ROWLOCK_API_TOKENS";

    /// `@` names a file.
    pub fn parse(value: &str) -> Self {
        match value.strip_prefix('@') {
            Some(path) => Self::File(path.into()),
            None => Self::Text(value.to_owned()),
        }
    }
}

impl std::fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenSource(hidden)")
    }
}

/// What one client may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// Requests a second, in the long run.
    pub per_second: NonZeroU32,
    /// Requests at once.
    pub burst: NonZeroU32,
}

/// Who may use the service from pages of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origins {
    /// Every origin.
    Any,
    /// These: scheme, host and port.
    These(Vec<String>),
}

/// `on` or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Enabled.
    On,
    /// Disabled.
    Off,
}

/// What to do on a volume without file locks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum UnlockedVolume {
    /// End the start.
    Refuse,
    /// Serve all the same.
    Accept,
}

/// How log lines are written, on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A variable that no flag stands for. An empty value is as good as none.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl Config {
    /// The replica's name, made up where none is set.
    pub fn replica_name(&self) -> String {
        self.replica.clone().unwrap_or_else(|| {
            let host = gethostname::gethostname().to_string_lossy().into_owned();
            let random = uuid::Uuid::new_v4().simple().to_string();
            format!("{host}-{}", &random[..6])
        })
    }

    /// The lock's key in Redis: that of the file's name where none is set.
    pub fn lock_key(&self) -> String {
        self.lock_key.clone().unwrap_or_else(|| {
            let file = self.csv.file_name().unwrap_or(self.csv.as_os_str()).to_string_lossy();
            format!("{{rowlock:{file}}}")
        })
    }
}

/// Parses `10s`, `250ms`, `1m 30s`, and holds it to bounds.
fn parse_duration(text: &str, min: Duration, max: Duration) -> Result<Duration, String> {
    let accepted = || format!("a duration from {min:?} to {max:?}, such as 10s or 250ms");
    let parsed: jiff::SignedDuration = text.parse().map_err(|_| accepted())?;
    let duration = Duration::try_from(parsed).map_err(|_| accepted())?;
    if (min..=max).contains(&duration) { Ok(duration) } else { Err(accepted()) }
}

const HOUR: Duration = Duration::from_secs(3600);

fn parse_lock_ttl(text: &str) -> Result<Duration, String> {
    parse_duration(text, Duration::from_millis(100), HOUR)
}

fn parse_wait_timeout(text: &str) -> Result<Duration, String> {
    parse_duration(text, Duration::from_millis(1), HOUR)
}

fn parse_max_sleep(text: &str) -> Result<Duration, String> {
    parse_duration(text, Duration::ZERO, 24 * HOUR)
}

fn parse_drain_delay(text: &str) -> Result<Duration, String> {
    parse_duration(text, Duration::ZERO, HOUR)
}

fn parse_grace(text: &str) -> Result<Duration, String> {
    parse_duration(text, Duration::ZERO, HOUR)
}

/// How long a load test runs.
pub(crate) fn parse_run_time(text: &str) -> Result<Duration, String> {
    parse_duration(text, Duration::from_millis(1), 24 * HOUR)
}

/// Parses a whole number, and holds it to bounds.
pub(crate) fn parse_whole(text: &str, min: u64, max: u64) -> Result<u64, String> {
    let number = text.parse().ok().filter(|number| (min..=max).contains(number));
    number.ok_or_else(|| format!("a whole number from {min} to {max}"))
}

/// Parses `64MiB`, `1kB`, `4096`, and holds it to bounds.
fn parse_size(text: &str, min: ByteSize, max: ByteSize) -> Result<usize, String> {
    let accepted = || format!("a size from {min} to {max}, such as 64MiB or 4096");
    let size: ByteSize = text.parse().map_err(|_| accepted())?;
    if !(min..=max).contains(&size) {
        return Err(accepted());
    }
    usize::try_from(size.as_u64()).map_err(|_| accepted())
}

fn parse_queue_bytes(text: &str) -> Result<usize, String> {
    parse_size(text, ByteSize::kib(64), ByteSize::gib(16))
}

fn parse_body_limit(text: &str) -> Result<usize, String> {
    parse_size(text, ByteSize::kib(1), ByteSize::mib(64))
}

fn parse_batch_limit(text: &str) -> Result<usize, String> {
    parse_size(text, ByteSize::kib(1), ByteSize::gib(1))
}

/// Whole pages, so that a record never ends beside the file's end.
fn parse_journal_bytes(text: &str) -> Result<usize, String> {
    Ok(parse_size(text, ByteSize::mib(1), ByteSize::gib(4))? / 4096 * 4096)
}

fn parse_keys(text: &str) -> Result<usize, String> {
    let keys = text.parse().ok().filter(|keys| (1..=1 << 24).contains(keys));
    keys.ok_or_else(|| "a whole number from 1 to 16777216".to_owned())
}

fn parse_queue_rows(text: &str) -> Result<usize, String> {
    let rows = text.parse().ok().filter(|rows| (1..=1 << 24).contains(rows));
    rows.ok_or_else(|| "a whole number from 1 to 16777216".to_owned())
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "an address and a port, such as 127.0.0.1:8080 or [::1]:8080".to_owned())
}

fn parse_connections(text: &str) -> Result<usize, String> {
    let connections = text.parse().ok().filter(|connections| (1..=1_000_000).contains(connections));
    connections.ok_or_else(|| "a whole number from 1 to 1000000".to_owned())
}

fn parse_rate_limit(text: &str) -> Result<RateLimit, String> {
    let (rate, burst) = text.split_once(':').unwrap_or((text, text));
    let number = |text: &str| text.parse().ok().filter(|&number: &NonZeroU32| number.get() <= 1_000_000);
    match (number(rate), number(burst)) {
        (Some(per_second), Some(burst)) => Ok(RateLimit { per_second, burst }),
        _ => Err("whole numbers from 1 to 1000000, such as 100 (a second) or 100:500 (at once)".to_owned()),
    }
}

/// As browsers write them in `Origin`: in lower case, without a path and without a default port.
fn parse_origins(text: &str) -> Result<Origins, String> {
    if text.trim() == "*" {
        return Ok(Origins::Any);
    }
    let is_host = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._:[]".contains(c);
    let is_origin = |origin: &str| {
        let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
        host.is_some_and(|host| !host.is_empty() && host.chars().all(is_host))
    };
    let origins: Vec<String> = text.split(',').map(|origin| origin.trim().to_owned()).collect();
    if origins.iter().all(|origin| is_origin(origin)) {
        Ok(Origins::These(origins))
    } else {
        Err("origins in lower case without a path, separated by commas, such as https://app.example.com; or * alone"
            .to_owned())
    }
}

fn parse_replica(text: &str) -> Result<String, String> {
    parse_name(text, 64)
}

fn parse_lock_key(text: &str) -> Result<String, String> {
    parse_name(text, 256)
}

/// A name that stands in headers, logs and Redis without quoting.
fn parse_name(text: &str, max: usize) -> Result<String, String> {
    let printable = text.bytes().all(|byte| byte.is_ascii_graphic());
    if printable && !text.is_empty() && text.len() <= max {
        Ok(text.to_owned())
    } else {
        Err(format!("1 to {max} printable ASCII characters without spaces"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_read_and_held_to_their_bounds() {
        assert_eq!(parse_lock_ttl("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_wait_timeout("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_max_sleep("0s"), Ok(Duration::ZERO));
        for wrong in ["10", "-1s", "99ms", "2h", "ten", ""] {
            assert!(parse_lock_ttl(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(parse_body_limit("64MiB"), Ok(64 << 20));
        assert_eq!(parse_queue_bytes("100000"), Ok(100_000));
        for wrong in ["1", "65MiB", "x", "-1"] {
            assert!(parse_body_limit(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_rate_has_a_burst_of_its_own_or_that_of_a_second() {
        let number = |number| NonZeroU32::new(number).expect("not zero");
        assert_eq!(parse_rate_limit("10"), Ok(RateLimit { per_second: number(10), burst: number(10) }));
        assert_eq!(parse_rate_limit("10:500"), Ok(RateLimit { per_second: number(10), burst: number(500) }));
        for wrong in ["", "0", "10:0", "1.5", "10/s", "10:", ":10", "1000001", "10:5:5"] {
            assert!(parse_rate_limit(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn origins_are_read_as_browsers_write_them() {
        assert_eq!(parse_origins("*"), Ok(Origins::Any));
        let two = ["https://a.example".to_owned(), "http://localhost:3000".to_owned()];
        assert_eq!(parse_origins("https://a.example, http://localhost:3000"), Ok(Origins::These(two.to_vec())));
        for wrong in
            ["", "a.example", "https://a.example/", "https://A.example", "https://", "*,https://a", "https://a,"]
        {
            assert!(parse_origins(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_redis_address_never_prints_its_password() {
        let url = RedisUrl::from("redis://:secret@host".to_owned());
        assert!(!format!("{url:?}").contains("secret"));
    }
}
