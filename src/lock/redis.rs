//! The lock in Redis: a plain string with a time to live, so that other clients' plain locks exclude us and we them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use deadpool::managed::{Object, Pool, PoolConfig, Timeouts};
use redis::{FromRedisValue, Script, ToRedisArgs};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout},
};

use super::{
    LockKind, OpenError, Options, Reach, Released, State, Status, Try, TryError, Waiter,
    server::{CALL_TIMEOUT, CREATE_TIMEOUT, Connections, Server},
    wake::Wake,
};
use crate::{
    config::RedisUrl,
    metrics::Count,
    record::{FencingToken, ms},
};

/// How soon a failed renewal or release is tried again.
const TRY_AGAIN: Duration = Duration::from_millis(50);
/// The committer, a renewal and a release that is being retried are all that can want one at once.
const CONNECTIONS: usize = 4;

pub(super) struct RedisLock {
    client: Arc<Client>,
    wake: Wake,
    /// What all lease ids of this process start with: the replica's name, for people, and a random part.
    id_prefix: String,
    leases: AtomicU64,
}

struct Client {
    pool: Pool<Connections>,
    /// The lock, the token counter, the queue, when each waiter came and last looked.
    keys: [String; 4],
    options: Options,
    reach: Arc<Reach>,
    acquire: Script,
    renew: Script,
    release: Script,
    raise: Script,
    status: Script,
    next_token: Script,
    force: Script,
}

impl RedisLock {
    pub(super) fn new(url: &RedisUrl, key: &str, options: Options, reach: Arc<Reach>) -> Result<Self, OpenError> {
        let server = Arc::new(Server::parse(url.expose(), &options.tls)?);
        let timeouts = Timeouts { wait: Some(CALL_TIMEOUT), create: Some(CREATE_TIMEOUT), recycle: Some(CALL_TIMEOUT) };
        let config = PoolConfig { timeouts, ..PoolConfig::new(CONNECTIONS) };
        let pool = Pool::builder(Connections::new(&server, &options.meter))
            .config(config)
            .runtime(deadpool::Runtime::Tokio1)
            .build();
        let client = Arc::new(Client {
            pool: pool.map_err(|_| OpenError::Address("no pool of connections"))?,
            keys: [key.to_owned(), derived_key(key, "token"), derived_key(key, "queue"), derived_key(key, "seen")],
            acquire: Script::new(concat!(include_str!("queue.lua"), include_str!("acquire.lua"))),
            renew: Script::new(include_str!("renew.lua")),
            raise: Script::new(include_str!("raise.lua")),
            release: Script::new(concat!(include_str!("queue.lua"), include_str!("release.lua"))),
            status: Script::new(concat!(include_str!("queue.lua"), include_str!("status.lua"))),
            next_token: Script::new(concat!(include_str!("queue.lua"), include_str!("next_token.lua"))),
            force: Script::new(concat!(include_str!("queue.lua"), include_str!("force.lua"))),
            options,
            reach,
        });
        let instance = uuid::Uuid::new_v4().simple();
        let id_prefix = format!("{}/{instance}/{}/", client.options.replica, client.options.ttl.as_millis());
        let wake = Wake::listen(server, client.keys[2].clone(), id_prefix.clone());
        Ok(Self { client, wake, id_prefix, leases: AtomicU64::new(0) })
    }

    /// A name that no other lease of any replica has, and that tells people who holds the lock and scripts for how long at most.
    pub(super) fn new_lease_id(&self) -> String {
        format!("{}{}", self.id_prefix, self.leases.fetch_add(1, Ordering::Relaxed))
    }

    /// A repeat with the same id finds again a grant whose answer was lost.
    pub(super) async fn try_acquire(&self, id: &str) -> Result<Try<(FencingToken, RedisLease)>, TryError> {
        let client = &self.client;
        let asked = Instant::now();
        let (token, expires_ms): (FencingToken, i64) = client.call(&client.acquire, id).await?;
        if token == 0 {
            return Ok(Try::Held(u64::try_from(expires_ms).ok().map(Duration::from_millis)));
        }
        Ok(Try::Granted((token, RedisLease::granted(Arc::clone(client), id.to_owned(), asked))))
    }

    pub(super) fn ttl(&self) -> Duration {
        self.client.options.ttl
    }

    /// Leaves the queue, and clears what a lost answer may have left behind, once and as well as can be.
    pub(super) async fn give_up(&self, id: &str) {
        // guard: give_up
        if let Err(e) = self.client.release_now(id, false).await {
            tracing::debug!(error = %e, "a lease in doubt is left to expire");
        }
    }

