//! The configuration: one struct, filled from flags, environment variables and `.env`.

use std::{net::SocketAddr, num::NonZeroU32, path::PathBuf, time::Duration};

use bytesize::ByteSize;
use clap::{Args, ValueEnum};

/// All settings. Each field is a flag and an environment variable with the same meaning.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Configuration")]
pub struct Config {
    /// The Redis that holds the lock: `redis://[user:pass@]host:port/db`, `rediss://…` (TLS), `redis+unix:///path`,
    /// `redis-sentinel://[user:pass@]host:port,host:port/db#master` (the sentinels' own password: `?sentinel_password=`),
    /// `redis-cluster://[user:pass@]host:port,host:port`; `rediss-sentinel` and `rediss-cluster` with TLS.
    /// Unset: the embedded lock, for replicas on this host only.
    #[arg(long = "redis", env = "REDIS_CONN_STR", value_name = "URL", global = true, hide_env_values = true)]
    pub redis: Option<RedisUrl>,

    /// For rediss…: PEM file of the certificate authorities that sign Redis's certificate; the system's unless set.
    #[arg(long, env = "ROWLOCK_REDIS_CA", value_name = "FILE", global = true, hide_env_values = true)]
    pub redis_ca: Option<PathBuf>,

    /// For rediss…: PEM file of the client certificate, if Redis requires one.
    #[arg(long, env = "ROWLOCK_REDIS_CERT", value_name = "FILE", global = true, hide_env_values = true)]
    pub redis_cert: Option<PathBuf>,

    /// For rediss…: PEM file of the client certificate's key.
    #[arg(long, env = "ROWLOCK_REDIS_KEY", value_name = "FILE", global = true, hide_env_values = true)]
    pub redis_key: Option<PathBuf>,

