//! Pools of connections to any kind of Redis.
//!
//! `deadpool-redis` makes and checks the connections to a single server. Its managers for sentinels and clusters take neither time-outs
//! nor certificates (version 0.23), so those connections are made here, for the same pool: see docs/adr/0001-deadpool-redis.md.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use deadpool::managed::{Manager, Metrics, Object, Pool, PoolConfig, RecycleError, RecycleResult, Timeouts};
use redis::{
    AsyncConnectionConfig, Cmd, FromRedisValue, Pipeline, RedisError, RedisFuture, ScriptInvocation, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster::ClusterClient,
    cluster_async::ClusterConnection,
    sentinel::SentinelClient,
};
use tokio::time::timeout;

use crate::{
    lock::{
        error::{AttemptError, OpenError},
        redis::topology::{CALL_TIMEOUT, Topology},
    },
    metrics::{Counter, Meter},
};

/// The most connections of one pool. Callers rarely use more than one at the same time.
const CONNECTIONS_MAX: usize = 4;
/// A cluster's connection is several, opened one after the other, and some nodes may hang.
const CREATE_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for the PING of a checkout. It is short, so that a new connection can still be opened within about `CALL_TIMEOUT`.
const RECYCLE_TIMEOUT: Duration = Duration::from_millis(500);

/// When a connection goes back to the pool.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum CheckIn {
    AfterEachCall,
    /// When `return_connection` is called. The calls until then save the PING of a checkout.
    WhenIdle,
}

pub(super) struct ConnectionPool {
    pool: Pool<ConnectionManager>,
    check_in: CheckIn,
    /// The connection that is checked out between two calls, with `CheckIn::WhenIdle`.
    kept: Mutex<Option<Object<ConnectionManager>>>,
    meter: Arc<Meter>,
}

impl ConnectionPool {
    /// A pool that connects at its first use.
    pub(super) fn new(topology: &Topology, check_in: CheckIn, meter: &Arc<Meter>) -> Result<Self, OpenError> {
        let manager = ConnectionManager { source: Source::new(topology)?, meter: Arc::clone(meter) };
        let timeouts = Timeouts { wait: Some(CALL_TIMEOUT), create: Some(CREATE_TIMEOUT), recycle: None };
        let config = PoolConfig { timeouts, ..PoolConfig::new(CONNECTIONS_MAX) };
        let pool = Pool::builder(manager).config(config).runtime(deadpool::Runtime::Tokio1).build();
        let pool = pool.map_err(|_| OpenError::Address("no pool of connections"))?;
        Ok(Self { pool, check_in, kept: Mutex::default(), meter: Arc::clone(meter) })
    }

    /// Runs a script. A connection whose call fails in any way is discarded.
    pub(super) async fn run<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> Result<T, AttemptError> {
        let kept = self.swap_kept(None);
        let mut connection = match kept {
            Some(connection) => connection,
            // Boxed: otherwise each call's future would reserve the memory of a connect, which few calls do.
            None => Box::pin(self.pool.get()).await?,
        };
        // A cluster's client would try again and again within one call.
        let answer = timeout(CALL_TIMEOUT, script.invoke_async(&mut *connection)).await;
        let succeeded = matches!(answer, Ok(Ok(_)));
        // guard: drop_failed_connections: a failed connection is not used again
        if succeeded {
            if self.check_in == CheckIn::WhenIdle {
                self.swap_kept(Some(connection));
            }
        } else {
            // After READONLY of a demoted primary, LOADING, a broken connection, or a cluster node that hangs.
            drop(Object::take(connection));
            self.meter.count(Counter::ConnectionsDiscarded);
        }
        Ok(answer.map_err(|_| AttemptError::TimedOut)??)
    }

    /// Gives the connection that is checked out back to the pool.
    pub(super) fn return_connection(&self) {
        self.swap_kept(None);
    }

    fn swap_kept(&self, connection: Option<Object<ConnectionManager>>) -> Option<Object<ConnectionManager>> {
        std::mem::replace(&mut *self.kept.lock().expect("no code panics while it holds this mutex"), connection)
    }
}

/// Opens the pool's connections, and checks them at each checkout.
struct ConnectionManager {
    source: Source,
    meter: Arc<Meter>,
}

enum Source {
    Server(Box<deadpool_redis::Manager>),
    /// The sentinels are queried for each connection, because the primary may have changed.
    Sentinel(Arc<tokio::sync::Mutex<SentinelClient>>),
    Cluster(Box<ClusterClient>),
}

impl Source {
    fn new(topology: &Topology) -> Result<Self, OpenError> {
        Ok(match topology {
            Topology::Single(client) => {
                let manager =
                    deadpool_redis::Manager::new_with_config(client.get_connection_info().clone(), connection_config());
                Self::Server(Box::new(manager.map_err(|_| OpenError::Address("invalid address"))?))
            }
            Topology::Sentinel(sentinels) => Self::Sentinel(Arc::clone(sentinels)),
            Topology::Cluster { cluster, .. } => Self::Cluster(cluster.clone()),
        })
    }
}

fn connection_config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(Some(CALL_TIMEOUT)).set_response_timeout(Some(CALL_TIMEOUT))
}

impl Manager for ConnectionManager {
    type Type = Connection;
    type Error = RedisError;

    async fn create(&self) -> Result<Connection, RedisError> {
        let connection = match &self.source {
            Source::Server(manager) => Connection::Server(manager.create().await?),
            Source::Sentinel(sentinels) => {
                let mut sentinels = sentinels.lock().await;
                Connection::Server(sentinels.get_async_connection_with_config(&connection_config()).await?)
            }
            Source::Cluster(cluster) => Connection::Cluster(cluster.get_async_connection().await?),
        };
        self.meter.count(Counter::ConnectionsOpened);
        Ok(connection)
    }

    /// Sends UNWATCH and PING to a single server, as `deadpool-redis` does. A demoted primary answers PING, and a cluster's client sends
    /// it to all primaries, also those that do not serve the lock: their connections are discarded after a failed call only.
    async fn recycle(&self, connection: &mut Connection, metrics: &Metrics) -> RecycleResult<RedisError> {
        let (Source::Server(manager), Connection::Server(connection)) = (&self.source, connection) else {
            return Ok(());
        };
        let recycled = timeout(RECYCLE_TIMEOUT, manager.recycle(connection, metrics)).await;
        let recycled = recycled.unwrap_or(Err(RecycleError::message("no answer in time")));
        if recycled.is_err() {
            self.meter.count(Counter::ConnectionsDiscarded);
        }
        recycled
    }
}

/// A connection to any kind of Redis.
enum Connection {
    Server(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Server(connection) => connection.req_packed_command(cmd),
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
            Self::Server(connection) => connection.req_packed_commands(pipeline, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Server(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}
