//! The values of settings: their types, and how they are parsed. Each error says what is accepted.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU32,
    path::PathBuf,
    time::Duration,
};

use bytesize::ByteSize;
use clap::ValueEnum;

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

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSource(hidden)")
    }
}

/// Where to serve. Host names are resolved at the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// An address of an interface.
    Ip(SocketAddr),
    /// A host name and a port.
    Name(String, u16),
    /// This port of all interfaces.
    All(u16),
}

impl ListenAddress {
    /// The port; 0 stands for a free one.
    pub fn port(&self) -> u16 {
        match self {
            Self::Ip(address) => address.port(),
            Self::Name(_, port) | Self::All(port) => *port,
        }
    }

    /// The host and port under which this host reaches the address, as in a URL.
    pub fn local_authority(&self) -> String {
        match self {
            Self::Ip(address) => {
                let ip = match address.ip() {
                    IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
                    IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
                    ip => ip,
                };
                SocketAddr::new(ip, address.port()).to_string()
            }
            Self::Name(..) => self.to_string(),
            Self::All(port) => format!("{}:{port}", Ipv4Addr::LOCALHOST),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
            Self::All(port) => write!(f, ":{port}"),
        }
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

/// Parses `10s`, `250ms`, `1m 30s` within bounds.
fn parse_duration(text: &str, min: Duration, max: Duration) -> Result<Duration, String> {
    let accepted = || {
        let is_number = !text.trim().is_empty() && text.trim().parse::<f64>().is_ok_and(f64::is_finite);
        let no_unit = || format!(" ({0} has no unit; write {0}s or {0}ms)", text.trim());
        let hint = if is_number { no_unit() } else { String::new() };
        format!("a duration from {} to {}, such as 10s or 250ms{hint}", duration_text(min), duration_text(max))
    };
    let parsed: jiff::SignedDuration = text.parse().map_err(|_| accepted())?;
    let duration = Duration::try_from(parsed).map_err(|_| accepted())?;
    if (min..=max).contains(&duration) { Ok(duration) } else { Err(accepted()) }
}

/// A duration as a setting is written: `100ms`, `1h`.
fn duration_text(duration: Duration) -> String {
    jiff::SignedDuration::try_from(duration).map_or_else(|_| "no limit".to_owned(), |duration| format!("{duration:#}"))
}

const HOUR: Duration = Duration::from_secs(3600);

pub(super) fn parse_lock_ttl(text: &str) -> Result<Duration, String> {
    parse_duration(text, Duration::from_millis(100), HOUR)
}

pub(super) fn parse_wait_timeout(text: &str) -> Result<Duration, String> {
    parse_duration(text, Duration::from_millis(1), HOUR)
}

pub(super) fn parse_max_sleep(text: &str) -> Result<Duration, String> {
    parse_duration(text, Duration::ZERO, 24 * HOUR)
}

pub(super) fn parse_drain_delay(text: &str) -> Result<Duration, String> {
    parse_duration(text, Duration::ZERO, HOUR)
}

pub(super) fn parse_grace(text: &str) -> Result<Duration, String> {
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
    let accepted = || format!("a size from {} to {}, such as 64MiB or 4096", size_text(min), size_text(max));
    let size: ByteSize = text.parse().map_err(|_| accepted())?;
    if !(min..=max).contains(&size) {
        return Err(accepted());
    }
    usize::try_from(size.as_u64()).map_err(|_| accepted())
}

/// A size as a setting is written: `64KiB`. The bounds are whole numbers of their unit.
fn size_text(size: ByteSize) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let (unit, bits) = units.into_iter().find(|(_, bits)| size.as_u64().trailing_zeros() >= *bits).unwrap_or(("B", 0));
    format!("{}{unit}", size.as_u64() >> bits)
}

pub(super) fn parse_queue_bytes(text: &str) -> Result<usize, String> {
    parse_size(text, ByteSize::kib(64), ByteSize::gib(16))
}

pub(super) fn parse_body_limit(text: &str) -> Result<usize, String> {
    parse_size(text, ByteSize::kib(1), ByteSize::mib(64))
}

pub(super) fn parse_batch_limit(text: &str) -> Result<usize, String> {
    parse_size(text, ByteSize::kib(1), ByteSize::gib(1))
}

/// Rounds down to whole pages, because records start on page boundaries.
pub(super) fn parse_journal_bytes(text: &str) -> Result<usize, String> {
    Ok(parse_size(text, ByteSize::mib(1), ByteSize::gib(4))? / 4096 * 4096)
}

pub(super) fn parse_keys(text: &str) -> Result<usize, String> {
    let keys = text.parse().ok().filter(|keys| (1..=1 << 24).contains(keys));
    keys.ok_or_else(|| "a whole number from 1 to 16777216".to_owned())
}

pub(super) fn parse_queue_rows(text: &str) -> Result<usize, String> {
    let rows = text.parse().ok().filter(|rows| (1..=1 << 24).contains(rows));
    rows.ok_or_else(|| "a whole number from 1 to 16777216".to_owned())
}

pub(super) fn parse_address(text: &str) -> Result<ListenAddress, String> {
    let accepted = "a host and a port, such as 127.0.0.1:8080, [::1]:8080, localhost:8080, or :8080 for all interfaces";
    if let Ok(address) = text.parse() {
        return Ok(ListenAddress::Ip(address));
    }
    let (name, port) = text.rsplit_once(':').ok_or(accepted)?;
    let is_port = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let port = port.parse().ok().filter(|_| is_port).ok_or(accepted)?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    // Digits and dots alone are an address with a fault, and no name.
    let is_number = name.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    match name {
        "" => Ok(ListenAddress::All(port)),
        name if name.chars().all(is_name) && !is_number => Ok(ListenAddress::Name(name.to_owned(), port)),
        _ => Err(accepted.to_owned()),
    }
}

pub(super) fn parse_connections(text: &str) -> Result<usize, String> {
    let connections = text.parse().ok().filter(|connections| (1..=1_000_000).contains(connections));
    connections.ok_or_else(|| "a whole number from 1 to 1000000".to_owned())
}

pub(super) fn parse_rate_limit(text: &str) -> Result<RateLimit, String> {
    let (rate, burst) = text.split_once(':').unwrap_or((text, text));
    let number = |text: &str| text.parse().ok().filter(|&number: &NonZeroU32| number.get() <= 1_000_000);
    match (number(rate), number(burst)) {
        (Some(per_second), Some(burst)) => Ok(RateLimit { per_second, burst }),
        _ => Err("whole numbers from 1 to 1000000: RATE or RATE:BURST, such as 100 or 100:500".to_owned()),
    }
}

/// Parses origins as browsers write them in `Origin`: in lower case, without a path or a default port.
pub(super) fn parse_origins(text: &str) -> Result<Origins, String> {
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

/// The most bytes of a replica's name: the keys file keeps as many.
const REPLICA_BYTES_MAX: usize = 64;

pub(super) fn parse_replica(text: &str) -> Result<String, String> {
    parse_name(text, REPLICA_BYTES_MAX)
}

/// A name from the host's and a random part. A host's name may be as long as a replica's, and may have other characters.
pub(super) fn random_replica(host: &str) -> String {
    let random = uuid::Uuid::new_v4().simple().to_string();
    let suffix = format!("-{}", &random[..6]);
    let printable = host.chars().map(|character| if character.is_ascii_graphic() { character } else { '_' });
    // guard: replica_name_fits: a replica's name comes back whole in a replay
    printable.take(REPLICA_BYTES_MAX - suffix.len()).collect::<String>() + &suffix
}

pub(super) fn parse_lock_key(text: &str) -> Result<String, String> {
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
    fn random_replica_names_are_valid_for_any_host() {
        for host in
            ["", "h", "a host", "häuser.example", "\u{fffd}\0\n\"", &"x".repeat(57), &"x".repeat(64), &"ä".repeat(255)]
        {
            let names = [random_replica(host), random_replica(host)];
            assert_ne!(names[0], names[1], "{host:?}");
            for name in names {
                assert_eq!(parse_replica(&name), Ok(name.clone()), "{host:?}");
            }
        }
        assert!(random_replica("host").starts_with("host-"));
        assert!(parse_replica(&"x".repeat(64)).is_ok() && parse_replica(&"x".repeat(65)).is_err());
    }

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
    fn number_without_unit_is_told_its_units() {
        for (text, hint) in [("10", "10 has no unit; write 10s or 10ms"), (" 2.5 ", "write 2.5s or 2.5ms")] {
            let error = parse_wait_timeout(text).expect_err("refused");
            assert!(error.contains(hint), "{error}");
        }
        for text in ["ten", "", "2h", "inf", "10x"] {
            let error = parse_wait_timeout(text).expect_err("refused");
            assert!(!error.contains("no unit"), "{text:?}: {error}");
        }
    }

    #[test]
    fn bounds_are_shown_as_settings_are_written() {
        for (error, bounds) in [
            (parse_max_sleep("x").err(), "from 0s to 24h,"),
            (parse_lock_ttl("x").err(), "from 100ms to 1h,"),
            (parse_queue_bytes("x").err(), "from 64KiB to 16GiB,"),
            (parse_journal_bytes("x").err(), "from 1MiB to 4GiB,"),
        ] {
            let error = error.expect("refused");
            assert!(error.contains(bounds), "{error}");
        }
    }

    #[test]
    fn listen_address_is_an_ip_a_name_or_a_port_alone() {
        let ip = |text: &str| ListenAddress::Ip(text.parse().expect("an address"));
        let name = |name: &str, port| ListenAddress::Name(name.to_owned(), port);
        for (text, expected, local) in [
            ("127.0.0.1:8080", ip("127.0.0.1:8080"), "127.0.0.1:8080"),
            ("0.0.0.0:80", ip("0.0.0.0:80"), "127.0.0.1:80"),
            ("[::]:80", ip("[::]:80"), "[::1]:80"),
            ("[::1]:0", ip("[::1]:0"), "[::1]:0"),
            ("localhost:8080", name("localhost", 8080), "localhost:8080"),
            ("host-1.example:1", name("host-1.example", 1), "host-1.example:1"),
            (":8080", ListenAddress::All(8080), "127.0.0.1:8080"),
        ] {
            let address = parse_address(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!((&address, &*address.local_authority(), &*address.to_string()), (&expected, local, text));
        }
        for wrong in [
            "",
            "localhost",
            "8080",
            "localhost:",
            "localhost:x",
            "a:65536",
            "a:+1",
            "::1:80",
            "1.2.3:80",
            "a b:1",
            "http://a:1",
        ] {
            assert!(parse_address(wrong).is_err(), "{wrong:?}");
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