    pub(super) async fn status(&self) -> Result<Status, TryError> {
        let values: Vec<redis::Value> = self.client.call(&self.client.status, "").await?;
        let mut values = values.into_iter();
        let mut next = || values.next().ok_or_else(|| TryError::Answer("the lock's status is cut short"));
        let parse_error = |_| TryError::Answer("the lock's status is of another kind");
        let (id, ttl_ms, token): (String, i64, FencingToken) = (
            redis::from_redis_value(next()?).map_err(parse_error)?,
            redis::from_redis_value(next()?).map_err(parse_error)?,
            redis::from_redis_value(next()?).map_err(parse_error)?,
        );
        let mut waiters = Vec::new();
        while let Ok(id) = next() {
            let id: String = redis::from_redis_value(id).map_err(parse_error)?;
            let waited_ms = redis::from_redis_value(next()?).map_err(parse_error)?;
            waiters.push(Waiter { replica: replica_of(&id).unwrap_or_default().to_owned(), waited_ms });
        }
        let state = match (id.is_empty(), replica_of(&id)) {
            (true, _) => State::Free,
            (false, Some(_)) => State::Held,
            (false, None) => State::Foreign,
        };
        Ok(Status {
            lock: LockKind::Redis,
            state,
            holder: replica_of(&id).map(str::to_owned),
            token: (state == State::Held && token > 0).then_some(token),
            ttl_ms: u64::try_from(ttl_ms).ok().filter(|_| state != State::Free),
            waiters,
        })
    }

    /// A lease that nobody has is not renewed, and that is an answer.
    pub(super) async fn probe(&self) {
        if let Err(e) = self.client.renew_now("").await {
            tracing::debug!(error = %e, "Redis is out of reach");
        }
    }

    pub(super) async fn next_token(&self) -> Result<FencingToken, TryError> {
        self.client.call(&self.client.next_token, "").await
    }

    pub(super) async fn raise(&self, mark: FencingToken) {
        if let Err(e) = self.client.raise_now("", mark).await {
            tracing::warn!(error = %e, "cannot raise the token; trying again at the next grant");
        }
    }

    pub(super) async fn force(&self) -> Result<bool, TryError> {
        self.client.call(&self.client.force, "").await
    }

    /// Returns when it is worth while to look again.
    pub(super) async fn until_next_look(&self, pause: Duration, holder_expires: Option<Duration>) {
        self.wake.wait(pause, holder_expires).await;
    }
}

/// The replica that a lease id of ours names.
fn replica_of(id: &str) -> Option<&str> {
    let mut parts = id.rsplitn(4, '/');
    let mut next = || parts.next();
    let (number, ttl_ms, instance, replica) = (next()?, next()?, next()?, next()?);
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(number) && is_number(ttl_ms) && instance.len() == 32).then_some(replica)
}

/// Keys beside the lock's share its hash tag, so that one script may touch them all on a cluster.
fn derived_key(key: &str, what: &str) -> String {
    let has_tag =
        key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).is_some_and(|(tag, _)| !tag.is_empty());
    if has_tag { format!("{key}:{what}") } else { format!("{{{key}}}:{what}") }
}

impl Client {
    /// Every script takes all keys, the lease's id and the time to live.
    async fn call<T: FromRedisValue>(&self, script: &Script, id: &str) -> Result<T, TryError> {
        self.reach.note(self.call_once(script, id, None::<u64>).await)
    }

    async fn call_once<T: FromRedisValue>(
        &self,
        script: &Script,
        id: &str,
        more: Option<impl ToRedisArgs>,
    ) -> Result<T, TryError> {
        let mut connection = self.pool.get().await?;
        let mut call = script.prepare_invoke();
        for key in &self.keys {
            call.key(key);
        }
        let answer = call.arg(id).arg(ms(self.options.ttl)).arg(more).invoke_async(&mut *connection);
        // A cluster's client would try again and again within one call.
        let answer = timeout(CALL_TIMEOUT, answer).await;
        // guard: spent_connections
        if !matches!(answer, Ok(Ok(_))) {
            // Whatever the failure: READONLY of a demoted primary, LOADING, a broken line, a cluster's node that hangs (its
            // client would go on asking that node).
            drop(Object::take(connection));
            self.options.meter.count(Count::ConnectionsDiscarded);
        }
        Ok(answer.map_err(|_| TryError::Answer("no answer in time"))??)
    }

    async fn renew_now(&self, id: &str) -> Result<bool, TryError> {
        self.call(&self.renew, id).await
    }

    async fn raise_now(&self, id: &str, mark: FencingToken) -> Result<bool, TryError> {
        self.reach.note(self.call_once(&self.raise, id, Some(mark)).await)
    }

