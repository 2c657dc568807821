//! The configuration: one struct, filled from flags, environment variables and `.env`.

mod values;

use std::{path::PathBuf, time::Duration};

use clap::Args;

pub use crate::config::values::{
    ListenAddress, LogFormat, Origins, RateLimit, RedisUrl, Switch, TokenSource, UnlockedVolume,
};
pub(crate) use crate::config::values::{parse_run_time, parse_whole};

/// The help of a command shows its settings under these headings.
pub mod heading {
    /// The lock and its Redis.
    pub const LOCK: &str = "Lock";
    /// The CSV and its journal.
    pub const FILE: &str = "File";
    /// The name of the process, and what it logs.
    pub const PROCESS: &str = "Replica and log";
    /// Address, connections, and shutdown.
    pub const SERVER: &str = "Server";
    /// Tokens, TLS, origins, rates.
    pub const ACCESS: &str = "Access";
    /// `sleep` and `skip_release`.
    pub const SIMULATION: &str = "Simulation";
    /// What may wait, and how large a request may be.
    pub const LIMITS: &str = "Limits";
}

/// All settings. Each field is a flag and an environment variable with the same meaning.
#[derive(Debug, Clone, Args)]
pub struct Config {
    /// The Redis that holds the lock: `redis://[user:pass@]host:port/db`, `rediss://…` (TLS), `redis+unix:///path`,
    /// `redis-sentinel://[user:pass@]host:port,host:port/db#master` (the sentinels' own password: `?sentinel_password=`),
    /// `redis-cluster://[user:pass@]host:port,host:port`; `rediss-sentinel` and `rediss-cluster` with TLS.
    /// Unset: the embedded lock, for replicas on this host only.
    #[arg(long = "redis", env = "REDIS_CONN_STR", value_name = "URL", global = true, hide_env_values = true, help_heading = heading::LOCK)]
    pub redis: Option<RedisUrl>,

    /// For rediss…: PEM file of the certificate authorities that sign Redis's certificate; the system's unless set.
    #[arg(long, env = "ROWLOCK_REDIS_CA", value_name = "FILE", global = true, hide_env_values = true, help_heading = heading::LOCK)]
    pub redis_ca: Option<PathBuf>,

    /// For rediss…: PEM file of the client certificate, if Redis requires one.
    #[arg(long, env = "ROWLOCK_REDIS_CERT", value_name = "FILE", global = true, hide_env_values = true, help_heading = heading::LOCK)]
    pub redis_cert: Option<PathBuf>,

    /// For rediss…: PEM file of the client certificate's key.
    #[arg(long, env = "ROWLOCK_REDIS_KEY", value_name = "FILE", global = true, hide_env_values = true, help_heading = heading::LOCK)]
    pub redis_key: Option<PathBuf>,

