//! Every kind of Redis behind one connection: one server, a primary found by sentinels, a cluster; each with or without TLS.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use deadpool::managed::{Manager, Metrics, RecycleResult};
use percent_encoding::percent_decode_str;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, IntoConnectionInfo, Pipeline,
    RedisConnectionInfo, RedisError, RedisFuture, RedisResult, TlsCertificates, TlsMode, Value,
    aio::{ConnectionLike, MultiplexedConnection, PubSub},
    cluster::{ClusterClient, ClusterClientBuilder},
    cluster_async::ClusterConnection,
    sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType},
};
use tokio::sync::Mutex;

use crate::lock::OpenError;
use crate::metrics::{Counter, Meter};

/// The longest that one call to Redis, or a new connection, may take. The client's own defaults are shorter and unspoken.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// The same for one node of a cluster, so that another can be asked within one call.
const NODE_TIMEOUT: Duration = Duration::from_millis(700);
/// A cluster's connection is several, one after the other where some hang.
pub(crate) const CREATE_TIMEOUT: Duration = Duration::from_secs(5);

/// Files in PEM, for `rediss…`.
#[derive(Debug, Clone, Default)]
pub struct TlsFiles {
    /// Certificates that the server's must be signed by; the system's own unless given.
    pub ca: Option<PathBuf>,
    /// Our own certificate, where the server asks for one.
    pub cert: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
}

/// Where connections come from.
pub(crate) enum Server {
    Single(Box<Client>),
    /// Asked again for each connection: the primary may have changed.
    Sentinel(Box<Mutex<SentinelClient>>),
    /// Any node will do to subscribe: a message goes to all of them.
    Cluster {
        cluster: Box<ClusterClient>,
        nodes: Vec<Client>,
    },
}

/// An address that lists several servers: `[user:pass@]host:port,host:port[/db][?query][#master]`.
struct Servers<'a> {
    tls: bool,
    /// `user:pass@`, as it stands in an address.
    credentials: &'a str,
    hosts: Vec<(String, u16)>,
    db: &'a str,
    master: Option<String>,
    sentinel_password: Option<String>,
}

impl Server {
    /// Reads an address. Nothing is connected yet.
    pub(crate) fn parse(url: &str, files: &TlsFiles) -> Result<Self, OpenError> {
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        let tls = scheme.starts_with("rediss");
        let certificates = if tls { Some(read_certificates(files)?) } else { None };
        match scheme {
            "redis" | "redis+unix" | "unix" => Ok(Self::Single(Box::new(open(url, None)?))),
            "rediss" => Ok(Self::Single(Box::new(open(url, certificates)?))),
            "redis-sentinel" | "rediss-sentinel" => Servers::parse(rest, tls, 26379)?.sentinel(certificates),
            "redis-cluster" | "rediss-cluster" => Servers::parse(rest, tls, 6379)?.cluster(certificates),
            _ => Err(OpenError::Address("not a scheme that Redis is known by")),
        }
    }

    fn calls() -> AsyncConnectionConfig {
        AsyncConnectionConfig::new().set_connection_timeout(Some(CALL_TIMEOUT)).set_response_timeout(Some(CALL_TIMEOUT))
    }

    async fn connect(&self) -> RedisResult<Connection> {
        let config = Self::calls();
        Ok(match self {
            Self::Single(client) => {
                Connection::Single(client.get_multiplexed_async_connection_with_config(&config).await?)
            }
            Self::Sentinel(sentinels) => {
                Connection::Single(sentinels.lock().await.get_async_connection_with_config(&config).await?)
            }
            Self::Cluster { cluster, .. } => Connection::Cluster(cluster.get_async_connection().await?),
        })
    }

    /// A connection for subscriptions alone.
    pub(crate) async fn subscriber(&self) -> RedisResult<PubSub> {
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
                Err(last.unwrap_or_else(|| (redis::ErrorKind::InvalidClientConfig, "no node").into()))
            }
        }
    }
}

/// What the pool makes its connections with.
pub(crate) struct Connections {
    server: Arc<Server>,
    meter: Arc<Meter>,
}

impl Connections {
    pub(crate) fn new(server: &Arc<Server>, meter: &Arc<Meter>) -> Self {
        Self { server: Arc::clone(server), meter: Arc::clone(meter) }
    }
}

impl Manager for Connections {
    type Type = Connection;
    type Error = RedisError;

    /// Boxed, or every call would carry room for the connecting that hardly one of them does.
    async fn create(&self) -> Result<Connection, RedisError> {
        let connection = Box::pin(self.server.connect()).await?;
        self.meter.count(Counter::ConnectionsOpened);
        Ok(connection)
    }

    /// No question whether it still works, which would cost each call a second way there and back, and which a demoted or
    /// loading server answers gladly: a connection that failed is thrown away by who used it.
    async fn recycle(&self, _: &mut Connection, _: &Metrics) -> RecycleResult<RedisError> {
        Ok(())
    }
}

