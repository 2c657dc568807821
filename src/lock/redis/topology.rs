//! Redis's address: a single server, sentinels that know the primary, or a cluster; each with or without TLS.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use percent_encoding::percent_decode_str;
use redis::{
    Client, ClientTlsConfig, ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo, RedisResult, TlsCertificates,
    TlsMode,
    aio::PubSub,
    cluster::{ClusterClient, ClusterClientBuilder},
    sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType},
};
use tokio::sync::Mutex;

use crate::lock::{error::OpenError, types::TlsFiles};

/// The longest time for one call to Redis, and for one connection to a server. The client's defaults (500 ms and 1 s) are too short for
/// a busy server.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// The same for one node of a cluster: short enough to try another node within one call.
const NODE_TIMEOUT: Duration = Duration::from_millis(700);

/// Clients for the servers of one address.
pub(super) enum Topology {
    Single(Box<Client>),
    Sentinel(Arc<Mutex<SentinelClient>>),
    Cluster {
        cluster: Box<ClusterClient>,
        /// For subscriptions, to any node: a cluster forwards messages to all nodes.
        nodes: Vec<Client>,
    },
}

/// An address that lists several servers: `[user:pass@]host:port,host:port[/db][?query][#master]`.
struct ServerList<'a> {
    tls: bool,
    /// `user:pass@`, as it is written in the address.
    credentials: &'a str,
    hosts: Vec<(String, u16)>,
    db: &'a str,
    master: Option<String>,
    sentinel_password: Option<String>,
}

impl Topology {
    /// Parses an address. It does not connect.
    pub(super) fn parse(url: &str, files: &TlsFiles) -> Result<Self, OpenError> {
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        let tls = scheme.starts_with("rediss");
        let certificates = if tls { Some(read_certificates(files)?) } else { None };
        match scheme {
            "redis" | "redis+unix" | "unix" => Ok(Self::Single(Box::new(open_client(url, None)?))),
            "rediss" => Ok(Self::Single(Box::new(open_client(url, certificates)?))),
            "redis-sentinel" | "rediss-sentinel" => ServerList::parse(rest, tls, 26379)?.sentinel(certificates),
            "redis-cluster" | "rediss-cluster" => ServerList::parse(rest, tls, 6379)?.cluster(certificates),
            _ => Err(OpenError::Address("unknown scheme")),
        }
    }

    /// Opens a connection for subscriptions only.
    pub(super) async fn subscriber(&self) -> RedisResult<PubSub> {
        match self {
            Self::Single(client) => client.get_async_pubsub().await,
            Self::Sentinel(sentinels) => {
                let client = sentinels.lock().await.async_get_client().await?;
                client.get_async_pubsub().await
            }
            Self::Cluster { nodes, .. } => {
                let mut last = None;
                for node in nodes {
                    match node.get_async_pubsub().await {
                        Ok(subscriber) => return Ok(subscriber),
                        Err(e) => last = Some(e),
                    }
                }
                Err(last.unwrap_or_else(|| (redis::ErrorKind::InvalidClientConfig, "no nodes").into()))
            }
        }
    }
}

/// Replaces the client's error, which repeats parts of the address and may show its password.
fn open_client(url: &str, certificates: Option<TlsCertificates>) -> Result<Client, OpenError> {
    let client = match certificates {
        Some(certificates) => Client::build_with_tls(url, certificates),
        None => Client::open(url),
    };
    client.map_err(|_| OpenError::Address("invalid address"))
}

fn read_certificates(files: &TlsFiles) -> Result<TlsCertificates, OpenError> {
    // It fails if another module has installed a provider, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let read = |variable, path: &PathBuf| {
        fs::read(path).map_err(|source| OpenError::Certificate { variable, path: path.clone(), source })
    };
    let root_cert = files.ca.as_ref().map(|path| read("ROWLOCK_REDIS_CA (--redis-ca)", path)).transpose()?;
    let client_tls = match (&files.cert, &files.key) {
        (Some(cert), Some(key)) => Some(ClientTlsConfig {
            client_cert: read("ROWLOCK_REDIS_CERT (--redis-cert)", cert)?,
            client_key: read("ROWLOCK_REDIS_KEY (--redis-key)", key)?,
        }),
        (None, None) => None,
        _ => return Err(OpenError::HalfACertificate),
    };
    Ok(TlsCertificates { client_tls, root_cert })
}

