//! The lock in Redis: a plain string with a time to live, so that locks of other programs (`SET … NX PX`) exclude Rowlock's, and the
//! reverse.
//!
//! All decisions are made in Lua scripts, which run one at a time. `client` calls them, `lease` keeps a granted lock alive,
//! `notifications` receives hints from other replicas, `pool` and `topology` make connections to any kind of Redis.

mod address;
mod client;
pub(in crate::lock) mod lease;
mod notifications;
mod pool;
mod status;
mod topology;

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout};

use crate::{
    api::lock_status::LockStatus,
    config::RedisUrl,
    fencing::FencingToken,
    lock::{
        error::{AttemptError, OpenError},
        health::BackendHealth,
        redis::{
            client::Client,
            lease::{LeaseTerms, RedisLease},
            notifications::NotificationListener,
            topology::{CALL_TIMEOUT, Endpoint, Topology},
        },
        types::{AcquireAttempt, Options, QueueTicket, Reacquire},
    },
};

/// How long a lock that was handed over lasts before its first renewal: `CLAIM_MS` in queue.lua.
const CLAIM: Duration = Duration::from_millis(1000);

/// How long the start waits for a Redis that does not answer.
const CHECK_TIMEOUT: Duration = CALL_TIMEOUT;

pub(super) struct RedisLock {
    client: Arc<Client>,
    listener: Arc<NotificationListener>,
    topology: Arc<Topology>,
}

impl RedisLock {
    /// Background calls run on the current runtime; the lock may be acquired from another one.
    pub(super) fn new(url: &RedisUrl, key: &str, options: Options) -> Result<(Self, Arc<BackendHealth>), OpenError> {
        let Endpoint { topology, name, secrets } = Endpoint::parse(url.expose(), &options.tls)?;
        let (topology, health) = (Arc::new(topology), BackendHealth::new("redis", format!("Redis at {name}"), secrets));
        let client = Arc::new(Client::new(&topology, key, options, Arc::clone(&health))?);
        let listener = Arc::new(NotificationListener::new(Arc::clone(&topology), client.notification_channel()));
        Ok((Self { client, listener, topology }, health))
    }

    pub(super) fn ttl(&self) -> Duration {
        self.client.ttl()
    }

    pub(super) fn new_ticket(&self) -> QueueTicket {
        QueueTicket { id: self.client.new_lease_id(), polled: None }
    }

    /// Polls once. A repeat with the same id also finds a grant whose answer was lost.
    pub(super) async fn try_acquire(
        &self,
        id: &str,
    ) -> Result<AcquireAttempt<(FencingToken, RedisLease)>, AttemptError> {
        self.listener.start();
        let since = Instant::now();
        Ok(match self.client.acquire(id).await? {
            AcquireAttempt::Held { expires_in } => AcquireAttempt::Held { expires_in },
            AcquireAttempt::Granted((token, is_contended)) => {
                let terms = LeaseTerms { since, lasts: self.ttl(), is_contended };
                AcquireAttempt::Granted((token, RedisLease::start(&self.client, &self.listener, id, terms)))
            }
        })
    }

    /// Waits until the next poll is due. Returns the lease if it is handed over before that.
    pub(super) async fn wait_for_grant(
        &self,
        QueueTicket { id, polled }: &QueueTicket,
        pause: Duration,
        holder_expires_in: Option<Duration>,
    ) -> Option<(FencingToken, RedisLease)> {
        self.listener.wait(pause, holder_expires_in).await;
        let (grant, since) = (self.listener.take_grant(id)?, (*polled)?);
        let lasts = CLAIM.min(self.ttl());
        if since.elapsed() >= lasts / 2 {
            // Little of its time may be left, and a poll renews it.
            return None;
        }
        let terms = LeaseTerms { since, lasts, is_contended: grant.is_contended };
        Some((grant.token, RedisLease::start(&self.client, &self.listener, id, terms)))
    }

    /// Leaves the queue, and releases a grant whose answer was lost, so that other replicas need not wait for either to expire.
    pub(super) async fn leave_queue(&self, id: &str) {
        // guard: leave_queue: a request that gives up leaves the queue
        if let Err(e) = self.client.release(id, None, Reacquire::No).await {
            tracing::debug!(error = %e, "could not leave the lock's queue; the entry expires");
        }
    }

    /// Gives the committer's connection back to its pool.
    pub(super) fn return_connection(&self) {
        self.client.return_connection();
    }

    /// Finds out whether Redis accepts the lock's commands; with `all`, also of those that must change something.
    pub(super) async fn probe(&self, all: bool) {
        let client = Arc::clone(&self.client);
        // The client's health has the result.
        let _ = self.client.spawn(async move { client.probe(all).await }).await;
    }

    /// The same at the start, which does not wait long for it.
    pub(super) async fn check(&self) {
        // A time-out is no error: an unreachable Redis is waited for later.
        let _ = timeout(CHECK_TIMEOUT, self.probe(true)).await;
    }

    /// What the server answers to the user name and password.
    pub(super) async fn auth_answer(&self) -> Option<String> {
        timeout(CHECK_TIMEOUT, self.topology.auth_answer()).await.ok().flatten()
    }

    /// Reads the status; `None` if Redis does not answer as it should. For the runtime of background calls.
    pub(super) fn status(&self) -> impl Future<Output = Option<LockStatus>> + Send + 'static {
        let client = Arc::clone(&self.client);
        async move { status::parse(client.status().await.ok()?).ok() }
    }

    pub(super) async fn next_token(&self) -> Result<FencingToken, AttemptError> {
        self.client.next_token().await
    }

    pub(super) async fn raise_token(&self, highest_token: FencingToken) {
        if let Err(e) = self.client.raise_token("", highest_token).await {
            tracing::warn!(error = %e, "cannot raise the token; the next grant tries again");
        }
    }

    pub(super) async fn force_release(&self) -> Result<bool, AttemptError> {
        self.client.force_release().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claim_time_is_the_same_in_rust_and_lua() {
        let script = include_str!("scripts/queue.lua");
        assert!(script.contains(&format!("local CLAIM_MS = {}\n", CLAIM.as_millis())));
    }
}
