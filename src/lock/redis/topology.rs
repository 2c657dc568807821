//! Redis's address: a single server, sentinels that know the primary, or a cluster; each with or without TLS.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, RedisConnectionInfo, RedisResult, TlsCertificates,
    TlsMode,
    aio::PubSub,
    cluster::{ClusterClient, ClusterClientBuilder},
    sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType},
};
use tokio::sync::Mutex;

use crate::lock::{
    error::OpenError,
    outage::reason_of,
    redis::address::{ServerList, connection_info},
    types::TlsFiles,
};

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

/// What an address names.
pub(super) struct Endpoint {
    pub(super) topology: Topology,
    /// The servers, without credentials.
    pub(super) name: String,
    /// Passwords, as they are and as they are written in the address: no message may repeat them.
    pub(super) secrets: Vec<String>,
}

impl Endpoint {
    /// Parses an address. It does not connect.
    pub(super) fn parse(url: &str, files: &TlsFiles) -> Result<Self, OpenError> {
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        let tls = scheme.starts_with("rediss");
        let certificates = if tls { Some(read_certificates(files)?) } else { None };
        match scheme {
            "redis" | "redis+unix" | "unix" | "rediss" => Self::server(url, certificates),
            "redis-sentinel" | "rediss-sentinel" => Self::sentinel(&ServerList::parse(rest, tls, 26379)?, certificates),
            "redis-cluster" | "rediss-cluster" => Self::cluster(&ServerList::parse(rest, tls, 6379)?, certificates),
            _ => Err(OpenError::Address("unknown scheme")),
        }
    }

    fn server(url: &str, certificates: Option<TlsCertificates>) -> Result<Self, OpenError> {
        let info = connection_info(url)?;
        let name = match info.addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } if host.contains(':') => {
                format!("[{host}]:{port}")
            }
            address => address.to_string(),
        };
        let secrets = secrets_of(info.redis_settings());
        let topology = Topology::Single(Box::new(open_client(info, certificates)?));
        Ok(Self { topology, name, secrets })
    }

    fn sentinel(servers: &ServerList<'_>, certificates: Option<TlsCertificates>) -> Result<Self, OpenError> {
        let master =
            servers.master.as_ref().ok_or(OpenError::Address("missing #master, the name that the sentinels use"))?;
        let invalid = |_| OpenError::Address("invalid address of a server");
        let settings = servers.redis_settings()?;
        let sentinels = servers.hosts.iter().map(|(host, port)| {
            let (host, port) = (host.trim_start_matches('[').trim_end_matches(']').to_owned(), *port);
            if servers.tls {
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
        if let Some(password) = &servers.sentinel_password {
            builder = builder.set_client_to_sentinel_password(password);
        }
        if let Some(certificates) = certificates {
            builder = builder
                .set_client_to_redis_tls_mode(TlsMode::Secure)
                .set_client_to_redis_certificates(certificates.clone())
                .set_client_to_sentinel_tls_mode(TlsMode::Secure)
                .set_client_to_sentinel_certificates(certificates);
        }
        let topology = Topology::Sentinel(Arc::new(Mutex::new(builder.build().map_err(invalid)?)));
        let secrets = secrets_of(&settings).into_iter().chain(servers.sentinel_password.clone()).collect();
        Ok(Self { topology, name: format!("the sentinels {}", servers.name()), secrets })
    }

    fn cluster(servers: &ServerList<'_>, certificates: Option<TlsCertificates>) -> Result<Self, OpenError> {
        if !matches!(servers.db, "" | "0") || servers.master.is_some() || servers.sentinel_password.is_some() {
            return Err(OpenError::Address("a cluster takes no database, #master or sentinel_password"));
        }
        let infos = servers.hosts.iter().map(|host| connection_info(&servers.url_of(host, "")));
        let infos = infos.collect::<Result<Vec<_>, _>>()?;
        let secrets = secrets_of(infos[0].redis_settings());
        let nodes = infos.iter().map(|info| open_client(info.clone(), certificates.clone()));
        let nodes = nodes.collect::<Result<_, _>>()?;
        let mut builder =
            ClusterClientBuilder::new(infos).connection_timeout(NODE_TIMEOUT).response_timeout(NODE_TIMEOUT);
        if let Some(certificates) = certificates {
            builder = builder.certs(certificates);
        }
        let cluster = builder.build().map_err(|_| OpenError::Address("invalid address of a server"))?;
        let topology = Topology::Cluster { cluster: Box::new(cluster), nodes };
        Ok(Self { topology, name: servers.name(), secrets })
    }
}

/// Passwords that a message must not repeat.
fn secrets_of(settings: &RedisConnectionInfo) -> Vec<String> {
    let password = settings.password().map(str::to_owned);
    let encoded = password.as_ref().map(|password| utf8_percent_encode(password, NON_ALPHANUMERIC).to_string());
    password.into_iter().chain(encoded).collect()
}

impl Topology {
    pub(super) fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster { .. })
    }

    /// What the server answers to the user name and password, which the client does not tell; `None` if they are accepted, or not known.
    pub(super) async fn auth_answer(&self) -> Option<String> {
        let client = match self {
            Self::Single(client) => client,
            Self::Cluster { nodes, .. } => nodes.first()?,
            Self::Sentinel(_) => return None,
        };
        let info = client.get_connection_info();
        let settings = info.redis_settings();
        let (user, password) = (settings.username(), settings.password()?);
        let anonymous = RedisConnectionInfo::default().set_skip_set_lib_name();
        let client = Client::open(info.clone().set_redis_settings(anonymous)).ok()?;
        let mut connection = client.get_multiplexed_async_connection().await.ok()?;
        let answer: RedisResult<()> = redis::cmd("AUTH").arg(user).arg(password).query_async(&mut connection).await;
        answer.err().map(|e| reason_of(&e))
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

fn open_client(info: ConnectionInfo, certificates: Option<TlsCertificates>) -> Result<Client, OpenError> {
    let client = match certificates {
        Some(certificates) => Client::build_with_tls(info, certificates),
        None => Client::open(info),
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

#[cfg(test)]
mod tests {
    use super::*;

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
            "redis://:hush@a?hush=1",
            "redis://:hush@a/x",
            "redis://hush@a",
            "redis-cluster://hush@a",
            "redis-sentinel://hush@a#m",
        ] {
            let refused =
                Endpoint::parse(invalid, &TlsFiles::default()).err().unwrap_or_else(|| panic!("{invalid} is accepted"));
            assert!(!refused.to_string().contains("hush"), "{refused}");
        }
        for valid in ["redis-cluster://:p@a:1,b:2", "rediss-sentinel://a#m", "rediss://a:1", "rediss-cluster://a:1/0"] {
            assert!(Endpoint::parse(valid, &TlsFiles::default()).is_ok(), "{valid}");
        }
    }
}
