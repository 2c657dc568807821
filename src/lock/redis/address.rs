//! Reads `REDIS_CONN_STR`. What the Redis client would ignore in silence is refused here.

use std::collections::HashSet;

use percent_encoding::percent_decode_str;
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo};

use crate::lock::error::OpenError;

/// An address that lists several servers: `[user:pass@]host:port,host:port[/db][?query][#master]`.
pub(super) struct ServerList<'a> {
    pub(super) tls: bool,
    /// `user:pass@`, as it is written in the address.
    credentials: &'a str,
    pub(super) hosts: Vec<(String, u16)>,
    pub(super) db: &'a str,
    pub(super) master: Option<String>,
    pub(super) sentinel_password: Option<String>,
}

impl<'a> ServerList<'a> {
    pub(super) fn parse(rest: &'a str, tls: bool, default_port: u16) -> Result<Self, OpenError> {
        let (rest, fragment) = rest.split_once('#').map_or((rest, None), |(rest, fragment)| (rest, Some(fragment)));
        let (fragment, late_query) = match fragment.and_then(|fragment| fragment.split_once('?')) {
            Some((fragment, query)) => (Some(fragment), query),
            None => (fragment, ""),
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, late_query));
        let (authority, db) = rest.split_once('/').unwrap_or((rest, ""));
        let (credentials, hosts) = match authority.rsplit_once('@') {
            Some((credentials, hosts)) => (&authority[..=credentials.len()], hosts),
            None => ("", authority),
        };
        let hosts = hosts.split(',').map(|host| parse_host(host, default_port)).collect::<Option<Vec<_>>>();
        let mut sentinel_password = None;
        for (_, value) in options(query, &["sentinel_password"], SENTINEL_PASSWORD_ONLY)? {
            sentinel_password = Some(decode(value)?);
        }
        Ok(Self {
            tls,
            credentials,
            hosts: hosts.ok_or(OpenError::Address("invalid server; expected host:port"))?,
            db,
            master: fragment.filter(|master| !master.is_empty()).map(decode).transpose()?,
            sentinel_password,
        })
    }

    pub(super) fn url_of(&self, (host, port): &(String, u16), db: &str) -> String {
        let scheme = if self.tls { "rediss" } else { "redis" };
        format!("{scheme}://{}{host}:{port}/{db}", self.credentials)
    }

    /// User, password and database, parsed by the client.
    pub(super) fn redis_settings(&self) -> Result<RedisConnectionInfo, OpenError> {
        Ok(connection_info(&self.url_of(&self.hosts[0], self.db))?.redis_settings().clone())
    }

    /// The servers, without credentials.
    pub(super) fn name(&self) -> String {
        self.hosts.iter().map(|(host, port)| format!("{host}:{port}")).collect::<Vec<_>>().join(",")
    }
}

const SENTINEL_PASSWORD_ONLY: &str = "unknown or repeated option; the only one is sentinel_password";

/// The options of a query. The client ignores those that it does not know, and all but the last of a repeated one.
fn options<'a>(query: &'a str, known: &[&str], refusal: &'static str) -> Result<Vec<(&'a str, &'a str)>, OpenError> {
    let mut seen = HashSet::new();
    let parts = query.split('&').filter(|part| !part.is_empty()).map(|part| part.split_once('=').unwrap_or((part, "")));
    let parts: Vec<_> = parts.collect();
    let all_known = parts.iter().all(|(name, _)| known.contains(name) && seen.insert(*name));
    if all_known { Ok(parts) } else { Err(OpenError::Address(refusal)) }
}