    /// The CSV that rows are appended to; created, with its header, if it does not exist.
    #[arg(
        long,
        env = "REDIS_CSV_FILE_NAME",
        value_name = "FILE",
        default_value = "rows.csv",
        global = true,
        hide_env_values = true,
        help_heading = heading::FILE
    )]
    pub csv: PathBuf,

    /// Address to serve; a host name is resolved at the start, `:8080` serves all interfaces; with port 0, a free port is chosen and logged.
    #[arg(long, env = "ROWLOCK_LISTEN", value_name = "HOST:PORT", default_value = "127.0.0.1:8080", value_parser = values::parse_address, global = true, hide_env_values = true, help_heading = heading::SERVER)]
    pub listen: ListenAddress,

    /// This replica's name in rows, answers, logs and the lock; the host name with a random suffix unless set.
    #[arg(long, env = "ROWLOCK_REPLICA", value_name = "NAME", value_parser = values::parse_replica, global = true, hide_env_values = true, help_heading = heading::PROCESS)]
    pub replica: Option<String>,

    /// The lock's key in Redis; `{rowlock:<file name>}` unless set.
    #[arg(long, env = "ROWLOCK_LOCK_KEY", value_name = "KEY", value_parser = values::parse_lock_key, global = true, hide_env_values = true, help_heading = heading::LOCK)]
    pub lock_key: Option<String>,

    /// How long a silent holder keeps the lock (100ms to 1h).
    #[arg(long, env = "ROWLOCK_LOCK_TTL", value_name = "DURATION", default_value = "10s", value_parser = values::parse_lock_ttl, global = true, hide_env_values = true, help_heading = heading::LOCK)]
    pub lock_ttl: Duration,

    /// How long an append may wait for its turn (1ms to 1h).
    #[arg(long, env = "ROWLOCK_WAIT_TIMEOUT", value_name = "DURATION", default_value = "30s", value_parser = values::parse_wait_timeout, global = true, hide_env_values = true, help_heading = heading::LOCK)]
    pub wait_timeout: Duration,

    /// The longest accepted `sleep` (0s to 24h).
    #[arg(long, env = "ROWLOCK_MAX_SLEEP", value_name = "DURATION", default_value = "60s", value_parser = values::parse_max_sleep, global = true, hide_env_values = true, help_heading = heading::SIMULATION)]
    pub max_sleep: Duration,

    /// off: requests with `sleep` or `skip_release` are refused (403).
    #[arg(
        long,
        env = "ROWLOCK_SIMULATION",
        value_name = "on|off",
        default_value = "on",
        global = true,
        hide_env_values = true,
        hide_possible_values = true,
        help_heading = heading::SIMULATION
    )]
    pub simulation: Switch,

    /// The header of a new file; `none`: no header, rows have only data columns.
    #[arg(
        long,
        env = "ROWLOCK_CSV_HEADER",
        value_name = "COLUMNS",
        default_value = "timestamp,replica,token,data",
        global = true,
        hide_env_values = true,
        help_heading = heading::FILE
    )]
    pub csv_header: String,

    /// The most rows that wait in one replica (1 to 16777216).
    #[arg(long, env = "ROWLOCK_QUEUE_ROWS", value_name = "ROWS", default_value = "65536", value_parser = values::parse_queue_rows, global = true, hide_env_values = true, help_heading = heading::LIMITS)]
    pub queue_rows: usize,

    /// The most bytes that wait in one replica (64KiB to 16GiB).
    #[arg(long, env = "ROWLOCK_QUEUE_BYTES", value_name = "SIZE", default_value = "128MiB", value_parser = values::parse_queue_bytes, global = true, hide_env_values = true, help_heading = heading::LIMITS)]
    pub queue_bytes: usize,

    /// The largest body of /append (1KiB to 64MiB).
    #[arg(long, env = "ROWLOCK_BODY_LIMIT", value_name = "SIZE", default_value = "1MiB", value_parser = values::parse_body_limit, global = true, hide_env_values = true, help_heading = heading::LIMITS)]
    pub body_limit: usize,

    /// The largest body of /append/batch after decompression (1KiB to 1GiB); its rows must also fit half of ROWLOCK_JOURNAL_BYTES.
    #[arg(long, env = "ROWLOCK_BATCH_LIMIT", value_name = "SIZE", default_value = "64MiB", value_parser = values::parse_batch_limit, global = true, hide_env_values = true, help_heading = heading::LIMITS)]
    pub batch_limit: usize,

    /// How many of the newest idempotency keys are remembered (1 to 16777216); the same number in all replicas.
    #[arg(long, env = "ROWLOCK_IDEMPOTENCY_KEYS", value_name = "KEYS", default_value = "1000000", value_parser = values::parse_keys, global = true, hide_env_values = true, help_heading = heading::FILE)]
    pub idempotency_keys: usize,

    /// The size of the CSV's journal (1MiB to 4GiB); one batch must fit half of it.
    #[arg(long, env = "ROWLOCK_JOURNAL_BYTES", value_name = "SIZE", default_value = "128MiB", value_parser = values::parse_journal_bytes, global = true, hide_env_values = true, help_heading = heading::FILE)]
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
        hide_possible_values = true,
        help_heading = heading::ACCESS
    )]
    pub auth: Switch,

    /// The tokens. Only from the environment, because other users can see a command line.
    #[arg(skip)]
    pub api_tokens: Option<TokenSource>,

    /// The most requests per second of one client, and the largest burst (one second's requests unless set), such as 100 or
    /// 100:500. Clients are told apart by token, or by address without tokens. Unset: no limit.
    #[arg(long, env = "ROWLOCK_RATE_LIMIT", value_name = "RATE[:BURST]", value_parser = values::parse_rate_limit, global = true, hide_env_values = true, help_heading = heading::ACCESS)]
    pub rate_limit: Option<RateLimit>,

    /// The most open connections (1 to 1000000).
    #[arg(long, env = "ROWLOCK_MAX_CONNECTIONS", value_name = "CONNECTIONS", default_value = "10000", value_parser = values::parse_connections, global = true, hide_env_values = true, help_heading = heading::SERVER)]
    pub max_connections: usize,

    /// For HTTPS: PEM file of the server certificate and its chain; reloaded on SIGHUP.
    #[arg(long, env = "ROWLOCK_TLS_CERT", value_name = "FILE", global = true, hide_env_values = true, help_heading = heading::ACCESS)]
    pub tls_cert: Option<PathBuf>,

    /// For HTTPS: PEM file of the server certificate's key; reloaded on SIGHUP.
    #[arg(long, env = "ROWLOCK_TLS_KEY", value_name = "FILE", global = true, hide_env_values = true, help_heading = heading::ACCESS)]
    pub tls_key: Option<PathBuf>,

    /// Origins whose pages may call this service from a browser (CORS), separated by commas, such as `https://app.example.com`;
    /// `*` for all. Unset: none.
    #[arg(long, env = "ROWLOCK_CORS_ORIGINS", value_name = "ORIGINS", value_parser = values::parse_origins, global = true, hide_env_values = true, help_heading = heading::ACCESS)]
    pub cors_origins: Option<Origins>,

    /// on: data cells that a spreadsheet would run as formulas get an apostrophe in front.
    #[arg(
        long,
        env = "ROWLOCK_FORMULA_GUARD",
        value_name = "on|off",
        default_value = "off",
        global = true,
        hide_env_values = true,
        hide_possible_values = true,
        help_heading = heading::FILE
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
        hide_possible_values = true,
        help_heading = heading::FILE
    )]
    pub unlocked_volume: UnlockedVolume,

    /// How long a client may take no byte of its answer before its connection is closed. Only tests change it.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = values::parse_lock_ttl, global = true, hide = true, help_heading = heading::SERVER)]
    pub write_timeout: Duration,

    /// After SIGTERM, how long to keep serving with /readyz failing, so that a load balancer notices (0s to 1h).
    #[arg(long, env = "ROWLOCK_DRAIN_DELAY", value_name = "DURATION", default_value = "0s", value_parser = values::parse_drain_delay, global = true, hide_env_values = true, help_heading = heading::SERVER)]
    pub drain_delay: Duration,

    /// After the drain delay, how long accepted requests may take to finish (0s to 1h).
    #[arg(long, env = "ROWLOCK_GRACE", value_name = "DURATION", default_value = "30s", value_parser = values::parse_grace, global = true, hide_env_values = true, help_heading = heading::SERVER)]
    pub grace: Duration,

    /// text or json; RUST_LOG sets the level.
    #[arg(
        long,
        env = "ROWLOCK_LOG_FORMAT",
        value_name = "text|json",
        default_value = "text",
        global = true,
        hide_env_values = true,
        hide_possible_values = true,
        help_heading = heading::PROCESS
    )]
    pub log_format: LogFormat,
}

/// Reads a variable that has no flag. An empty value counts as unset.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl Config {
    /// The replica's name; a new random one on each call if none is set.
    pub fn replica_name(&self) -> String {
        self.replica.clone().unwrap_or_else(|| values::random_replica(&gethostname::gethostname().to_string_lossy()))
    }

    /// The lock's key in Redis; derived from the file's name if none is set.
    pub fn lock_key(&self) -> String {
        self.lock_key.clone().unwrap_or_else(|| {
            let file = self.csv.file_name().unwrap_or(self.csv.as_os_str()).to_string_lossy();
            format!("{{rowlock:{file}}}")
        })
    }
}
