//! A lease in Redis: renewed in the background until it is released, abandoned or lost.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, task::JoinHandle, time::Instant};

use crate::{
    fencing::FencingToken,
    lock::{
        redis::{
            client::{Client, ReleaseAnswer, replica_of},
            notifications::NotificationListener,
        },
        types::{QueueTicket, Reacquire, Reacquired, Released},
    },
    metrics::Counter,
};

/// Pause before a failed renewal or release is repeated.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// How long a holder keeps the lock on the strength of notifications alone, so that a lost one costs a waiter no more than this.
const KEEP_MAX: Duration = Duration::from_millis(50);

/// How a lease was granted.
pub(super) struct LeaseTerms {
    /// Before the request was sent: the time to live counts from here.
    pub(super) since: Instant,
    pub(super) lasts: Duration,
    /// Whether other replicas waited then.
    pub(super) is_contended: bool,
}

pub(in crate::lock) struct RedisLease {
    client: Arc<Client>,
    listener: Arc<NotificationListener>,
    id: String,
    granted: Instant,
    was_contended: bool,
    /// `None` once the lease is lost.
    held_until: watch::Receiver<Option<Instant>>,
    renewal: JoinHandle<()>,
}

impl RedisLease {
    /// Starts to renew a lease that was granted.
    pub(super) fn start(
        client: &Arc<Client>,
        listener: &Arc<NotificationListener>,
        id: &str,
        terms: LeaseTerms,
    ) -> Self {
        let (sender, held_until) = watch::channel(Some(terms.since + terms.lasts));
        let renewal = client.spawn(keep_alive(Arc::clone(client), id.to_owned(), sender));
        Self {
            client: Arc::clone(client),
            listener: Arc::clone(listener),
            id: id.to_owned(),
            granted: Instant::now(),
            was_contended: terms.is_contended,
            held_until,
            renewal,
        }
    }

    pub(in crate::lock) fn is_held(&self) -> bool {
        self.held_until.borrow().is_some_and(|until| Instant::now() < until)
    }

    pub(in crate::lock) async fn lost(&mut self) {
        // An error means that the renewal task ended, which it does after a loss only.
        let _ = self.held_until.wait_for(Option::is_none).await;
    }

    /// Whether the lease may be kept for one more batch, because no other replica is known to wait.
    pub(in crate::lock) async fn may_keep(&self, token: FencingToken) -> bool {
        let may_ask =
            !self.was_contended && self.granted.elapsed() < KEEP_MAX && self.is_held() && self.listener.is_connected();
        if may_ask {
            yield_to_listener().await;
        }
        // guard: keep_unless_contended: a holder releases the lock if another replica waits
        may_ask && !self.listener.is_contended(&self.id, token)
    }

    /// Releases the lock, and repeats that while a failure would leave other replicas waiting.
    pub(in crate::lock) async fn release(self, reacquire: Reacquire) -> (Released, Reacquired<(FencingToken, Self)>) {
        self.renewal.abort();
        let mut next =
            (reacquire != Reacquire::No).then(|| QueueTicket { id: self.client.new_lease_id(), polled: None });
        let mut is_repeat = false;
        let released = loop {
            let since = Instant::now();
            let next_id = next.as_ref().map(|ticket| &*ticket.id);
            match self.client.release(&self.id, next_id, reacquire).await {
                Ok(ReleaseAnswer::Reacquired(token)) => {
                    let terms = LeaseTerms { since, lasts: self.client.ttl(), is_contended: false };
                    let id = next.unwrap_or_default().id;
                    let lease = Self::start(&self.client, &self.listener, &id, terms);
                    return (Released::Free, Reacquired::Granted((token, lease)));
                }
                Ok(ReleaseAnswer::Free) => return (Released::Free, Reacquired::No),
                Ok(ReleaseAnswer::HandedOver(holder)) => {
                    // The script has queued the next lease, as a poll does.
                    if let Some(next) = &mut next {
                        next.polled = Some(since);
                    }
                    break Released::HandedOver(replica_of(&holder).unwrap_or_default().to_owned());
                }
                // The call before this one released the lock, and its answer was lost.
                Ok(ReleaseAnswer::NotHeld) if is_repeat => break Released::Free,
                Ok(ReleaseAnswer::NotHeld) => {
                    tracing::warn!(lease = self.id, "the lock was lost before its release");
                    break Released::Lost;
                }
                Err(e) if self.is_held() => tracing::debug!(error = %e, "could not release the lock; trying again"),
                Err(e) => {
                    tracing::error!(error = %e, "could not release the lock before it expired");
                    break Released::Lost;
                }
            }
            is_repeat = true;
            tokio::time::sleep(RETRY_PAUSE).await;
        };
        // After a lost answer, too: the next lease may be in the queue, or hold the lock.
        (released, next.map_or(Reacquired::No, Reacquired::Queued))
    }

    /// Raises the counter before the lock is handed over, so that the next holder's token is above it.
    pub(in crate::lock) async fn release_and_raise_token(self, highest_token: FencingToken) -> Released {
        // guard: raise_token: the counter never falls below the highest token of the file
        if let Err(e) = self.client.raise_token(&self.id, highest_token).await {
            tracing::warn!(error = %e, "cannot raise the token; the next grant tries again");
        }
        self.release(Reacquire::No).await.0
    }

    pub(in crate::lock) async fn abandon(self) {
        // guard: renewal_ends: an abandoned lease is not renewed
        self.renewal.abort();
        if let Err(e) = self.client.renew_from_committer(&self.id).await {
            tracing::warn!(error = %e, "the abandoned lock expires before a full time to live");
        }
    }
}

impl Drop for RedisLease {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

/// Lets the runtime read the notification socket, then lets the listener's task handle the message.
async fn yield_to_listener() {
    for _ in 0..2 {
        tokio::task::yield_now().await;
    }
}

/// Renews every third of the time to live, unless the holder is stuck in a call to its volume: then others are to go on. A renewal
/// that failed or was left out is repeated: the lease is lost only when its time has passed.
async fn keep_alive(client: Arc<Client>, id: String, held_until: watch::Sender<Option<Instant>>) {
    let third = client.ttl() / 3;
    let mut until = held_until.borrow().unwrap_or_else(Instant::now);
    // A lock that was handed over lasts less than the time to live at first.
    let mut pause = third.min(until.saturating_duration_since(Instant::now()) / 3);
    loop {
        tokio::time::sleep_until((Instant::now() + pause).min(until)).await;
        if Instant::now() >= until {
            break;
        }
        // guard: renew_only_with_progress: a holder whose volume does not answer lets its lease end
        if client.user_is_stuck() {
            pause = RETRY_PAUSE;
            continue;
        }
        let since = Instant::now();
        match tokio::time::timeout_at(until, client.renew(&id)).await {
            Ok(Ok(true)) => {
                until = since + client.ttl();
                held_until.send_replace(Some(until));
                client.meter().count(Counter::Renewals);
                pause = third;
            }
            Ok(Ok(false)) | Err(_) => {
                client.meter().count(Counter::RenewalFailures);
                break;
            }
            // guard: renewal_goes_on: a renewal that failed is tried again
            Ok(Err(e)) => {
                tracing::debug!(error = %e, "could not renew the lock; trying again");
                client.meter().count(Counter::RenewalFailures);
                pause = RETRY_PAUSE;
            }
        }
    }
    tracing::error!(lease = id, "the lock was lost");
    held_until.send_replace(None);
}
