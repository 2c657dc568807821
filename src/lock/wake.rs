//! Wake-ups: one subscription a replica, on a connection of its own, that reconnects by itself.
//!
//! A wake-up is a hint. Whoever misses one finds out at its next look.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;
use redis::RedisResult;
use tokio::{sync::Notify, task::JoinHandle, time::timeout};

use super::server::{CALL_TIMEOUT, Server};

/// How often a waiter looks while wake-ups arrive: at least four times before it would pass for dead.
const LOOK: Duration = Duration::from_millis(250);
const RECONNECT: Duration = Duration::from_millis(250);

pub(super) struct Wake {
    shared: Arc<Shared>,
    listener: JoinHandle<()>,
}

struct Shared {
    rung: Notify,
    connected: AtomicBool,
}

impl Wake {
    /// Listens on `channel` for lease ids that start with `prefix`.
    pub(super) fn listen(server: Arc<Server>, channel: String, prefix: String) -> Self {
        let shared = Arc::new(Shared { rung: Notify::new(), connected: AtomicBool::new(false) });
        let listener = tokio::spawn(listen(server, channel, prefix, Arc::clone(&shared)));
        Self { shared, listener }
    }

    /// Returns when a look is worth while: woken, or after `LOOK`; without wake-ups after `pause`.
    pub(super) async fn wait(&self, pause: Duration, holder_expires: Option<Duration>) {
        let longest = if self.shared.connected.load(Ordering::Relaxed) { LOOK } else { pause };
        let expires = holder_expires.map_or(longest, |expires| expires.max(Duration::from_millis(1)));
        // The time-out is the fallback.
        let _ = timeout(longest.min(expires), self.shared.rung.notified()).await;
    }
}

impl Drop for Wake {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

async fn listen(server: Arc<Server>, channel: String, prefix: String, shared: Arc<Shared>) {
    loop {
        if let Err(e) = listen_once(&server, &channel, &prefix, &shared).await {
            tracing::debug!(error = %e, "no wake-ups from Redis");
        }
        shared.connected.store(false, Ordering::Relaxed);
        tokio::time::sleep(RECONNECT).await;
    }
}

/// Returns when the connection ends.
async fn listen_once(server: &Server, channel: &str, prefix: &str, shared: &Shared) -> RedisResult<()> {
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
        if message.get_payload_bytes().starts_with(prefix.as_bytes()) {
            shared.rung.notify_one();
        }
    }
    Ok(())
}
