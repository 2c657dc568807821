//! Calls the lock's Lua scripts.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{FromRedisValue, Script, ToRedisArgs, Value};
use tokio::{runtime::Handle, task::JoinHandle};

use crate::{
    fencing::FencingToken,
    lock::{
        error::{AttemptError, OpenError},
        health::BackendHealth,
        redis::{
            pool::{CheckIn, ConnectionPool},
            topology::Topology,
        },
        types::{AcquireAttempt, Options, Reacquire},
    },
    metrics::Meter,
};

/// The argument of release.lua for `Reacquire::IfContended`.
const ONLY_IF_CONTENDED: &str = "soon";

/// What release.lua returns.
pub(super) enum ReleaseAnswer {
    /// The lease did not hold the lock.
    NotHeld,
    Free,
    /// The lease with this id holds the lock now.
    HandedOver(String),
    /// The lease that was to be next holds the lock now, with this token.
    Reacquired(FencingToken),
}

pub(super) struct Client {
    /// For the committer, which calls from its own runtime: no other thread takes part in its calls.
    committer_pool: ConnectionPool,
    /// For renewals alone, so that no other call can delay one until the lease is lost.
    renewal_pool: ConnectionPool,
    /// For probes and status calls. Like renewals, they must not wait for the committer's thread: it blocks in storage.
    background_pool: ConnectionPool,
    background: Handle,
    /// In the order in which the scripts know them: the lock, the token counter, the queue, and when each waiter came and last polled.
    keys: [String; 4],
    /// All lease ids of this process start with it: the replica's name, for people, a random part, and the time to live.
    id_prefix: String,
    next_lease: AtomicU64,
    options: Options,
    health: Arc<BackendHealth>,
    scripts: Scripts,
}

/// The success of this call shows that Redis accepts all that the lock needs.
const SHOWS_ALL: bool = true;

struct Scripts {
    acquire: Script,
    renew: Script,
    probe: Script,
    release: Script,
    raise_token: Script,
    status: Script,
    next_token: Script,
    force_release: Script,
}

impl Scripts {
    fn new() -> Self {
        let script = |text| Script::new(&[include_str!("scripts/queue.lua"), text].concat());
        Self {
            acquire: script(include_str!("scripts/acquire.lua")),
            renew: script(include_str!("scripts/renew.lua")),
            probe: script(include_str!("scripts/probe.lua")),
            release: script(include_str!("scripts/release.lua")),
            raise_token: script(include_str!("scripts/raise_token.lua")),
            status: script(include_str!("scripts/status.lua")),
            next_token: script(include_str!("scripts/next_token.lua")),
            force_release: script(include_str!("scripts/force_release.lua")),
        }
    }
}

impl Client {
    pub(super) fn new(
        topology: &Topology,
        key: &str,
        options: Options,
        health: Arc<BackendHealth>,
    ) -> Result<Self, OpenError> {
        if topology.is_cluster() && !derived_keys_share_slot(key) {
            return Err(OpenError::LockKey(key.to_owned()));
        }
        let instance = uuid::Uuid::new_v4().simple();
        Ok(Self {
            committer_pool: ConnectionPool::new(topology, CheckIn::WhenIdle, &options.meter)?,
            renewal_pool: ConnectionPool::new(topology, CheckIn::AfterEachCall, &options.meter)?,
            background_pool: ConnectionPool::new(topology, CheckIn::AfterEachCall, &options.meter)?,
            background: Handle::current(),
            keys: [key.to_owned(), derived_key(key, "token"), derived_key(key, "queue"), derived_key(key, "seen")],
            id_prefix: format!("{}/{instance}/{}/", options.replica, options.ttl.as_millis()),
            next_lease: AtomicU64::new(0),
            options,
            health,
            scripts: Scripts::new(),
        })
    }

    pub(super) fn ttl(&self) -> Duration {
        self.options.ttl
    }

    /// Whether a call of the lock's user does not return.
    pub(super) fn user_is_stuck(&self) -> bool {
        self.options.progress.stuck().is_some()
    }

    pub(super) fn meter(&self) -> &Meter {
        &self.options.meter
    }

    /// Returns an id that no other lease of any replica has. It tells people the holder, and scripts the longest possible time to live.
    pub(super) fn new_lease_id(&self) -> String {
        format!("{}{}", self.id_prefix, self.next_lease.fetch_add(1, Ordering::Relaxed))
    }

    /// The channel on which scripts notify this replica.
    pub(super) fn notification_channel(&self) -> String {
        format!("{}:{}", self.keys[2], self.id_prefix)
    }

