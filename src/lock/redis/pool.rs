//! Pools of connections to any kind of Redis.

use std::{sync::Arc, time::Duration};

use deadpool::managed::{Manager, Metrics, Pool, PoolConfig, RecycleResult, Timeouts};
use redis::{
    AsyncConnectionConfig, Cmd, Pipeline, RedisError, RedisFuture, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster_async::ClusterConnection,
};

use crate::{
    lock::{
        error::OpenError,
        redis::topology::{CALL_TIMEOUT, Topology},
    },
    metrics::{Count, Meter},
};

/// The most connections that callers use at the same time: one to acquire, one to renew, and some for status calls.
const CONNECTIONS_MAX: usize = 4;
/// A cluster's connection is several, opened one after the other, and some nodes may hang.
const CREATE_TIMEOUT: Duration = Duration::from_secs(5);

/// Builds a pool. It connects at its first use.
pub(super) fn build(topology: &Arc<Topology>, meter: &Arc<Meter>) -> Result<Pool<ConnectionManager>, OpenError> {
    let timeouts = Timeouts { wait: Some(CALL_TIMEOUT), create: Some(CREATE_TIMEOUT), recycle: Some(CALL_TIMEOUT) };
    let config = PoolConfig { timeouts, ..PoolConfig::new(CONNECTIONS_MAX) };
    let manager = ConnectionManager { topology: Arc::clone(topology), meter: Arc::clone(meter) };
    let pool = Pool::builder(manager).config(config).runtime(deadpool::Runtime::Tokio1).build();
    pool.map_err(|_| OpenError::Address("no pool of connections"))
}

/// Makes the pool's connections.
pub(super) struct ConnectionManager {
    topology: Arc<Topology>,
    meter: Arc<Meter>,
}

impl ConnectionManager {
    async fn connect(&self) -> Result<Connection, RedisError> {
        let config = AsyncConnectionConfig::new();
        let config = config.set_connection_timeout(Some(CALL_TIMEOUT)).set_response_timeout(Some(CALL_TIMEOUT));
        Ok(match &*self.topology {
            Topology::Single(client) => {
                Connection::Single(client.get_multiplexed_async_connection_with_config(&config).await?)
            }
            Topology::Sentinel(sentinels) => {
                Connection::Single(sentinels.lock().await.get_async_connection_with_config(&config).await?)
            }
            Topology::Cluster { cluster, .. } => Connection::Cluster(cluster.get_async_connection().await?),
        })
    }
}

impl Manager for ConnectionManager {
    type Type = Connection;
    type Error = RedisError;

    /// Boxed: otherwise each call's future would reserve the memory of a connect, which few calls do.
    async fn create(&self) -> Result<Connection, RedisError> {
        let connection = Box::pin(self.connect()).await?;
        self.meter.count(Count::ConnectionsOpened);
        Ok(connection)
    }

    /// Sends no PING, which would cost each call a round trip: the caller discards a connection that failed.
    async fn recycle(&self, _: &mut Connection, _: &Metrics) -> RecycleResult<RedisError> {
        Ok(())
    }
}

/// A connection to any kind of Redis.
pub(super) enum Connection {
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