/// Parses the address of one server: `redis://`, `rediss://`, `redis+unix://` or `unix://`.
///
/// The client's error is replaced, because it repeats parts of the address and may show its password.
pub(super) fn connection_info(url: &str) -> Result<ConnectionInfo, OpenError> {
    let info = url.into_connection_info().map_err(|_| OpenError::Address("invalid address"))?;
    let (before, fragment) = url.split_once('#').map_or((url, None), |(before, fragment)| (before, Some(fragment)));
    let (before, query) = before.split_once('?').unwrap_or((before, ""));
    let is_socket = matches!(info.addr(), ConnectionAddr::Unix(_));
    if fragment.is_some() {
        return Err(OpenError::Address("a # is only for the name of a Sentinel's master; write %23 in a password"));
    }
    if is_socket {
        options(
            query,
            &["db", "user", "pass", "protocol"],
            "unknown or repeated option; those of a socket are db, user, pass and protocol",
        )?;
    } else {
        let refusal = "unknown or repeated option; the only one is protocol, and the database stands behind the address, as in redis://host:6379/2";
        options(query, &["protocol"], refusal)?;
        // The client takes `/2/` for 2.
        let path = before.split_once("://").and_then(|(_, rest)| rest.split_once('/')).map_or("", |(_, path)| path);
        if !path.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(OpenError::Address("invalid database; expected a number from 0"));
        }
    }
    let settings = info.redis_settings();
    if settings.db() < 0 {
        return Err(OpenError::Address("invalid database; expected a number from 0"));
    }
    // The client would connect as the default user.
    if settings.username().is_some() && settings.password().is_none() {
        return Err(OpenError::Address("a user without a password"));
    }
    // Its commands would answer before ours, and hide what a server says that refuses the connection.
    let settings = settings.clone().set_skip_set_lib_name();
    Ok(info.set_redis_settings(settings))
}

/// `host`, `host:port`, `[v6]:port`.
fn parse_host(text: &str, default_port: u16) -> Option<(String, u16)> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.ends_with(':') && !port.ends_with(']') => (host, port.parse().ok()?),
        _ => (text, default_port),
    };
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

fn decode(text: &str) -> Result<String, OpenError> {
    let decoded = percent_decode_str(text).decode_utf8();
    Ok(decoded.map_err(|_| OpenError::Address("invalid UTF-8 after percent-decoding"))?.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_of_several_servers_is_parsed_completely() {
        let servers =
            ServerList::parse("user:p%40ss@a:1,b,[::1]:3/2?sentinel_password=s%23t#my%2Dmaster", false, 26379);
        let servers = servers.unwrap_or_else(|e| panic!("{e}"));
        let hosts: Vec<_> = servers.hosts.iter().map(|(host, port)| format!("{host} {port}")).collect();
        assert_eq!(hosts, ["a 1", "b 26379", "[::1] 3"]);
        assert_eq!(servers.name(), "a:1,b:26379,[::1]:3");
        assert_eq!((servers.db, servers.master.as_deref()), ("2", Some("my-master")));
        assert_eq!(servers.sentinel_password.as_deref(), Some("s#t"));
        let settings = servers.redis_settings().unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((settings.username(), settings.password(), settings.db()), (Some("user"), Some("p@ss"), 2));
        let late = ServerList::parse("a:1#m?sentinel_password=x", false, 26379).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((late.master.as_deref(), late.sentinel_password.as_deref()), (Some("m"), Some("x")));
    }

    /// What the client takes without an error, and does not do.
    #[test]
    fn address_part_that_the_client_ignores_is_refused() {
        for (ignored, says) in [
            ("redis://h?db=2", "the database stands behind the address"),
            ("redis://h/1?db=2", "the database stands behind the address"),
            ("rediss://h?ssl_cert_reqs=none", "unknown or repeated option"),
            ("redis://h?timeout=5", "unknown or repeated option"),
            ("redis://h?password=x", "unknown or repeated option"),
            ("redis://h?protocol=2&protocol=3", "unknown or repeated option"),
            ("redis+unix:///s?database=2", "db, user, pass and protocol"),
            ("unix:///s?db=1&db=2", "db, user, pass and protocol"),
            ("redis+unix:///s?user=x", "a user without a password"),
            ("redis://user@h", "a user without a password"),
            ("redis://user:@h", "a user without a password"),
            ("redis://h#master", "a # is only for"),
            ("rediss://h#insecure", "a # is only for"),
            ("redis://h/2/", "invalid database"),
            ("redis://h//", "invalid database"),
            ("redis://h/-1", "invalid database"),
            ("redis+unix:///s?db=-1", "invalid database"),
        ] {
            let refused = connection_info(ignored).err().unwrap_or_else(|| panic!("{ignored} is accepted"));
            assert!(refused.to_string().contains(says), "{ignored}: {refused}");
        }
        for (valid, db) in [
            ("redis://h", 0),
            ("redis://h/", 0),
            ("redis://:p%23@h:1/15?protocol=3", 15),
            ("redis+unix:///s?db=2&user=u&pass=p", 2),
        ] {
            let info = connection_info(valid).unwrap_or_else(|e| panic!("{valid}: {e}"));
            assert_eq!(info.redis_settings().db(), db, "{valid}");
        }
    }
}
