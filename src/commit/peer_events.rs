//! Events of all replicas for `/events`: new rows, changes of the lock, statistics once a second.
//!
//! Rows are read from the CSV. The rest is exchanged between replicas through the storage's peer file, with either kind of lock and
//! without Redis. While no replica has a subscriber, a replica reads the peer file once a second and writes nothing; the newest changes
//! of its lock are kept, and published once it learns of a subscriber.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::commit::{appender::Appender, lock_changes::KNOWN_FOR_MS, queue::QueueLoad, reading::Reading};
use crate::{
    api::events::{Figures, LockChange, ReplicaState, ReplicaStats, Stats},
    storage::{NewRows, PeerFile, Position},
    time::{ms, unix_ms},
};

/// The interval between events while there is a subscriber.
const TICK: Duration = Duration::from_millis(100);
/// The interval between statistics, and between reads of the peer file while there is no subscriber.
const SECOND: Duration = Duration::from_secs(1);
/// A replica with subscribers says so once a second; after this long without it, it has none.
const SUBSCRIBED_FOR: Duration = Duration::from_secs(3);
/// A replica that was silent for this long is left out of the statistics.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);
/// The most events that a slow subscriber may be behind; then it loses the oldest.
const BEHIND_MAX: usize = 256;
/// The most changes of the lock that a new subscriber is sent.
const KNOWN_MAX: usize = 64;
/// The most rows in one event.
pub const NEW_ROWS_MAX: usize = 100;

/// An event for subscribers.
#[derive(Debug, Clone)]
pub enum Event {
    /// Rows were written.
    Rows(Arc<NewRows>),
    /// The lock changed.
    Lock(Arc<LockChange>),
    /// Statistics, once a second.
    Stats(Arc<Stats>),
}

/// A line of the peer file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct PeerMessage {
    at_ms: u64,
    replica: String,
    /// The replica has subscribers, so all replicas are to publish their events.
    #[serde(rename = "watching", default, skip_serializing_if = "std::ops::Not::not")]
    has_subscribers: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    figures: Option<Figures>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    lock: Vec<LockChange>,
}

/// The handle to subscribe to the events of all replicas.
#[derive(Debug, Clone)]
pub struct PeerEvents(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    sender: broadcast::Sender<Event>,
    /// The newest changes of the lock, and when they were received.
    known: Mutex<VecDeque<(Instant, Arc<LockChange>)>>,
    /// There is a new subscriber: the pump is not to wait out its interval.
    subscribed: Mutex<bool>,
    wake: Condvar,
    draining: AtomicBool,
}

impl PeerEvents {
    /// Starts the thread that publishes and reads events.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(appender: &Appender, reading: &Reading) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            sender: broadcast::channel(BEHIND_MAX).0,
            known: Mutex::default(),
            subscribed: Mutex::new(false),
            wake: Condvar::new(),
            draining: AtomicBool::new(false),
        });
        let pump = EventPump::new(Arc::clone(&shared), appender, reading);
        std::thread::Builder::new().name("events".to_owned()).spawn(move || pump.run())?;
        Ok(Self(shared))
    }

    /// Subscribes to events from now on. Returns the changes of the lock that are known as well, in order: those of the last minute.
    pub fn subscribe(&self) -> (broadcast::Receiver<Event>, Vec<LockChange>) {
        // Under one guard, so that each change is in one of both.
        let known = self.0.known();
        let receiver = self.0.sender.subscribe();
        let aged = known.iter().map(|(received, change)| {
            let age_ms = change.age_ms + ms(received.elapsed());
            LockChange { age_ms, ..LockChange::clone(change) }
        });
        let changes = aged.filter(|change| change.age_ms < KNOWN_FOR_MS).collect();
        drop(known);
        *self.0.subscribed() = true;
        self.0.wake.notify_one();
        (receiver, changes)
    }

    /// Publishes from now on that this replica is draining.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn subscribed(&self) -> MutexGuard<'_, bool> {
        self.subscribed.lock().expect("no holder of the flag panics")
    }

    fn known(&self) -> MutexGuard<'_, VecDeque<(Instant, Arc<LockChange>)>> {
        self.known.lock().expect("no holder of the changes panics")
    }

    /// Sends a change to the subscribers, and keeps it for new ones.
    fn send_change(&self, change: LockChange) {
        let (mut known, change) = (self.known(), Arc::new(change));
        if known.len() == KNOWN_MAX {
            known.pop_front();
        }
        known.push_back((Instant::now(), Arc::clone(&change)));
        self.send(Event::Lock(change));
    }

    fn send(&self, event: Event) {
        // An error means that the last subscriber has left.
        let _ = self.sender.send(event);
    }

    fn has_subscribers(&self) -> bool {
        self.sender.receiver_count() > 0
    }

    /// Waits until there is a new subscriber, at most for `interval`. True if there is one.
    fn pause(&self, interval: Duration) -> bool {
        let flag = self.subscribed();
        let (mut flag, _) =
            self.wake.wait_timeout_while(flag, interval, |new| !*new).expect("no holder of the flag panics");
        std::mem::take(&mut *flag)
    }
}

/// The thread that publishes this replica's events, and sends those of all replicas to its subscribers.
struct EventPump {
    shared: Arc<Shared>,
    peer_file: PeerFile,
    /// The last use of the peer file failed, and that was logged.
    peer_file_failed: bool,
    appender: Appender,
    reading: Reading,
    /// Until when other replicas are known to have subscribers.
    peers_subscribed_until: Option<Instant>,
    /// When statistics were last published.
    published: Instant,
    figures: BTreeMap<String, (Instant, Figures)>,
    /// The end of the rows that subscribers were sent; `None` while there are none.
    rows_end: Option<Position>,
}

