//! The state that all handlers share.

use std::{
    ops::Deref,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use opentelemetry_sdk::trace::SdkTracer;
use tokio::sync::{Semaphore, watch};

use crate::{
    commit::{Appender, peer_events::PeerEvents, reading::Reading},
    config::{Config, Switch},
    http::{
        answer_budget::AnswerBudget,
        body::budget::BodyBudget,
        middleware::{rate_limit::RateLimiter, tokens::Access},
        static_content::StaticContent,
    },
};

/// The most subscribers of `/events` at once.
pub(crate) const SUBSCRIBERS_MAX: usize = 64;

/// The shared state. The router clones it for each request, so it is a single reference.
#[derive(Clone)]
pub(crate) struct App(Arc<Shared>);

impl Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// The content of an `App`.
pub(crate) struct Shared {
    pub(crate) appender: Appender,
    pub(crate) reading: Reading,
    pub(crate) events: PeerEvents,
    pub(crate) subscriber_slots: Arc<Semaphore>,
    pub(crate) access: Arc<Access>,
    pub(crate) rate_limiter: Option<RateLimiter>,
    pub(crate) body_budget: BodyBudget,
    pub(crate) answer_budget: AnswerBudget,
    pub(crate) limits: Limits,
    pub(crate) draining: Draining,
    /// True once the replica accepts no more requests; streams end then.
    pub(crate) stopped: watch::Receiver<bool>,
    pub(crate) tracer: Option<SdkTracer>,
    /// openapi.yaml, rendered at its first request.
    pub(crate) contract: LazyLock<StaticContent>,
}

/// The services behind the HTTP interface.
pub struct AppParts {
    /// Appends rows.
    pub appender: Appender,
    /// Reads rows back.
    pub reading: Reading,
    /// The source of `/events`.
    pub events: PeerEvents,
    /// The tokens and their roles.
    pub access: Arc<Access>,
    /// Whether this replica is shutting down.
    pub draining: Draining,
    /// True once the replica accepts no more requests; streams end then.
    pub stopped: watch::Receiver<bool>,
    /// Exports spans, if traces are configured.
    pub tracer: Option<SdkTracer>,
}

/// Bounds on a single request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) body_bytes_max: usize,
    pub(crate) batch_bytes_max: usize,
    pub(crate) sleep_max: Duration,
    /// Whether `sleep` and `skip_release` are accepted.
    pub(crate) simulation: bool,
}

/// What a shutdown changes in answers.
#[derive(Debug, Clone, Default)]
pub struct Draining(Arc<DrainFlags>);

#[derive(Debug, Default)]
struct DrainFlags {
    begun: AtomicBool,
    closes_connections: AtomicBool,
}

impl Draining {
    /// Makes this replica not ready.
    pub fn begin(&self) {
        self.0.begun.store(true, Ordering::Relaxed);
    }

    /// Whether answers tell clients to close their connections.
    pub fn close_connections(&self, on: bool) {
        self.0.closes_connections.store(on, Ordering::Relaxed);
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.0.begun.load(Ordering::Relaxed)
    }

    pub(crate) fn closes_connections(&self) -> bool {
        self.0.closes_connections.load(Ordering::Relaxed)
    }
}

impl App {
    pub(crate) fn new(parts: AppParts, config: &Config, contract: fn() -> StaticContent) -> Self {
        let AppParts { appender, reading, events, access, draining, stopped, tracer } = parts;
        let limits = Limits {
            body_bytes_max: config.body_limit,
            batch_bytes_max: config.batch_limit,
            sleep_max: config.max_sleep,
            simulation: config.simulation == Switch::On,
        };
        Self(Arc::new(Shared {
            appender,
            reading,
            events,
            subscriber_slots: Arc::new(Semaphore::new(SUBSCRIBERS_MAX)),
            access,
            rate_limiter: config.rate_limit.map(RateLimiter::new),
            body_budget: BodyBudget::new(config.queue_bytes),
            answer_budget: AnswerBudget::default(),
            limits,
            draining,
            stopped,
            tracer,
            contract: LazyLock::new(contract),
        }))
    }
}