impl<'a> ServerList<'a> {
    fn parse(rest: &'a str, tls: bool, default_port: u16) -> Result<Self, OpenError> {
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
        for (name, value) in
            query.split('&').filter(|part| !part.is_empty()).map(|part| part.split_once('=').unwrap_or((part, "")))
        {
            match name {
                "sentinel_password" => sentinel_password = Some(decode(value)?),
                _ => return Err(OpenError::Address("unknown option; the only one is sentinel_password")),
            }
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

    fn url_of(&self, (host, port): &(String, u16), db: &str) -> String {
        let scheme = if self.tls { "rediss" } else { "redis" };
        format!("{scheme}://{}{host}:{port}/{db}", self.credentials)
    }

    /// User, password and database, parsed by the client.
    fn redis_settings(&self) -> Result<RedisConnectionInfo, OpenError> {
        let info = self.url_of(&self.hosts[0], self.db).into_connection_info();
        Ok(info.map_err(|_| OpenError::Address("invalid address"))?.redis_settings().clone())
    }

    fn sentinel(self, certificates: Option<TlsCertificates>) -> Result<Topology, OpenError> {
        let master =
            self.master.as_ref().ok_or(OpenError::Address("missing #master, the name that the sentinels use"))?;
        let invalid = |_| OpenError::Address("invalid address of a server");
        let settings = self.redis_settings()?;
        let sentinels = self.hosts.iter().map(|(host, port)| {
            let (host, port) = (host.trim_start_matches('[').trim_end_matches(']').to_owned(), *port);
            if self.tls {
                ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
            } else {
                ConnectionAddr::Tcp(host, port)
            }
        });
        let mut builder = SentinelClientBuilder::new(sentinels, master, SentinelServerType::Master).map_err(invalid)?;
        builder = builder.set_client_to_redis_db(settings.db());
        if let Some(user) = settings.username() {
            builder = builder.set_client_to_redis_username(user);
        }
        if let Some(password) = settings.password() {
            builder = builder.set_client_to_redis_password(password);
        }
        if let Some(password) = &self.sentinel_password {
            builder = builder.set_client_to_sentinel_password(password);
        }
        if let Some(certificates) = certificates {
            builder = builder
                .set_client_to_redis_tls_mode(TlsMode::Secure)
                .set_client_to_redis_certificates(certificates.clone())
                .set_client_to_sentinel_tls_mode(TlsMode::Secure)
                .set_client_to_sentinel_certificates(certificates);
        }
        Ok(Topology::Sentinel(Arc::new(Mutex::new(builder.build().map_err(invalid)?))))
    }

    fn cluster(self, certificates: Option<TlsCertificates>) -> Result<Topology, OpenError> {
        if !matches!(self.db, "" | "0") || self.master.is_some() || self.sentinel_password.is_some() {
            return Err(OpenError::Address("a cluster takes no database, #master or sentinel_password"));
        }
        let urls: Vec<String> = self.hosts.iter().map(|host| self.url_of(host, "")).collect();
        let nodes = urls.iter().map(|url| open_client(url, certificates.clone())).collect::<Result<_, _>>()?;
        let mut builder =
            ClusterClientBuilder::new(urls).connection_timeout(NODE_TIMEOUT).response_timeout(NODE_TIMEOUT);
        if let Some(certificates) = certificates {
            builder = builder.certs(certificates);
        }
        let cluster = builder.build().map_err(|_| OpenError::Address("invalid address of a server"))?;
        Ok(Topology::Cluster { cluster: Box::new(cluster), nodes })
    }
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
        assert_eq!((servers.db, servers.master.as_deref()), ("2", Some("my-master")));
        assert_eq!(servers.sentinel_password.as_deref(), Some("s#t"));
        let settings = servers.redis_settings().unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((settings.username(), settings.password(), settings.db()), (Some("user"), Some("p@ss"), 2));
        let late = ServerList::parse("a:1#m?sentinel_password=x", false, 26379).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((late.master.as_deref(), late.sentinel_password.as_deref()), (Some("m"), Some("x")));
    }

    #[test]
    fn invalid_address_is_refused_and_not_repeated() {
        for invalid in [
            "hush",
            "http://:hush@a",
            "redis-sentinel://:hush@a:1",
            "redis-sentinel://:hush@a:x#m",
            "redis-cluster://:hush@",
            "redis-cluster://:hush@a:1/3",
            "redis-cluster://:hush@a:1#m",
            "redis-sentinel://:hush@a:1/x#m",
            "redis-sentinel://:hush@a:1?hush=1#m",
        ] {
            let refused =
                Topology::parse(invalid, &TlsFiles::default()).err().unwrap_or_else(|| panic!("{invalid} is accepted"));
            assert!(!refused.to_string().contains("hush"), "{refused}");
        }
        for valid in ["redis-cluster://:p@a:1,b:2", "rediss-sentinel://a#m", "rediss://a:1", "rediss-cluster://a:1/0"] {
            assert!(Topology::parse(valid, &TlsFiles::default()).is_ok(), "{valid}");
        }
    }
}
