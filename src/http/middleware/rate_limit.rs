//! The rate limit: a token bucket for each client, which is known by its token or else by its address.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::http::{HeaderMap, HeaderName};
use governor::{
    Quota,
    clock::{Clock, DefaultClock},
    middleware::StateInformationMiddleware,
    state::keyed::DefaultKeyedStateStore,
};

use crate::{
    config::RateLimit,
    http::{error::whole_seconds, header_value::header_value},
};

/// So many clients have a bucket of their own. Once there are more, all clients share one.
const CLIENTS_MAX: usize = 100_000;
/// How often full buckets, of clients that stopped sending requests, are removed.
const CLEANUP_INTERVAL: Duration = Duration::from_secs(1);

const LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// The key of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Client {
    Token(u128),
    Address(IpAddr),
    /// All clients, while there are too many.
    Other,
}

impl Client {
    fn new(token: Option<u128>, peer: SocketAddr) -> Self {
        match (token, peer.ip().to_canonical()) {
            (Some(token), _) => Self::Token(token),
            // A client with one IPv6 address has its whole /64 network.
            (None, IpAddr::V6(address)) => {
                Self::Address(IpAddr::V6((address.to_bits() & !u128::from(u64::MAX)).into()))
            }
            (None, address) => Self::Address(address),
        }
    }
}

/// The state of a client's bucket after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RateLimitState {
    /// Requests that the client may still send at once.
    left: u32,
    /// Seconds, rounded up, until the next request is accepted or until the bucket is full.
    wait_s: u64,
    limit: RateLimit,
}

impl RateLimitState {
    /// The fields of draft-ietf-httpapi-ratelimit-headers-10.
    pub(crate) fn write_headers(self, headers: &mut HeaderMap) {
        let RateLimit { per_second, burst } = self.limit;
        let window_s = burst.get().div_ceil(per_second.get());
        headers.insert(LIMIT, header_value(format!("\"client\";r={};t={}", self.left, self.wait_s)));
        headers.insert(POLICY, header_value(format!("\"client\";q={burst};w={window_s}")));
    }
}

type Buckets = governor::RateLimiter<Client, DefaultKeyedStateStore<Client>, DefaultClock, StateInformationMiddleware>;

/// The buckets of all clients.
#[derive(Clone)]
pub(crate) struct RateLimiter {
    limit: RateLimit,
    buckets: Arc<Buckets>,
    /// There are `CLIENTS_MAX` buckets or more.
    is_crowded: Arc<AtomicBool>,
}

impl RateLimiter {
    /// Starts a task that removes unused buckets, so it must be called within a Tokio runtime.
    pub(crate) fn new(limit: RateLimit) -> Self {
        let quota = Quota::per_second(limit.per_second).allow_burst(limit.burst);
        let buckets = Arc::new(governor::RateLimiter::dashmap(quota).with_middleware());
        let is_crowded = Arc::new(AtomicBool::new(false));
        tokio::spawn(clean_up(Arc::downgrade(&buckets), Arc::clone(&is_crowded)));
        Self { limit, buckets, is_crowded }
    }

    /// Takes one request out of the client's bucket.
    ///
    /// # Errors
    /// How long to wait for the next request, if the bucket is empty.
    pub(crate) fn check(
        &self,
        token: Option<u128>,
        peer: SocketAddr,
    ) -> Result<RateLimitState, (RateLimitState, Duration)> {
        let is_crowded = self.is_crowded.load(Ordering::Relaxed);
        let client = if is_crowded { Client::Other } else { Client::new(token, peer) };
        let state = |left: u32, wait_s| RateLimitState { left, wait_s, limit: self.limit };
        match self.buckets.check_key(&client) {
            Ok(bucket) => {
                let left = bucket.remaining_burst_capacity();
                let used = self.limit.burst.get() - left.min(self.limit.burst.get());
                Ok(state(left, u64::from(used.div_ceil(self.limit.per_second.get()))))
            }
            Err(until) => {
                let wait = until.wait_time_from(DefaultClock::default().now());
                Err((state(0, whole_seconds(wait)), wait))
            }
        }
    }
}

async fn clean_up(buckets: Weak<Buckets>, is_crowded: Arc<AtomicBool>) {
    loop {
        tokio::time::sleep(CLEANUP_INTERVAL).await;
        let Some(buckets) = buckets.upgrade() else { return };
        buckets.retain_recent();
        buckets.shrink_to_fit();
        is_crowded.store(buckets.len() >= CLIENTS_MAX, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn limit(per_second: u32, burst: u32) -> RateLimit {
        let number = |number| NonZeroU32::new(number).expect("not zero");
        RateLimit { per_second: number(per_second), burst: number(burst) }
    }

    fn peer(address: &str) -> SocketAddr {
        SocketAddr::new(address.parse().expect("an address"), 1)
    }

    #[tokio::test]
    async fn each_client_has_its_own_bucket() {
        let limiter = RateLimiter::new(limit(1, 2));
        for (token, address) in [
            (None, "10.0.0.1"),
            (None, "10.0.0.2"),
            (Some(7), "10.0.0.1"),
            (Some(8), "10.0.0.1"),
            (None, "2001:db8::1"),
        ] {
            let check =
                |_| limiter.check(token, peer(address)).map(|state| state.left).map_err(|(state, _)| state.wait_s);
            assert_eq!([0; 3].map(check), [Ok(1), Ok(0), Err(1)], "{token:?} {address}");
        }
        assert!(limiter.check(Some(7), peer("10.9.9.9")).is_err(), "a token is one client at every address");
        assert!(limiter.check(None, peer("2001:db8::2")).is_err(), "an IPv6 network is one client");
        assert!(
            limiter.check(None, peer("::ffff:10.0.0.1")).is_err(),
            "an IPv4 address is one client in both notations"
        );
    }
}
