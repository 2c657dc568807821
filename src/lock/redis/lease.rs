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
    runtime::Handle,
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout},
};

use crate::{
    api::lock_status::{LockKind, LockState, LockStatus, Waiter},
    lock::{
        Again, OpenError, Options, Reach, Released, Try, TryError, Wanted,
        redis::{
            notifications::Wake,
            topology::{CALL_TIMEOUT, CREATE_TIMEOUT, Connections, Server},
        },
    },
};
use crate::{config::RedisUrl, fencing::FencingToken, metrics::Counter, time::ms};

/// How soon a failed renewal or release is tried again.
const TRY_AGAIN: Duration = Duration::from_millis(50);
/// Who acquires, a renewal, and who looks at the lock are all that can want one at once.
const CONNECTIONS: usize = 4;
/// `CLAIM_MS` of queue.lua.
const CLAIM: Duration = Duration::from_millis(1000);
/// So long a holder goes by what it was told of others who wait, before it asks: what the loss of a message may cost them.
const STAY: Duration = Duration::from_millis(50);

pub(crate) struct RedisLock {
    client: Arc<Client>,
    wake: Arc<Wake>,
}

/// Where a lease stands that is not ours yet: it has a name, and a place in the queue from its first look on.
#[derive(Default)]
pub struct Place {
    pub(crate) id: String,
    /// When the last look began that found the lock with another; a grant is newer than that.
    pub(crate) looked: Option<Instant>,
}

struct Client {
    /// Connections of who acquires and releases, on its own runtime: no other thread has a part in a call.
    near: Pool<Connections>,
    /// And of renewals and whoever looks, who must not wait for that thread, which blocks in storage.
    far: Pool<Connections>,
    /// Where renewals run.
    workers: Handle,
    /// The lock, the token counter, the queue, when each waiter came and last looked.
    keys: [String; 4],
    /// What all lease ids of this process start with: the replica's name, for people, and a random part.
    id_prefix: String,
    leases: AtomicU64,
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
    /// Renewals will run on the runtime of who calls this; the lock is for whoever acquires it, perhaps on another.
    pub(crate) fn new(url: &RedisUrl, key: &str, options: Options, reach: Arc<Reach>) -> Result<Self, OpenError> {
        let server = Arc::new(Server::parse(url.expose(), &options.tls)?);
        let instance = uuid::Uuid::new_v4().simple();
        let client = Arc::new(Client {
            near: pool(&server, &options)?,
            far: pool(&server, &options)?,
            workers: Handle::current(),
            keys: [key.to_owned(), derived_key(key, "token"), derived_key(key, "queue"), derived_key(key, "seen")],
            acquire: Script::new(concat!(include_str!("scripts/queue.lua"), include_str!("scripts/acquire.lua"))),
            renew: Script::new(include_str!("scripts/renew.lua")),
            raise: Script::new(concat!(include_str!("scripts/queue.lua"), include_str!("scripts/raise.lua"))),
            release: Script::new(concat!(include_str!("scripts/queue.lua"), include_str!("scripts/release.lua"))),
            status: Script::new(concat!(include_str!("scripts/queue.lua"), include_str!("scripts/status.lua"))),
            next_token: Script::new(concat!(include_str!("scripts/queue.lua"), include_str!("scripts/next_token.lua"))),
            force: Script::new(concat!(include_str!("scripts/queue.lua"), include_str!("scripts/force.lua"))),
            id_prefix: format!("{}/{instance}/{}/", options.replica, options.ttl.as_millis()),
            leases: AtomicU64::new(0),
            options,
            reach,
        });
        let wake = Arc::new(Wake::new(server, format!("{}:{}", client.keys[2], client.id_prefix)));
        Ok(Self { client, wake })
    }

    /// For a lease that was not asked for yet.
    pub(crate) fn new_place(&self) -> Place {
        Place { id: self.client.new_lease_id(), looked: None }
    }

    /// A repeat with the same id finds again a grant whose answer was lost.
    pub(crate) async fn try_acquire(&self, id: &str) -> Result<Try<(FencingToken, RedisLease)>, TryError> {
        let client = &self.client;
        self.wake.listen();
        let asked = Instant::now();
        let (token, more): (FencingToken, i64) = client.call(&client.acquire, id).await?;
        if token == 0 {
            return Ok(Try::Held(u64::try_from(more).ok().map(Duration::from_millis)));
        }
        Ok(Try::Granted((token, RedisLease::granted(client, &self.wake, id, asked, self.ttl(), more > 0))))
    }

    pub(crate) fn ttl(&self) -> Duration {
        self.client.options.ttl
    }

    /// Leaves the queue, and clears what a lost answer may have left behind, once and as well as can be.
    pub(crate) async fn give_up(&self, id: &str) {
        // guard: give_up
        if let Err(e) = self.client.release_now(id, None, Wanted::Not).await {
            tracing::debug!(error = %e, "a lease in doubt is left to expire");
        }
    }

