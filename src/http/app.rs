//! The state that handlers share.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use opentelemetry_sdk::trace::SdkTracer;
use tokio::sync::{Semaphore, watch};

use crate::{
    commit::{Appender, peer_events::PeerEvents, reading::Reading},
    config::{Config, Switch},
    http::{
        body::read::Room,
        handlers::events::READERS_MAX,
        middleware::{rate_limit::Shares, tokens::Access},
    },
};

/// What the handlers share. The router clones it for each request: one reference is enough to count.
#[derive(Clone)]
pub struct App(Arc<Shared>);

impl Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// What an `App` refers to.
pub struct Shared {
    pub(crate) appender: Appender,
    pub(crate) reading: Reading,
    pub(crate) events: PeerEvents,
    /// Places for readers of events.
    pub(crate) watchers: Arc<Semaphore>,
    pub(crate) access: Arc<Access>,
    pub(crate) shares: Option<Shares>,
    /// For bodies that are under way.
    pub(crate) room: Room,
    pub(crate) limits: Limits,
    pub(crate) draining: Draining,
    /// True once nothing more is taken: streams end then.
    pub(crate) stopped: watch::Receiver<bool>,
    pub(crate) tracer: Option<SdkTracer>,
}

/// What there is to serve.
pub struct Parts {
    /// Takes rows.
    pub appender: Appender,
    /// Reads them back.
    pub reading: Reading,
    /// Tells of them.
    pub events: PeerEvents,
    /// Who may.
    pub access: Arc<Access>,
    /// Not ready any more.
    pub draining: Draining,
    /// True once nothing more is taken: streams end then.
    pub stopped: watch::Receiver<bool>,
    /// Takes spans, if anybody wants them.
    pub tracer: Option<SdkTracer>,
}

/// What a request may ask for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) body_bytes_max: usize,
    pub(crate) batch_bytes_max: usize,
    pub(crate) sleep_max: std::time::Duration,
    pub(crate) simulation: bool,
}

/// Turned on once, when the replica begins to leave.
#[derive(Debug, Clone, Default)]
pub struct Draining(Arc<AtomicBool>);

impl Draining {
    /// From now on, this replica is not ready.
    pub fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl App {
    pub(crate) fn new(parts: Parts, config: &Config) -> Self {
        let Parts { appender, reading, events, access, draining, stopped, tracer } = parts;
        let limits = Limits {
            body_bytes_max: config.body_limit,
            batch_bytes_max: config.batch_limit,
            sleep_max: config.max_sleep,
            simulation: config.simulation == Switch::On,
        };
        let (watchers, shares) = (Arc::new(Semaphore::new(READERS_MAX)), config.rate_limit.map(Shares::new));
        let room = Room::new(config.queue_bytes);
        Self(Arc::new(Shared {
            appender,
            reading,
            events,
            watchers,
            access,
            shares,
            room,
            limits,
            draining,
            stopped,
            tracer,
        }))
    }
}
