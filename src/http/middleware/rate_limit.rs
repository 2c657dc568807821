//! How much one client may ask for: a token bucket for each, by its token or else by its address.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use governor::{
    Quota, RateLimiter,
    clock::{Clock, DefaultClock},
    middleware::StateInformationMiddleware,
    state::keyed::DefaultKeyedStateStore,
};

use crate::config::RateLimit;

/// So many clients have a bucket of their own; further ones share one.
const CLIENTS_MAX: usize = 100_000;
/// How often the buckets of those who came no more are forgotten.
const FORGET: Duration = Duration::from_secs(1);

const LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Client {
    Token(u128),
    Address(IpAddr),
    /// One of too many.
    Other,
}

impl Client {
    fn new(token: Option<u128>, peer: SocketAddr) -> Self {
        match (token, peer.ip().to_canonical()) {
            (Some(token), _) => Self::Token(token),
            // Whoever has one address of version 6 has all of its network.
            (None, IpAddr::V6(address)) => {
                Self::Address(IpAddr::V6((address.to_bits() & !u128::from(u64::MAX)).into()))
            }
            (None, address) => Self::Address(address),
        }
    }
}

/// How a request stands to its client's share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    /// Requests that it may still make at once.
    left: u32,
    /// Whole seconds until there is one more, or until all are there again.
    wait_s: u64,
    rate: RateLimit,
}

impl Share {
    /// The fields of draft-ietf-httpapi-ratelimit-headers-10.
    pub(crate) fn tell(self, headers: &mut HeaderMap) {
        let RateLimit { per_second, burst } = self.rate;
        let window_s = burst.get().div_ceil(per_second.get());
        let value = |text: String| HeaderValue::try_from(text).expect("digits");
        headers.insert(LIMIT, value(format!("\"client\";r={};t={}", self.left, self.wait_s)));
        headers.insert(POLICY, value(format!("\"client\";q={burst};w={window_s}")));
    }
}

type Buckets = RateLimiter<Client, DefaultKeyedStateStore<Client>, DefaultClock, StateInformationMiddleware>;

/// The buckets of all clients.
#[derive(Clone)]
pub(crate) struct Shares {
    rate: RateLimit,
    buckets: Arc<Buckets>,
    crowded: Arc<AtomicBool>,
}

impl Shares {
    /// Full buckets, and a task that forgets who came no more.
    pub(crate) fn new(rate: RateLimit) -> Self {
        let quota = Quota::per_second(rate.per_second).allow_burst(rate.burst);
        let buckets = Arc::new(RateLimiter::dashmap(quota).with_middleware());
        let crowded = Arc::new(AtomicBool::new(false));
        tokio::spawn(forget(Arc::downgrade(&buckets), Arc::clone(&crowded)));
        Self { rate, buckets, crowded }
    }

    /// Takes one request out of its client's bucket.
    ///
    /// # Errors
    /// How long to wait for the next one, if the bucket is empty.
    pub(crate) fn take(&self, token: Option<u128>, peer: SocketAddr) -> Result<Share, (Share, Duration)> {
        let crowded = self.crowded.load(Ordering::Relaxed);
        let client = if crowded { Client::Other } else { Client::new(token, peer) };
        let share = |left: u32, wait_s| Share { left, wait_s, rate: self.rate };
        match self.buckets.check_key(&client) {
            Ok(state) => {
                let left = state.remaining_burst_capacity();
                let used = self.rate.burst.get() - left.min(self.rate.burst.get());
                Ok(share(left, u64::from(used.div_ceil(self.rate.per_second.get()))))
            }
            Err(until) => {
                let wait = until.wait_time_from(DefaultClock::default().now());
                Err((share(0, whole_seconds(wait)), wait))
            }
        }
    }
}

/// Rounded up, and at least one: who comes back too early is refused again.
pub(crate) fn whole_seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

async fn forget(buckets: std::sync::Weak<Buckets>, crowded: Arc<AtomicBool>) {
    loop {
        tokio::time::sleep(FORGET).await;
        let Some(buckets) = buckets.upgrade() else { return };
        buckets.retain_recent();
        buckets.shrink_to_fit();
        crowded.store(buckets.len() >= CLIENTS_MAX, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn rate(per_second: u32, burst: u32) -> RateLimit {
        let number = |number| NonZeroU32::new(number).expect("not zero");
        RateLimit { per_second: number(per_second), burst: number(burst) }
    }

    fn peer(address: &str) -> SocketAddr {
        SocketAddr::new(address.parse().expect("an address"), 1)
    }

    #[tokio::test]
    async fn each_client_has_a_share_of_its_own() {
        let shares = Shares::new(rate(1, 2));
        for (token, address) in [
            (None, "10.0.0.1"),
            (None, "10.0.0.2"),
            (Some(7), "10.0.0.1"),
            (Some(8), "10.0.0.1"),
            (None, "2001:db8::1"),
        ] {
            let left = |_| shares.take(token, peer(address)).map(|share| share.left).map_err(|(share, _)| share.wait_s);
            assert_eq!([0; 3].map(left), [Ok(1), Ok(0), Err(1)], "{token:?} {address}");
        }
        assert!(shares.take(Some(7), peer("10.9.9.9")).is_err(), "a token is one client wherever it comes from");
        assert!(shares.take(None, peer("2001:db8::2")).is_err(), "and so is a network of version 6");
        assert!(shares.take(None, peer("::ffff:10.0.0.1")).is_err(), "and an address in either version");
    }
}