    pub(crate) async fn status(&self) -> Result<LockStatus, TryError> {
        let client = &self.client;
        let values: Vec<redis::Value> =
            client.reach.note(client.call_once(&client.far, &client.status, "", None::<u64>).await)?;
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
            (true, _) => LockState::Free,
            (false, Some(_)) => LockState::Held,
            (false, None) => LockState::Foreign,
        };
        Ok(LockStatus {
            lock: LockKind::Redis,
            state,
            holder: replica_of(&id).map(str::to_owned),
            token: (state == LockState::Held && token > 0).then_some(token),
            ttl_ms: u64::try_from(ttl_ms).ok().filter(|_| state != LockState::Free),
            waiters,
        })
    }

    /// A lease that nobody has is not renewed, and that is an answer.
    pub(crate) async fn probe(&self) {
        if let Err(e) = self.client.renew_now(&self.client.near, "").await {
            tracing::debug!(error = %e, "Redis is out of reach");
        }
    }

    pub(crate) async fn next_token(&self) -> Result<FencingToken, TryError> {
        self.client.call(&self.client.next_token, "").await
    }

    pub(crate) async fn raise(&self, mark: FencingToken) {
        if let Err(e) = self.client.raise_now("", mark).await {
            tracing::warn!(error = %e, "cannot raise the token; trying again at the next grant");
        }
    }

    pub(crate) async fn force(&self) -> Result<bool, TryError> {
        self.client.call(&self.client.force, "").await
    }

    /// Returns when it is worth while to look again, or with the lock, if it is handed over by then.
    pub(crate) async fn until_next_look(
        &self,
        Place { id, looked }: &Place,
        pause: Duration,
        holder_expires: Option<Duration>,
    ) -> Option<(FencingToken, RedisLease)> {
        self.wake.wait(pause, holder_expires).await;
        let (grant, looked) = (self.wake.take_grant(id)?, (*looked)?);
        let lasts = CLAIM.min(self.ttl());
        // What is nearly over is better asked for.
        let lease = || RedisLease::granted(&self.client, &self.wake, id, looked, lasts, grant.wanted);
        (looked.elapsed() < lasts / 2).then(|| (grant.token, lease()))
    }
}

fn pool(server: &Arc<Server>, options: &Options) -> Result<Pool<Connections>, OpenError> {
    let timeouts = Timeouts { wait: Some(CALL_TIMEOUT), create: Some(CREATE_TIMEOUT), recycle: Some(CALL_TIMEOUT) };
    let config = PoolConfig { timeouts, ..PoolConfig::new(CONNECTIONS) };
    let pool = Pool::builder(Connections::new(server, &options.meter)).config(config);
    let pool = pool.runtime(deadpool::Runtime::Tokio1).build();
    pool.map_err(|_| OpenError::Address("no pool of connections"))
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
    /// A name that no other lease of any replica has, and that tells people who holds the lock and scripts for how long at most.
    fn new_lease_id(&self) -> String {
        format!("{}{}", self.id_prefix, self.leases.fetch_add(1, Ordering::Relaxed))
    }

    /// Every script takes all keys, the lease's id and the time to live.
    async fn call<T: FromRedisValue>(&self, script: &Script, id: &str) -> Result<T, TryError> {
        self.reach.note(self.call_once(&self.near, script, id, None::<u64>).await)
    }

    async fn call_once<T: FromRedisValue>(
        &self,
        pool: &Pool<Connections>,
        script: &Script,
        id: &str,
        more: impl ToRedisArgs,
    ) -> Result<T, TryError> {
        let mut connection = pool.get().await?;
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
            self.options.meter.count(Counter::ConnectionsDiscarded);
        }
        Ok(answer.map_err(|_| TryError::Answer("no answer in time"))??)
    }

    async fn renew_now(&self, pool: &Pool<Connections>, id: &str) -> Result<bool, TryError> {
        self.reach.note(self.call_once(pool, &self.renew, id, None::<u64>).await)
    }

    async fn raise_now(&self, id: &str, mark: FencingToken) -> Result<bool, TryError> {
        self.reach.note(self.call_once(&self.near, &self.raise, id, Some(mark)).await)
    }

    /// Answers who has the lock now, or none if it was not ours; and the token, if it is the lease that is wanted `next`.
    async fn release_now(
        &self,
        id: &str,
        next: Option<&str>,
        wanted: Wanted,
    ) -> Result<(FencingToken, Option<String>), TryError> {
        let soon = (wanted == Wanted::Soon).then_some("soon");
        self.reach.note(self.call_once(&self.near, &self.release, id, (next, soon)).await)
    }
}

