//! Flags that tasks wait for.

use std::future::pending;

use tokio::sync::watch;

/// Returns once the flag is true; never if its sender is gone before.
pub(super) async fn is_true(mut flag: watch::Receiver<bool>) {
    if flag.wait_for(|on| *on).await.is_err() {
        pending().await
    }
}
