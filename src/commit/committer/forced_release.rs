//! Forced releases: the lock is taken from its holder for an admin.

use std::sync::Arc;

use tokio::time::Instant;

use crate::commit::{
    committer::{Committer, FILE_LOCK_WAIT, Fatal},
    error::AppendError,
};
use crate::{
    api::{events::Change, lock_status::ForcedRelease, outcome::Outcome},
    fencing::FencingToken,
    metrics::Counter,
    storage::{self, Turn},
};

impl Committer {
    /// Takes the lock from its holder, perhaps this replica, and answers all requests for that.
    pub(super) async fn force_release(&mut self) -> Result<(), Fatal> {
        let requests = self.queue.take_forced_releases();
        if requests.is_empty() {
            return Ok(());
        }
        let result = self.fence_and_release().await;
        match &result {
            Ok(ForcedRelease { holder, token, .. }) => {
                tracing::warn!(?holder, token, "the lock was released by force");
                self.observers.meter().count(Counter::Forced);
                self.observers.lock_changed(Change::Forced, *token, |event| event.other.clone_from(holder));
            }
            Err(e) => tracing::error!(error = %e, "the lock was not released"),
        }
        let sync_failed = result == Err(AppendError::SyncFailed);
        for request in requests {
            let _ = request.send(result.clone());
        }
        if sync_failed { Err(Fatal::SyncFailed) } else { Ok(()) }
    }

    /// Records a newer token first, so that the old holder can no longer write; then releases the lock. Redis may not answer, so both
    /// end with the grace time.
    async fn fence_and_release(&mut self) -> Result<ForcedRelease, AppendError> {
        let (lock, queue) = (Arc::clone(&self.lock), Arc::clone(&self.queue));
        let (holder, token) = tokio::select! {
            fenced = self.fence_holder() => fenced?,
            // guard: no_release_after_grace: an admin's request is answered when the grace time ends
            () = queue.grace_over() => {
                self.storage.end_hold();
                return Err(AppendError::Draining);
            }
        };
        let released = tokio::select! {
            released = lock.force_release() => released.ok_or_else(|| AppendError::of_lock(&lock, FILE_LOCK_WAIT))?,
            () = queue.grace_over() => return Err(AppendError::Internal(Outcome::Unknown)),
        };
        Ok(ForcedRelease { released, holder, token })
    }

    /// Records a token that is higher than the holder's. Returns the holder and the token.
    async fn fence_holder(&mut self) -> Result<(Option<String>, FencingToken), AppendError> {
        let lock = Arc::clone(&self.lock);
        let unavailable = || AppendError::of_lock(&lock, FILE_LOCK_WAIT);
        let holder = self.lock.status().await.ok_or_else(unavailable)?.holder;
        let mut token = self.lock.next_token().await.ok_or_else(unavailable)?;
        let (now, lease) = (Instant::now(), uuid::Uuid::new_v4().as_u128());
        loop {
            let turn = Turn {
                token,
                lease,
                granted: now.into_std(),
                timestamp: "",
                deadline: (now + FILE_LOCK_WAIT).into_std(),
                still_held: &|| true,
            };
            // guard: fence_before_force: a forced release fences the old holder first
            match self.storage.call("fence", |storage| storage.fence(None, &turn)) {
                Ok(_) => break,
                Err(storage::AppendError::Fenced { highest_token }) => {
                    token = highest_token + 1;
                    self.lock.raise_token(token).await;
                }
                Err(e) => {
                    self.storage.end_hold();
                    return Err(AppendError::from(&e));
                }
            }
        }
        self.storage.end_hold();
        Ok((holder, token))
    }
}