/// Renews every third of the time to live. One failed try ends nothing: the lease is lost when its time has truly run out.
async fn keep_alive(client: Arc<Client>, id: String, held_until: watch::Sender<Option<Instant>>) {
    let third = client.options.ttl / 3;
    let mut until = held_until.borrow().unwrap_or_else(Instant::now);
    // A lock that was handed over lasts shorter at first.
    let mut pause = third.min(until.saturating_duration_since(Instant::now()) / 3);
    loop {
        tokio::time::sleep_until((Instant::now() + pause).min(until)).await;
        if Instant::now() >= until {
            break;
        }
        let asked = Instant::now();
        match tokio::time::timeout_at(until, client.renew_now(&client.far, &id)).await {
            Ok(Ok(true)) => {
                until = asked + client.options.ttl;
                held_until.send_replace(Some(until));
                client.options.meter.count(Counter::Renewals);
                pause = third;
            }
            Ok(Ok(false)) | Err(_) => {
                client.options.meter.count(Counter::RenewalFailures);
                break;
            }
            // guard: renewal_goes_on
            Ok(Err(e)) => {
                tracing::debug!(error = %e, "could not renew the lock; trying again");
                client.options.meter.count(Counter::RenewalFailures);
                pause = TRY_AGAIN;
            }
        }
    }
    tracing::error!(lease = id, "the lock was lost");
    held_until.send_replace(None);
}

pub(crate) struct RedisLease {
    client: Arc<Client>,
    wake: Arc<Wake>,
    id: String,
    granted: Instant,
    /// Whether others waited when it was granted.
    wanted: bool,
    /// `None` once the lease is lost.
    held_until: watch::Receiver<Option<Instant>>,
    renewal: JoinHandle<()>,
}

impl RedisLease {
    /// Kept alive from now on; what it `lasts` is counted from before it was `asked` for.
    fn granted(
        client: &Arc<Client>,
        wake: &Arc<Wake>,
        id: &str,
        asked: Instant,
        lasts: Duration,
        wanted: bool,
    ) -> Self {
        let (sender, held_until) = watch::channel(Some(asked + lasts));
        let (client, wake, id) = (Arc::clone(client), Arc::clone(wake), id.to_owned());
        let renewal = client.workers.spawn(keep_alive(Arc::clone(&client), id.clone(), sender));
        Self { client, wake, id, granted: Instant::now(), wanted, held_until, renewal }
    }

    /// Whether nobody else is known to wait for it, so that it may be kept for one more batch.
    pub(crate) async fn may_stay(&self, token: FencingToken) -> bool {
        let listens = !self.wanted && self.granted.elapsed() < STAY && self.is_held() && self.wake.is_connected();
        if listens {
            // Once for what has arrived to be read, and once for who listens to it.
            for _ in 0..2 {
                tokio::task::yield_now().await;
            }
        }
        // guard: stays_unless_wanted
        listens && !self.wake.is_wanted(&self.id, token)
    }

    pub(crate) fn is_held(&self) -> bool {
        self.held_until.borrow().is_some_and(|until| Instant::now() < until)
    }

    pub(crate) async fn lost(&mut self) {
        // An error means that the renewal has ended, and it ends only with a loss or with us.
        let _ = self.held_until.wait_for(Option::is_none).await;
    }

    /// Tries again while the lease would otherwise block others.
    pub(crate) async fn release(self, wanted: Wanted) -> (Released, Option<Again<(FencingToken, Self)>>) {
        self.renewal.abort();
        let mut next = (wanted != Wanted::Not).then(|| Place { id: self.client.new_lease_id(), looked: None });
        let mut asked_before = false;
        let released = loop {
            let asked = Instant::now();
            match self.client.release_now(&self.id, next.as_ref().map(|next| &*next.id), wanted).await {
                Ok((token @ 1.., _)) => {
                    let (ttl, id) = (self.client.options.ttl, next.unwrap_or_default().id);
                    let lease = Self::granted(&self.client, &self.wake, &id, asked, ttl, false);
                    return (Released::Free, Some(Again::Granted((token, lease))));
                }
                Ok((_, Some(holder))) if holder.is_empty() => return (Released::Free, None),
                // Done by the try whose answer was lost.
                Ok((_, None)) if asked_before => break Released::Free,
                Ok((_, Some(holder))) => {
                    // Stands behind it, without a look of its own.
                    if let Some(next) = &mut next {
                        next.looked = Some(asked);
                    }
                    break Released::HandedOver(replica_of(&holder).unwrap_or_default().to_owned());
                }
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
        // Also where no answer tells of it: it may stand in the queue, or have the lock.
        (released, next.map(Again::Waits))
    }

    /// Raised before it is handed over, so that the next holder's token is new.
    pub(crate) async fn release_and_raise(self, mark: FencingToken) -> Released {
        // guard: raise
        if let Err(e) = self.client.raise_now(&self.id, mark).await {
            tracing::warn!(error = %e, "cannot raise the token; trying again at the next grant");
        }
        self.release(Wanted::Not).await.0
    }

    pub(crate) async fn abandon(self) {
        // guard: renewal_ends
        self.renewal.abort();
        if let Err(e) = self.client.renew_now(&self.client.near, &self.id).await {
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
    fn a_grant_lasts_as_long_as_the_scripts_make_it() {
        let scripts = include_str!("scripts/queue.lua");
        assert!(scripts.contains(&format!("local CLAIM_MS = {}\n", CLAIM.as_millis())));
    }

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
