//! Notifications from other replicas, over one Redis subscription per replica. It has its own connection, and reconnects by itself.
//!
//! They are hints only: a replica that misses one finds out at its next poll.

use std::{
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;
use redis::RedisResult;
use tokio::{sync::Notify, task::JoinHandle, time::timeout};

use crate::{
    fencing::FencingToken,
    lock::redis::topology::{CALL_TIMEOUT, Topology},
};

/// Pause between two polls of a connected waiter: at least four polls before other replicas take it for dead.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Pause before a new subscription after a failure.
const RECONNECT_PAUSE: Duration = Duration::from_millis(250);

pub(super) struct NotificationListener {
    topology: Arc<Topology>,
    channel: String,
    shared: Arc<Shared>,
    task: OnceLock<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    granted: Notify,
    is_connected: AtomicBool,
    last: Mutex<LastNotification>,
}

/// The last notification of each kind.
#[derive(Debug, Default, PartialEq)]
struct LastNotification {
    grant: Option<Grant>,
    contention: Option<Contention>,
}

/// `granted`: the lock was handed over to a lease of this replica.
#[derive(Debug, PartialEq)]
pub(super) struct Grant {
    lease_id: String,
    pub(super) token: FencingToken,
    /// Whether other replicas wait behind it.
    pub(super) is_contended: bool,
}

/// `wanted`: another replica waits for a lease of this one.
#[derive(Debug, PartialEq)]
struct Contention {
    lease_id: String,
    /// The newest token at that time. A lease whose token is higher was granted later, when no replica waited.
    newest_token: FencingToken,
}

impl NotificationListener {
    /// A listener on `channel`, not started yet.
    pub(super) fn new(topology: Arc<Topology>, channel: String) -> Self {
        Self { topology, channel, shared: Arc::default(), task: OnceLock::new() }
    }

    /// Starts to listen, on the current runtime, unless it listens already.
    pub(super) fn start(&self) {
        self.task.get_or_init(|| {
            tokio::spawn(listen(Arc::clone(&self.topology), self.channel.clone(), Arc::clone(&self.shared)))
        });
    }

    /// Waits for a grant, at most until the next poll: `POLL_INTERVAL` while connected, else `pause`; sooner if the holder's time to live
    /// ends before that.
    pub(super) async fn wait(&self, pause: Duration, holder_expires_in: Option<Duration>) {
        let longest = if self.is_connected() { POLL_INTERVAL } else { pause };
        let expires_in = holder_expires_in.map_or(longest, |expires_in| expires_in.max(Duration::from_millis(1)));
        // A time-out is no error: the caller polls.
        let _ = timeout(longest.min(expires_in), self.shared.granted.notified()).await;
    }

    pub(super) fn is_connected(&self) -> bool {
        self.shared.is_connected.load(Ordering::Relaxed)
    }

    /// Removes and returns the last grant, if it is this lease's.
    pub(super) fn take_grant(&self, lease_id: &str) -> Option<Grant> {
        self.shared.last().grant.take().filter(|grant| grant.lease_id == lease_id)
    }

    /// Whether another replica waits for this lease to end.
    pub(super) fn is_contended(&self, lease_id: &str, token: FencingToken) -> bool {
        let last = self.shared.last();
        last.contention.as_ref().is_some_and(|wanted| wanted.lease_id == lease_id && wanted.newest_token >= token)
    }
}

impl Drop for NotificationListener {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}

impl Shared {
    fn last(&self) -> MutexGuard<'_, LastNotification> {
        self.last.lock().expect("no code panics while it holds this mutex")
    }
}

async fn listen(topology: Arc<Topology>, channel: String, shared: Arc<Shared>) {
    loop {
        if let Err(e) = listen_once(&topology, &channel, &shared).await {
            // Its text could repeat the password.
            tracing::debug!(error = ?e.kind(), "no notifications from Redis; trying again");
        }
        shared.is_connected.store(false, Ordering::Relaxed);
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}

/// Returns when the connection ends.
async fn listen_once(topology: &Topology, channel: &str, shared: &Shared) -> RedisResult<()> {
    let subscribe = async {
        let mut subscription = topology.subscriber().await?;
        subscription.subscribe(channel).await?;
        RedisResult::Ok(subscription)
    };
    let Ok(subscription) = timeout(CALL_TIMEOUT, subscribe).await else { return Ok(()) };
    let mut subscription = subscription?;
    shared.is_connected.store(true, Ordering::Relaxed);
    let mut messages = pin!(subscription.on_message());
    while let Some(message) = messages.next().await {
        let is_grant = shared.last().record(message.get_payload_bytes());
        if is_grant {
            shared.granted.notify_one();
        }
    }
    Ok(())
}

impl LastNotification {
    /// Records a message, and returns whether it is a grant. The formats are those of queue.lua and acquire.lua; other texts are ignored:
    ///
    /// - `granted <token> <number of waiters> <lease id>`
    /// - `wanted <newest token> <lease id>`
    fn record(&mut self, message: &[u8]) -> bool {
        let parts = std::str::from_utf8(message).ok().and_then(|text| text.split_once(' '));
        match parts {
            Some(("granted", rest)) => {
                let grant = parse_grant(rest);
                let is_grant = grant.is_some();
                self.grant = grant.or(self.grant.take());
                is_grant
            }
            Some(("wanted", rest)) => {
                self.contention = parse_contention(rest).or(self.contention.take());
                false
            }
            _ => false,
        }
    }
}

fn parse_grant(text: &str) -> Option<Grant> {
    let mut parts = text.splitn(3, ' ');
    let (token, waiters, id) = (parts.next()?.parse().ok()?, parts.next()?.parse::<u64>().ok()?, parts.next()?);
    Some(Grant { lease_id: id.to_owned(), token, is_contended: waiters > 0 })
}

fn parse_contention(text: &str) -> Option<Contention> {
    let (newest, id) = text.split_once(' ')?;
    Some(Contention { lease_id: id.to_owned(), newest_token: newest.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notification_names_its_lease_and_other_text_is_ignored() {
        let mut last = LastNotification::default();
        for nonsense in
            ["", "x", "granted", "granted 1 1", "granted x 1 id", "granted 1 x id", "wanted id", "given 1 1 id"]
        {
            assert!(!last.record(nonsense.as_bytes()), "{nonsense}");
        }
        assert_eq!(last, LastNotification::default());
        assert!(last.record(b"granted 7 0 a b/c/1"));
        assert!(!last.record(b"wanted 7 a b/c/2"), "not a grant");
        let grant = Grant { lease_id: "a b/c/1".to_owned(), token: 7, is_contended: false };
        let contention = Contention { lease_id: "a b/c/2".to_owned(), newest_token: 7 };
        assert_eq!(last, LastNotification { grant: Some(grant), contention: Some(contention) });
    }
}
