//! Calls whose answer all readers share: any number of readers costs the backend one call at a time, and the lock's holder nothing.

use std::{sync::Arc, time::Duration};

use tokio::{
    runtime::Handle,
    sync::Mutex,
    time::{Instant, sleep_until},
};

/// The least time between the beginnings of two calls, so that readers who ask again and again cost at most 200 calls a second.
const CALL_INTERVAL: Duration = Duration::from_millis(5);

/// A call without arguments. Clones of its answer go to all who wait for it.
pub(super) struct SharedCall<T> {
    /// Locked while a call runs.
    last: Arc<Mutex<Option<LastCall<T>>>>,
    runtime: Handle,
}

struct LastCall<T> {
    began: Instant,
    ended: Instant,
    /// `None` if the call failed.
    answer: Option<T>,
}

impl<T> LastCall<T> {
    /// Whether its answer is good for a reader who asked then. An answer must be newer than the question, since the reader may know of
    /// a change in between. A failure needs not be: then nobody waits for two calls that time out.
    fn serves(&self, asked: Instant) -> bool {
        let from = if self.answer.is_some() { self.began } else { self.ended };
        from >= asked
    }
}

impl<T: Clone + Send + 'static> SharedCall<T> {
    /// Calls run on the current runtime.
    pub(super) fn new() -> Self {
        Self { last: Arc::default(), runtime: Handle::current() }
    }

    /// Waits for the answer of the next call, and makes that call unless another reader does. `None` if it fails.
    pub(super) async fn answer(&self, call: impl Future<Output = Option<T>> + Send + 'static) -> Option<T> {
        let asked = Instant::now();
        let mut last = Arc::clone(&self.last).lock_owned().await;
        // guard: shared_status: readers of the lock's status share calls
        if let Some(last) = last.as_ref().filter(|last| last.serves(asked)) {
            return last.answer.clone();
        }
        // A task of its own: a reader that is gone does not end a call that serves others.
        let run = async move {
            if let Some(last) = &*last {
                sleep_until(last.began + CALL_INTERVAL).await;
            }
            let began = Instant::now();
            let answer = call.await;
            *last = Some(LastCall { began, ended: Instant::now(), answer: answer.clone() });
            answer
        };
        self.runtime.spawn(run).await.ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;
    use tokio::sync::Semaphore;

    use super::*;

    /// Calls that end when the test permits it.
    struct Backend {
        shared: SharedCall<usize>,
        begun: Arc<AtomicUsize>,
        running: Arc<AtomicUsize>,
        permits: Arc<Semaphore>,
    }

    impl Backend {
        fn new() -> Arc<Self> {
            let (begun, running, permits) = (Arc::default(), Arc::default(), Arc::new(Semaphore::new(0)));
            Arc::new(Self { shared: SharedCall::new(), begun, running, permits })
        }

        /// Asks, and returns the number of the call that answered. Odd numbers fail if `fails`.
        async fn ask(self: Arc<Self>, fails: bool) -> Option<usize> {
            let (begun, running, permits) =
                (Arc::clone(&self.begun), Arc::clone(&self.running), Arc::clone(&self.permits));
            let call = async move {
                let number = begun.fetch_add(1, Ordering::SeqCst) + 1;
                assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0, "one call at a time");
                permits.acquire().await.expect("open").forget();
                running.fetch_sub(1, Ordering::SeqCst);
                (!fails || number % 2 == 0).then_some(number)
            };
            self.shared.answer(call).await
        }

        async fn until_begun(&self, calls: usize) {
            while self.begun.load(Ordering::SeqCst) < calls {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Lets tasks that were spawned come to their first wait.
    async fn let_others_ask() {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn readers_share_the_next_call() {
        // (whether the first call fails, number of the call that answers the first reader, and the 300 that come while it runs)
        for (fails, first, others) in [(false, Some(1), Some(2)), (true, None, None)] {
            let backend = Backend::new();
            let first_reader = tokio::spawn(Arc::clone(&backend).ask(fails));
            backend.until_begun(1).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
            let readers: Vec<_> = (0..300).map(|_| tokio::spawn(Arc::clone(&backend).ask(fails))).collect();
            let_others_ask().await;
            backend.permits.add_permits(1000);
            assert_eq!(first_reader.await.expect("no panic"), first);
            let answers: Vec<_> = join_all(readers).await.into_iter().map(|answer| answer.expect("no panic")).collect();
            assert!(answers.iter().all(|answer| *answer == others), "{answers:?}");
            assert_eq!(backend.begun.load(Ordering::SeqCst), if fails { 1 } else { 2 });
        }
    }

    #[tokio::test]
    async fn call_whose_reader_is_gone_serves_those_who_wait() {
        let backend = Backend::new();
        let gone = tokio::spawn(Arc::clone(&backend).ask(false));
        backend.until_begun(1).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        let waiting = tokio::spawn(Arc::clone(&backend).ask(false));
        let_others_ask().await;
        gone.abort();
        let_others_ask().await;
        assert_eq!(backend.begun.load(Ordering::SeqCst), 1, "the first call still runs");
        backend.permits.add_permits(1000);
        assert_eq!(waiting.await.expect("no panic"), Some(2));
    }

    #[tokio::test]
    async fn calls_in_a_row_begin_an_interval_apart() {
        let backend = Backend::new();
        backend.permits.add_permits(20);
        let began = Instant::now();
        for number in 1..=20 {
            assert_eq!(Arc::clone(&backend).ask(false).await, Some(number), "a lone reader gets a call of its own");
        }
        assert!(began.elapsed() >= CALL_INTERVAL * 19);
    }
}