    /// Answers who has the lock now, or none if it was not ours; and the new token, if we have it `again`.
    async fn release_now(&self, id: &str, again: bool) -> Result<(FencingToken, Option<String>), TryError> {
        self.reach.note(self.call_once(&self.release, id, again.then_some("again")).await)
    }
}

/// Renews every third of the time to live. One failed try ends nothing: the lease is lost when its time has truly run out.
async fn keep_alive(client: Arc<Client>, id: String, held_until: watch::Sender<Option<Instant>>) {
    let third = client.options.ttl / 3;
    let mut pause = third;
    let mut until = held_until.borrow().unwrap_or_else(Instant::now);
    loop {
        tokio::time::sleep_until((Instant::now() + pause).min(until)).await;
        if Instant::now() >= until {
            break;
        }
        let asked = Instant::now();
        match tokio::time::timeout_at(until, client.renew_now(&id)).await {
            Ok(Ok(true)) => {
                until = asked + client.options.ttl;
                held_until.send_replace(Some(until));
                client.options.meter.count(Count::Renewals);
                pause = third;
            }
            Ok(Ok(false)) | Err(_) => {
                client.options.meter.count(Count::RenewalFailures);
                break;
            }
            // guard: renewal_goes_on
            Ok(Err(e)) => {
                tracing::debug!(error = %e, "could not renew the lock; trying again");
                client.options.meter.count(Count::RenewalFailures);
                pause = TRY_AGAIN;
            }
        }
    }
    tracing::error!(lease = id, "the lock was lost");
    held_until.send_replace(None);
}

pub(super) struct RedisLease {
    client: Arc<Client>,
    id: String,
    /// `None` once the lease is lost.
    held_until: watch::Receiver<Option<Instant>>,
    renewal: JoinHandle<()>,
}

impl RedisLease {
    /// Kept alive from now on, for a time to live counted from before it was `asked` for.
    fn granted(client: Arc<Client>, id: String, asked: Instant) -> Self {
        let (sender, held_until) = watch::channel(Some(asked + client.options.ttl));
        let renewal = tokio::spawn(keep_alive(Arc::clone(&client), id.clone(), sender));
        Self { client, id, held_until, renewal }
    }

    pub(super) fn is_held(&self) -> bool {
        self.held_until.borrow().is_some_and(|until| Instant::now() < until)
    }

    pub(super) async fn lost(&mut self) {
        // An error means that the renewal has ended, and it ends only with a loss or with us.
        let _ = self.held_until.wait_for(Option::is_none).await;
    }

    /// Tries again while the lease would otherwise block others. Who wants it `again` has it under a new token, if nobody waits.
    pub(super) async fn release(self, again: bool) -> (Released, Option<(FencingToken, Self)>) {
        self.renewal.abort();
        let mut asked_before = false;
        let released = loop {
            let asked = Instant::now();
            match self.client.release_now(&self.id, again).await {
                Ok((token @ 1.., _)) => {
                    let lease = Self::granted(Arc::clone(&self.client), self.id.clone(), asked);
                    return (Released::Free, Some((token, lease)));
                }
                Ok((_, Some(next))) if next.is_empty() => break Released::Free,
                // Done by the try whose answer was lost.
                Ok((_, None)) if asked_before => break Released::Free,
                Ok((_, Some(next))) => break Released::HandedOver(replica_of(&next).unwrap_or_default().to_owned()),
                Ok((_, None)) => {
                    tracing::warn!(lease = self.id, "the lock was no longer ours when it was released");
                    break Released::Lost;
                }
                Err(e) if self.is_held() => tracing::debug!(error = %e, "could not release the lock; trying again"),
                Err(e) => {
                    tracing::error!(error = %e, "could not release the lock; its time has run out");
                    break Released::Lost;
                }
            }
            asked_before = true;
            tokio::time::sleep(TRY_AGAIN).await;
        };
        (released, None)
    }

    /// Raised before it is handed over, so that the next holder's token is new.
    pub(super) async fn release_and_raise(self, mark: FencingToken) -> Released {
        // guard: raise
        if let Err(e) = self.client.raise_now(&self.id, mark).await {
            tracing::warn!(error = %e, "cannot raise the token; trying again at the next grant");
        }
        self.release(false).await.0
    }

    pub(super) async fn abandon(self) {
        // guard: renewal_ends
        self.renewal.abort();
        if let Err(e) = self.client.renew_now(&self.id).await {
            tracing::warn!(error = %e, "an abandoned lock expires sooner than a whole time to live");
        }
    }
}

impl Drop for RedisLease {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_id_names_its_replica_and_a_foreign_clients_value_none() {
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
}