/// A connection to whatever kind of Redis it is.
pub(crate) enum Connection {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Single(connection) => connection.req_packed_command(cmd),
            Self::Cluster(connection) => connection.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Single(connection) => connection.req_packed_commands(pipeline, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Single(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}

/// The client's own errors repeat parts of the address, password and all: they are not passed on.
fn open(url: &str, certificates: Option<TlsCertificates>) -> Result<Client, OpenError> {
    let client = match certificates {
        Some(certificates) => Client::build_with_tls(url, certificates),
        None => Client::open(url),
    };
    client.map_err(|_| OpenError::Address("not an address of that form"))
}

fn read_certificates(files: &TlsFiles) -> Result<TlsCertificates, OpenError> {
    // Another part of the process may have installed one before.
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

impl<'a> Servers<'a> {
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
                _ => return Err(OpenError::Address("an option that is not known; there is sentinel_password")),
            }
        }
        Ok(Self {
            tls,
            credentials,
            hosts: hosts.ok_or(OpenError::Address("a server that is not host:port"))?,
            db,
            master: fragment.filter(|master| !master.is_empty()).map(decode).transpose()?,
            sentinel_password,
        })
    }

    fn url_of(&self, (host, port): &(String, u16), db: &str) -> String {
        let scheme = if self.tls { "rediss" } else { "redis" };
        format!("{scheme}://{}{host}:{port}/{db}", self.credentials)
    }

    /// User, password and database, as the client reads them.
    fn settings(&self) -> Result<RedisConnectionInfo, OpenError> {
        let info = self.url_of(&self.hosts[0], self.db).into_connection_info();
        Ok(info.map_err(|_| OpenError::Address("not an address of that form"))?.redis_settings().clone())
    }

    fn sentinel(self, certificates: Option<TlsCertificates>) -> Result<Server, OpenError> {
        let master = self.master.as_ref().ok_or(OpenError::Address("no #master that the sentinels know"))?;
        let wrong = |_| OpenError::Address("not an address to connect to");
        let settings = self.settings()?;
        let sentinels = self.hosts.iter().map(|(host, port)| {
            let (host, port) = (host.trim_start_matches('[').trim_end_matches(']').to_owned(), *port);
            if self.tls {
                ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
            } else {
                ConnectionAddr::Tcp(host, port)
            }
        });
        let mut builder = SentinelClientBuilder::new(sentinels, master, SentinelServerType::Master).map_err(wrong)?;
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
        Ok(Server::Sentinel(Box::new(Mutex::new(builder.build().map_err(wrong)?))))
    }

    fn cluster(self, certificates: Option<TlsCertificates>) -> Result<Server, OpenError> {
        if !matches!(self.db, "" | "0") || self.master.is_some() || self.sentinel_password.is_some() {
            return Err(OpenError::Address("a cluster has neither a database nor a master to name"));
        }
        let urls: Vec<String> = self.hosts.iter().map(|host| self.url_of(host, "")).collect();
        let nodes = urls.iter().map(|url| open(url, certificates.clone())).collect::<Result<_, _>>()?;
        let mut builder =
            ClusterClientBuilder::new(urls).connection_timeout(NODE_TIMEOUT).response_timeout(NODE_TIMEOUT);
        if let Some(certificates) = certificates {
            builder = builder.certs(certificates);
        }
        let cluster = builder.build().map_err(|_| OpenError::Address("not an address to connect to"))?;
        Ok(Server::Cluster { cluster: Box::new(cluster), nodes })
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
    Ok(decoded.map_err(|_| OpenError::Address("not UTF-8 once decoded"))?.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_several_servers_are_read_to_the_last_part() {
        let servers = Servers::parse("user:p%40ss@a:1,b,[::1]:3/2?sentinel_password=s%23t#my%2Dmaster", false, 26379);
        let servers = servers.unwrap_or_else(|e| panic!("{e}"));
        let hosts: Vec<_> = servers.hosts.iter().map(|(host, port)| format!("{host} {port}")).collect();
        assert_eq!(hosts, ["a 1", "b 26379", "[::1] 3"]);
        assert_eq!((servers.db, servers.master.as_deref()), ("2", Some("my-master")));
        assert_eq!(servers.sentinel_password.as_deref(), Some("s#t"));
        let settings = servers.settings().unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((settings.username(), settings.password(), settings.db()), (Some("user"), Some("p@ss"), 2));
        let late = Servers::parse("a:1#m?sentinel_password=x", false, 26379).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((late.master.as_deref(), late.sentinel_password.as_deref()), (Some("m"), Some("x")));
    }

    #[test]
    fn addresses_that_lack_or_name_too_much_are_refused_without_being_repeated() {
        for wrong in [
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
                Server::parse(wrong, &TlsFiles::default()).err().unwrap_or_else(|| panic!("{wrong} is taken"));
            assert!(!refused.to_string().contains("hush"), "{refused}");
        }
        for right in ["redis-cluster://:p@a:1,b:2", "rediss-sentinel://a#m", "rediss://a:1", "rediss-cluster://a:1/0"] {
            assert!(Server::parse(right, &TlsFiles::default()).is_ok(), "{right}");
        }
    }
}