    /// Runs a task on the runtime of background calls. A connection is served by the runtime that opened it, so calls on the
    /// other two pools start there.
    pub(super) fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.background.spawn(task)
    }

    /// Gives the committer's connection back to its pool.
    pub(super) fn return_connection(&self) {
        self.committer_pool.return_connection();
    }

    /// Polls. The lock is granted with its token, and whether other replicas wait.
    pub(super) async fn acquire(&self, id: &str) -> Result<AcquireAttempt<(FencingToken, bool)>, AttemptError> {
        let answer = self.run(&self.committer_pool, &self.scripts.acquire, id, None::<u64>).await;
        let (token, rest): (FencingToken, i64) = self.health.record(answer, SHOWS_ALL)?;
        if token > 0 {
            return Ok(AcquireAttempt::Granted((token, rest > 0)));
        }
        Ok(AcquireAttempt::Held { expires_in: u64::try_from(rest).ok().map(Duration::from_millis) })
    }

    /// Renews a lease from a background task; returns whether it still holds the lock.
    pub(super) async fn renew(&self, id: &str) -> Result<bool, AttemptError> {
        self.call(&self.renewal_pool, &self.scripts.renew, id, None::<u64>).await
    }

    /// Runs the commands of the other scripts without an effect.
    pub(super) async fn probe(&self, all: bool) -> Result<(), AttemptError> {
        let answer = self.run(&self.background_pool, &self.scripts.probe, "", all.then_some(1)).await;
        self.health.record(answer, all)
    }

    /// The same from the committer.
    pub(super) async fn renew_from_committer(&self, id: &str) -> Result<bool, AttemptError> {
        self.call(&self.committer_pool, &self.scripts.renew, id, None::<u64>).await
    }

    /// Releases the lock, or leaves the queue. `next` is the id of the lease to queue for.
    pub(super) async fn release(
        &self,
        id: &str,
        next: Option<&str>,
        reacquire: Reacquire,
    ) -> Result<ReleaseAnswer, AttemptError> {
        let policy = (reacquire == Reacquire::IfContended).then_some(ONLY_IF_CONTENDED);
        let answer = self.call(&self.committer_pool, &self.scripts.release, id, (next, policy)).await?;
        Ok(match answer {
            (0, None) => ReleaseAnswer::NotHeld,
            (0, Some(holder)) if String::is_empty(&holder) => ReleaseAnswer::Free,
            (0, Some(holder)) => ReleaseAnswer::HandedOver(holder),
            (token, _) => ReleaseAnswer::Reacquired(token),
        })
    }

    /// Raises the token counter to `highest_token` if it is lower.
    pub(super) async fn raise_token(&self, id: &str, highest_token: FencingToken) -> Result<(), AttemptError> {
        self.call(&self.committer_pool, &self.scripts.raise_token, id, Some(highest_token)).await
    }

    pub(super) async fn next_token(&self) -> Result<FencingToken, AttemptError> {
        self.call(&self.committer_pool, &self.scripts.next_token, "", None::<u64>).await
    }

    /// Takes the lock from its holder; returns whether there was one.
    pub(super) async fn force_release(&self) -> Result<bool, AttemptError> {
        self.call(&self.committer_pool, &self.scripts.force_release, "", None::<u64>).await
    }

    pub(super) async fn status(&self) -> Result<Vec<Value>, AttemptError> {
        self.call(&self.background_pool, &self.scripts.status, "", None::<u64>).await
    }

    /// Calls a script whose success does not show that Redis accepts all that the lock needs.
    async fn call<T: FromRedisValue>(
        &self,
        pool: &ConnectionPool,
        script: &Script,
        id: &str,
        more: impl ToRedisArgs,
    ) -> Result<T, AttemptError> {
        self.health.record(self.run(pool, script, id, more).await, !SHOWS_ALL)
    }

    /// Runs a script, without a record of its outcome. Every script takes all keys, the lease's id and the time to live.
    async fn run<T: FromRedisValue>(
        &self,
        pool: &ConnectionPool,
        script: &Script,
        id: &str,
        more: impl ToRedisArgs,
    ) -> Result<T, AttemptError> {
        let mut call = script.prepare_invoke();
        for key in &self.keys {
            call.key(key);
        }
        call.arg(id).arg(self.options.ttl.as_millis()).arg(more);
        pool.run(&call).await
    }
}

/// The replica that a lease id names; `None` for the lock of another program.
pub(super) fn replica_of(id: &str) -> Option<&str> {
    let mut parts = id.rsplitn(4, '/');
    let mut next = || parts.next();
    let (number, ttl_ms, instance, replica) = (next()?, next()?, next()?, next()?);
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(number) && is_number(ttl_ms) && instance.len() == 32).then_some(replica)
}

/// The part of a key that decides on its slot in a cluster: what stands between the first `{` and the next `}`, unless that is empty.
fn hash_tag(key: &str) -> Option<&str> {
    key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag).filter(|tag| !tag.is_empty())
}

/// A key with the hash tag of the lock's key: on a cluster, a script may only use keys of one slot.
fn derived_key(key: &str, what: &str) -> String {
    if hash_tag(key).is_some() { format!("{key}:{what}") } else { format!("{{{key}}}:{what}") }
}

/// Whether the derived keys have the lock key's slot. A key with a `}` and no hash tag cannot be a hash tag itself.
fn derived_keys_share_slot(key: &str) -> bool {
    hash_tag(key).is_some() || !key.contains('}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_id_names_its_replica_and_foreign_value_none() {
        let instance = uuid::Uuid::new_v4().simple().to_string();
        assert_eq!(replica_of(&format!("a/b/{instance}/10000/17")), Some("a/b"));
        for foreign in ["", "token", "a/b/c", &instance, &format!("x/{instance}/y"), &format!("x/{instance}/17")] {
            assert_eq!(replica_of(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn derived_keys_share_the_lock_keys_slot() {
        assert_eq!(derived_key("{rowlock:rows.csv}", "token"), "{rowlock:rows.csv}:token");
        assert_eq!(derived_key("a{b}c", "token"), "a{b}c:token");
        assert_eq!(derived_key("plain", "token"), "{plain}:token");
        assert_eq!(derived_key("{}x", "token"), "{{}x}:token");
    }

    #[test]
    fn cluster_refuses_key_whose_derived_keys_leave_its_slot() {
        // All keys of up to five of these characters.
        let mut keys = vec![String::new()];
        for _ in 0..5 {
            let longer = keys.iter().flat_map(|key| ["{", "}", "a"].map(|more| format!("{key}{more}")));
            keys = keys.iter().cloned().chain(longer).collect();
        }
        keys.retain(|key| !key.is_empty());
        let hashed = |key: &str| hash_tag(key).unwrap_or(key).to_owned();
        for key in keys {
            let shares = hashed(&derived_key(&key, "token")) == hashed(&key);
            assert_eq!(shares, derived_keys_share_slot(&key), "{key}");
        }
    }
}