    /// The CSV that rows are appended to; created, with its header, if it does not exist.
    #[arg(
        long,
        env = "REDIS_CSV_FILE_NAME",
        value_name = "FILE",
        default_value = "rows.csv",
        global = true,
        hide_env_values = true
    )]
    pub csv: PathBuf,

    /// Address to serve; with port 0, a free port is chosen and logged.
    #[arg(long, env = "ROWLOCK_LISTEN", value_name = "ADDR:PORT", default_value = "127.0.0.1:8080", value_parser = parse_address, global = true, hide_env_values = true)]
    pub listen: SocketAddr,

    /// This replica's name in rows, answers, logs and the lock; the host name with a random suffix unless set.
    #[arg(long, env = "ROWLOCK_REPLICA", value_name = "NAME", value_parser = parse_replica, global = true, hide_env_values = true)]
    pub replica: Option<String>,

    /// The lock's key in Redis; `{rowlock:<file name>}` unless set.
    #[arg(long, env = "ROWLOCK_LOCK_KEY", value_name = "KEY", value_parser = parse_lock_key, global = true, hide_env_values = true)]
    pub lock_key: Option<String>,

    /// How long a silent holder keeps the lock (100ms to 1h).
    #[arg(long, env = "ROWLOCK_LOCK_TTL", value_name = "DURATION", default_value = "10s", value_parser = parse_lock_ttl, global = true, hide_env_values = true)]
    pub lock_ttl: Duration,

    /// How long an append may wait for its turn (1ms to 1h).
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

    /// The header of a new file; `none`: no header, rows have only data columns.
    #[arg(
        long,
        env = "ROWLOCK_CSV_HEADER",
        value_name = "COLUMNS",
        default_value = "timestamp,replica,token,data",
        global = true,
        hide_env_values = true
    )]
    pub csv_header: String,

    /// The most rows that wait in one replica (1 to 16777216).
    #[arg(long, env = "ROWLOCK_QUEUE_ROWS", value_name = "ROWS", default_value = "65536", value_parser = parse_queue_rows, global = true, hide_env_values = true)]
    pub queue_rows: usize,

    /// The most bytes that wait in one replica (64KiB to 16GiB).
    #[arg(long, env = "ROWLOCK_QUEUE_BYTES", value_name = "SIZE", default_value = "128MiB", value_parser = parse_queue_bytes, global = true, hide_env_values = true)]
    pub queue_bytes: usize,

    /// The largest body of /append (1KiB to 64MiB).
    #[arg(long, env = "ROWLOCK_BODY_LIMIT", value_name = "SIZE", default_value = "1MiB", value_parser = parse_body_limit, global = true, hide_env_values = true)]
    pub body_limit: usize,

    /// The largest body of /append/batch after decompression (1KiB to 1GiB); its rows must also fit half of ROWLOCK_JOURNAL_BYTES.
    #[arg(long, env = "ROWLOCK_BATCH_LIMIT", value_name = "SIZE", default_value = "64MiB", value_parser = parse_batch_limit, global = true, hide_env_values = true)]
    pub batch_limit: usize,

    /// How many of the newest idempotency keys are remembered (1 to 16777216); the same number in all replicas.
    #[arg(long, env = "ROWLOCK_IDEMPOTENCY_KEYS", value_name = "KEYS", default_value = "1000000", value_parser = parse_keys, global = true, hide_env_values = true)]
    pub idempotency_keys: usize,

    /// The size of the CSV's journal (1MiB to 4GiB); one batch must fit half of it.
    #[arg(long, env = "ROWLOCK_JOURNAL_BYTES", value_name = "SIZE", default_value = "128MiB", value_parser = parse_journal_bytes, global = true, hide_env_values = true)]
    pub journal_bytes: usize,

    /// off: serve without tokens on an address that other hosts can reach. A loopback address may be served without tokens in
    /// any case. If ROWLOCK_API_TOKENS is set, tokens are always required.
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

    /// The tokens. Only from the environment, because other users can see a command line.
    #[arg(skip)]
    pub api_tokens: Option<TokenSource>,

    /// The most requests per second of one client, and the largest burst (one second's requests unless set), such as 100 or
    /// 100:500. Clients are told apart by token, or by address without tokens. Unset: no limit.
    #[arg(long, env = "ROWLOCK_RATE_LIMIT", value_name = "RATE[:BURST]", value_parser = parse_rate_limit, global = true, hide_env_values = true)]
    pub rate_limit: Option<RateLimit>,

    /// The most open connections (1 to 1000000).
    #[arg(long, env = "ROWLOCK_MAX_CONNECTIONS", value_name = "CONNECTIONS", default_value = "10000", value_parser = parse_connections, global = true, hide_env_values = true)]
    pub max_connections: usize,

    /// For HTTPS: PEM file of the server certificate and its chain; reloaded on SIGHUP.
    #[arg(long, env = "ROWLOCK_TLS_CERT", value_name = "FILE", global = true, hide_env_values = true)]
    pub tls_cert: Option<PathBuf>,

    /// For HTTPS: PEM file of the server certificate's key; reloaded on SIGHUP.
    #[arg(long, env = "ROWLOCK_TLS_KEY", value_name = "FILE", global = true, hide_env_values = true)]
    pub tls_key: Option<PathBuf>,

    /// Origins whose pages may call this service from a browser (CORS), separated by commas, such as `https://app.example.com`;
    /// `*` for all. Unset: none.
    #[arg(long, env = "ROWLOCK_CORS_ORIGINS", value_name = "ORIGINS", value_parser = parse_origins, global = true, hide_env_values = true)]
    pub cors_origins: Option<Origins>,

    /// on: data cells that a spreadsheet would run as formulas get an apostrophe in front.
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

    /// accept: serve from a volume that the start refuses, such as one without file locks, with weaker guarantees.
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

    /// How long a client may take no byte of its answer before its connection is closed. Only tests change it.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_lock_ttl, global = true, hide = true)]
    pub write_timeout: Duration,

    /// After SIGTERM, how long to keep serving with /readyz failing, so that a load balancer notices (0s to 1h).
    #[arg(long, env = "ROWLOCK_DRAIN_DELAY", value_name = "DURATION", default_value = "0s", value_parser = parse_drain_delay, global = true, hide_env_values = true)]
    pub drain_delay: Duration,

    /// After the drain delay, how long accepted requests may take to finish (0s to 1h).
    #[arg(long, env = "ROWLOCK_GRACE", value_name = "DURATION", default_value = "30s", value_parser = parse_grace, global = true, hide_env_values = true)]
    pub grace: Duration,

    /// text or json; RUST_LOG sets the level.
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

