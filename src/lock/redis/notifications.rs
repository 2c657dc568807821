//! What other replicas tell this one by way of Redis: one subscription a replica, on a connection of its own, that reconnects by
//! itself.
//!
//! All of it is a hint. Whoever misses one finds out at its next look.

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

use crate::fencing::FencingToken;
use crate::lock::redis::topology::{CALL_TIMEOUT, Server};

/// How often a waiter looks while wake-ups arrive: at least four times before it would pass for dead.
const LOOK: Duration = Duration::from_millis(250);
const RECONNECT: Duration = Duration::from_millis(250);

pub(crate) struct Wake {
    server: Arc<Server>,
    channel: String,
    shared: Arc<Shared>,
    listener: OnceLock<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    rung: Notify,
    connected: AtomicBool,
    /// The newest of either kind.
    told: Mutex<Told>,
}

#[derive(Debug, Default, PartialEq)]
struct Told {
    granted: Option<Grant>,
    /// The lease that somebody waits for, and the newest token then: one that it got later was got when nobody waited.
    wanted: Option<(FencingToken, String)>,
}

/// A lease that was handed the lock.
#[derive(Debug, PartialEq)]
pub(crate) struct Grant {
    id: String,
    pub(crate) token: FencingToken,
    /// Whether others waited behind it.
    pub(crate) wanted: bool,
}

impl Wake {
    /// To be told what is said on `channel`, once somebody listens.
    pub(crate) fn new(server: Arc<Server>, channel: String) -> Self {
        Self { server, channel, shared: Arc::default(), listener: OnceLock::new() }
    }

    /// Listens from now on, on the runtime of who waits.
    pub(crate) fn listen(&self) {
        self.listener.get_or_init(|| {
            tokio::spawn(listen(Arc::clone(&self.server), self.channel.clone(), Arc::clone(&self.shared)))
        });
    }

    /// Returns when a look is worth while: woken, or after `LOOK`; without wake-ups after `pause`.
    pub(crate) async fn wait(&self, pause: Duration, holder_expires: Option<Duration>) {
        let longest = if self.is_connected() { LOOK } else { pause };
        let expires = holder_expires.map_or(longest, |expires| expires.max(Duration::from_millis(1)));
        // The time-out is the fallback.
        let _ = timeout(longest.min(expires), self.shared.rung.notified()).await;
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.shared.connected.load(Ordering::Relaxed)
    }

    /// The lock, if this lease was told that it has it.
    pub(crate) fn take_grant(&self, id: &str) -> Option<Grant> {
        self.shared.told().granted.take().filter(|grant| grant.id == id)
    }

    /// Whether somebody waits for this lease to end.
    pub(crate) fn is_wanted(&self, id: &str, token: FencingToken) -> bool {
        self.shared.told().wanted.as_ref().is_some_and(|(newest, wanted)| wanted == id && *newest >= token)
    }
}

impl Drop for Wake {
    fn drop(&mut self) {
        if let Some(listener) = self.listener.get() {
            listener.abort();
        }
    }
}

impl Shared {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().expect("no holder of what was told panics")
    }
}

async fn listen(server: Arc<Server>, channel: String, shared: Arc<Shared>) {
    loop {
        if let Err(e) = listen_once(&server, &channel, &shared).await {
            tracing::debug!(error = %e, "no wake-ups from Redis");
        }
        shared.connected.store(false, Ordering::Relaxed);
        tokio::time::sleep(RECONNECT).await;
    }
}

/// Returns when the connection ends.
async fn listen_once(server: &Server, channel: &str, shared: &Shared) -> RedisResult<()> {
    let subscribe = async {
        let mut subscription = server.subscriber().await?;
        subscription.subscribe(channel).await?;
        RedisResult::Ok(subscription)
    };
    let Ok(subscription) = timeout(CALL_TIMEOUT, subscribe).await else { return Ok(()) };
    let mut subscription = subscription?;
    shared.connected.store(true, Ordering::Relaxed);
    let mut messages = pin!(subscription.on_message());
    while let Some(message) = messages.next().await {
        if shared.told().note(message.get_payload_bytes()) {
            shared.rung.notify_one();
        }
    }
    Ok(())
}

impl Told {
    /// `granted <token> <how many wait> <lease id>`, or `wanted <newest token> <lease id>`; anything else is nobody's. Answers
    /// whether a waiter is to wake up.
    fn note(&mut self, message: &[u8]) -> bool {
        let parts = std::str::from_utf8(message).ok().and_then(|text| text.split_once(' '));
        match parts {
            Some(("granted", rest)) => {
                let granted = parse_grant(rest);
                let is_one = granted.is_some();
                self.granted = granted.or(self.granted.take());
                is_one
            }
            Some(("wanted", rest)) => {
                self.wanted = parse_wanted(rest).or(self.wanted.take());
                false
            }
            _ => false,
        }
    }
}

fn parse_grant(text: &str) -> Option<Grant> {
    let mut parts = text.splitn(3, ' ');
    let (token, waiting, id) = (parts.next()?.parse().ok()?, parts.next()?.parse::<u64>().ok()?, parts.next()?);
    Some(Grant { id: id.to_owned(), token, wanted: waiting > 0 })
}

fn parse_wanted(text: &str) -> Option<(FencingToken, String)> {
    let (newest, id) = text.split_once(' ')?;
    Some((newest.parse().ok()?, id.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_names_its_lease_and_anything_else_is_nobodys() {
        let mut told = Told::default();
        for nonsense in
            ["", "x", "granted", "granted 1 1", "granted x 1 id", "granted 1 x id", "wanted id", "given 1 1 id"]
        {
            assert!(!told.note(nonsense.as_bytes()), "{nonsense}");
        }
        assert_eq!(told, Told::default());
        assert!(told.note(b"granted 7 0 a b/c/1"));
        assert!(!told.note(b"wanted 7 a b/c/2"), "a holder does not wait");
        let grant = Grant { id: "a b/c/1".to_owned(), token: 7, wanted: false };
        assert_eq!(told, Told { granted: Some(grant), wanted: Some((7, "a b/c/2".to_owned())) });
    }
}