impl EventPump {
    fn new(shared: Arc<Shared>, appender: &Appender, reading: &Reading) -> Self {
        Self {
            shared,
            peer_file: PeerFile::new(appender.path()),
            peer_file_failed: false,
            appender: appender.clone(),
            reading: reading.clone(),
            peers_subscribed_until: None,
            published: Instant::now(),
            figures: BTreeMap::new(),
            rows_end: None,
        }
    }

    /// Runs until the process ends.
    fn run(mut self) {
        loop {
            let any_subscriber = self.shared.has_subscribers()
                || self.peers_subscribed_until.is_some_and(|until| Instant::now() < until);
            let is_new = self.shared.pause(if any_subscriber { TICK } else { SECOND });
            let second = is_new || self.published.elapsed() >= SECOND;
            let own_subscribers = self.shared.has_subscribers();
            let any_subscriber = any_subscriber || own_subscribers;
            // Changes are collected before a subscriber learns that they are.
            self.appender.lock_changes().set_subscribed(any_subscriber);
            if second {
                self.published = Instant::now();
            }
            self.publish(any_subscriber, own_subscribers && second, second);
            self.read_peer_file();
            if own_subscribers {
                self.send_rows();
                if second {
                    self.send_stats();
                }
            } else {
                self.figures.clear();
                self.rows_end = None;
            }
        }
    }

    /// Writes a line to the peer file, if there is anything to publish.
    fn publish(&mut self, any_subscriber: bool, has_subscribers: bool, second: bool) {
        // Figures are taken even without a subscriber, so that they always cover one second.
        let figures = second.then(|| self.take_figures()).filter(|_| any_subscriber);
        // Changes that nobody waits for are kept for the first subscriber.
        let lock = if any_subscriber { self.appender.lock_changes().take() } else { Vec::new() };
        if figures.is_none() && lock.is_empty() && !has_subscribers {
            return;
        }
        let replica = self.appender.replica().to_owned();
        let message = PeerMessage { at_ms: unix_ms(), replica, has_subscribers, figures, lock };
        let line = serde_json::to_string(&message).expect("a message is plain data");
        match self.peer_file.publish(&line) {
            Ok(()) => self.peer_file_failed = false,
            Err(e) => {
                self.log_peer_file_error(&e);
                // This replica's own subscribers still get it.
                self.receive(message);
            }
        }
    }

    fn take_figures(&self) -> Figures {
        let (lock, lock_in_reach) = self.appender.lock_state();
        let QueueLoad { rows, bytes, oldest_age } = self.appender.queue_load();
        let draining = self.shared.draining.load(Ordering::Relaxed) || !self.appender.accepts_rows();
        Figures {
            state: if draining { ReplicaState::Draining } else { ReplicaState::Ready },
            version: env!("CARGO_PKG_VERSION").to_owned(),
            lock: lock.to_owned(),
            lock_in_reach,
            queue_rows: rows,
            queue_bytes: bytes,
            queue_age_ms: oldest_age.map_or(0, ms),
            work: self.appender.meter().take_work(),
        }
    }

    fn read_peer_file(&mut self) {
        match self.peer_file.poll() {
            Ok(lines) => {
                // A line of another version, or an incomplete one, is ignored.
                for message in lines.lines().filter_map(|line| serde_json::from_str(line).ok()) {
                    self.receive(message);
                }
            }
            Err(e) => self.log_peer_file_error(&e),
        }
    }

    fn receive(&mut self, message: PeerMessage) {
        let now = Instant::now();
        if message.has_subscribers && message.replica != self.appender.replica() {
            self.peers_subscribed_until = Some(now + SUBSCRIBED_FOR);
        }
        if let Some(figures) = message.figures {
            self.figures.insert(message.replica, (now, figures));
        }
        for change in message.lock {
            self.shared.send_change(change);
        }
    }

    fn send_rows(&mut self) {
        // The first subscriber gets the rows that are written from now on.
        let Some(from) = self.rows_end else {
            self.rows_end = self.reading.end_blocking().ok();
            return;
        };
        match self.reading.new_rows_blocking(from, NEW_ROWS_MAX) {
            Ok(rows) if rows.count == 0 => self.rows_end = Some(rows.end),
            Ok(rows) => {
                self.rows_end = Some(rows.end);
                self.shared.send(Event::Rows(Arc::new(rows)));
            }
            Err(e) => tracing::debug!(error = %e, "new rows cannot be read"),
        }
    }

    fn send_stats(&mut self) {
        let now = Instant::now();
        self.figures.retain(|_, (received, _)| now - *received < FORGOTTEN_AFTER);
        let replicas = self.figures.iter().map(|(replica, (received, figures))| ReplicaStats {
            replica: replica.clone(),
            seen_ms_ago: ms(now - *received),
            figures: figures.clone(),
        });
        let stats = Stats { replicas: replicas.collect(), file: self.reading.volume_blocking().ok() };
        self.shared.send(Event::Stats(Arc::new(stats)));
    }

    fn log_peer_file_error(&mut self, e: &std::io::Error) {
        if !std::mem::replace(&mut self.peer_file_failed, true) {
            tracing::warn!(error = %e, "events cannot be exchanged with other replicas");
        }
    }
}