/// A Redis address. Its `Debug` shows nothing of it, because it may hold a password.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl(String);

impl RedisUrl {
    /// The address with its password: for the Redis client only, never for a log.
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

/// Where the tokens come from. Its `Debug` shows nothing of them.
#[derive(Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// `role:token`, separated by commas.
    Text(String),
    /// The same text in a file.
    File(PathBuf),
}

impl TokenSource {
    /// The environment variable.
    pub const VARIABLE: &str = "ROWLOCK_API_TOKENS";

    /// Parses the variable's value: `@path` names a file.
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

/// The rate limit of one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// Sustained requests per second.
    pub per_second: NonZeroU32,
    /// Most requests at once.
    pub burst: NonZeroU32,
}

/// Origins allowed by CORS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origins {
    /// Every origin.
    Any,
    /// These origins: scheme, host and port.
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

/// What happens on a volume without file locks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum UnlockedVolume {
    /// The start fails.
    Refuse,
    /// The replica serves.
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

/// Reads a variable that has no flag. An empty value counts as unset.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl Config {
    /// The replica's name; a new random one on each call if none is set.
    pub fn replica_name(&self) -> String {
        self.replica.clone().unwrap_or_else(|| {
            let host = gethostname::gethostname().to_string_lossy().into_owned();
            let random = uuid::Uuid::new_v4().simple().to_string();
            format!("{host}-{}", &random[..6])
        })
    }

    /// The lock's key in Redis; derived from the file's name if none is set.
    pub fn lock_key(&self) -> String {
        self.lock_key.clone().unwrap_or_else(|| {
            let file = self.csv.file_name().unwrap_or(self.csv.as_os_str()).to_string_lossy();
            format!("{{rowlock:{file}}}")
        })
    }
}

/// Parses `10s`, `250ms`, `1m 30s` within bounds.
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

/// Parses the duration of a load test.
pub(crate) fn parse_run_time(text: &str) -> Result<Duration, String> {
    parse_duration(text, Duration::from_millis(1), 24 * HOUR)
}

/// Parses a whole number within bounds.
pub(crate) fn parse_whole(text: &str, min: u64, max: u64) -> Result<u64, String> {
    let number = text.parse().ok().filter(|number| (min..=max).contains(number));
    number.ok_or_else(|| format!("a whole number from {min} to {max}"))
}

/// Parses `64MiB`, `1kB`, `4096` within bounds.
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

/// Rounds down to whole pages, because records start on page boundaries.
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
        _ => Err("whole numbers from 1 to 1000000: RATE or RATE:BURST, such as 100 or 100:500".to_owned()),
    }
}

/// Parses origins as browsers write them in `Origin`: in lower case, without a path or a default port.
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

/// Parses a name that needs no quoting in headers, logs and Redis.
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
    fn durations_and_sizes_are_parsed_within_bounds() {
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
    fn burst_defaults_to_the_requests_of_one_second() {
        let number = |number| NonZeroU32::new(number).expect("not zero");
        assert_eq!(parse_rate_limit("10"), Ok(RateLimit { per_second: number(10), burst: number(10) }));
        assert_eq!(parse_rate_limit("10:500"), Ok(RateLimit { per_second: number(10), burst: number(500) }));
        for wrong in ["", "0", "10:0", "1.5", "10/s", "10:", ":10", "1000001", "10:5:5"] {
            assert!(parse_rate_limit(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn origins_are_parsed_as_browsers_write_them() {
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
    fn redis_address_never_prints_its_password() {
        let url = RedisUrl::from("redis://:secret@host".to_owned());
        assert!(!format!("{url:?}").contains("secret"));
    }
}
