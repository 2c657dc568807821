//! What there is to see, of all replicas: rows as they arrive, the lock as it passes, figures once a second.
//!
//! Rows are read from the CSV. The rest replicas tell each other through storage's bulletin, whichever lock serves, and also
//! while Redis is away. While nobody watches anywhere, a replica looks at the bulletin once a second and writes nothing.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use utoipa::ToSchema;

use crate::{api::events::LockChange, metrics::Work, storage::PeerFile};
pub use crate::{api::volume::Volume, storage::NewRows};
use crate::{
    commit::{Appender, lock_changes::Changes, reading::Reading},
    time::unix_ms,
};

/// How often there is news while somebody watches.
const TICK: Duration = Duration::from_millis(100);
/// How often figures are told, and how often the bulletin is looked at while nobody watches.
const SECOND: Duration = Duration::from_secs(1);
/// Who watches says so once a second; whoever has not for this long watches no more.
const WATCHED_FOR: Duration = Duration::from_secs(3);
/// A replica that was not heard of for this long is no more spoken of.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);
/// Events that a slow reader may be behind by: then it loses the oldest.
const BEHIND_MAX: usize = 256;
/// The most rows that one event holds.
pub const NEWS_ROWS_MAX: usize = 100;

/// Something to see.
#[derive(Debug, Clone)]
pub enum Event {
    /// Rows were written.
    Rows(Arc<NewRows>),
    /// The lock passed on.
    Lock(Arc<LockChange>),
    /// A second went by.
    Stats(Arc<Stats>),
}

/// All replicas, and the file.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = StatsEvent)]
pub struct Stats {
    /// By name.
    pub replicas: Vec<ReplicaStats>,
    /// File, journal and volume; null if they can't be read.
    pub file: Option<Volume>,
}

/// One replica.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ReplicaStats {
    /// Its name.
    pub replica: String,
    /// Milliseconds since it was last heard of.
    pub seen_ms_ago: u64,
    #[serde(flatten)]
    figures: Figures,
}

/// What a replica says of itself once a second.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
struct Figures {
    state: State,
    /// Of the program.
    version: String,
    /// `redis` or `embedded`.
    lock: String,
    /// Whether it answered when it was last asked.
    lock_in_reach: bool,
    /// Rows that wait.
    queue_rows: usize,
    /// The memory that they take.
    queue_bytes: usize,
    /// How long the oldest row in the queue waits by now.
    queue_age_ms: u64,
    #[serde(flatten)]
    work: Work,
}

/// Whether it takes rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ReplicaState)]
#[serde(rename_all = "snake_case")]
enum State {
    Ready,
    Draining,
}

/// A line of the bulletin.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Notice {
    at_ms: u64,
    replica: String,
    /// Somebody watches this replica's events: all replicas are to tell theirs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    watching: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    figures: Option<Figures>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    lock: Vec<LockChange>,
}

/// The way to watch.
#[derive(Debug, Clone)]
pub struct Events(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    sender: broadcast::Sender<Event>,
    /// Somebody began to watch: that need not wait for a second.
    began: Mutex<bool>,
    wake: Condvar,
    draining: AtomicBool,
}

impl Events {
    /// Starts a thread that tells and is told.
    ///
    /// # Errors
    /// The system's answer.
    pub fn start(appender: &Appender, reading: &Reading) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            sender: broadcast::channel(BEHIND_MAX).0,
            began: Mutex::new(false),
            wake: Condvar::new(),
            draining: AtomicBool::new(false),
        });
        let watcher = Watcher {
            shared: Arc::clone(&shared),
            bulletin: PeerFile::new(&appender.path),
            bulletin_trouble: false,
            appender: appender.clone(),
            reading: reading.clone(),
            watched_until: None,
            told: Instant::now(),
            seen: BTreeMap::new(),
            rows_at: None,
        };
        std::thread::Builder::new().name("events".to_owned()).spawn(move || watcher.run())?;
        Ok(Self(shared))
    }

    /// From now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        let receiver = self.0.sender.subscribe();
        *self.0.began() = true;
        self.0.wake.notify_one();
        receiver
    }

    /// This replica is about to leave, and says so.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn began(&self) -> MutexGuard<'_, bool> {
        self.began.lock().expect("no holder of the flag panics")
    }

    fn is_watched_here(&self) -> bool {
        self.sender.receiver_count() > 0
    }

    /// Answers whether somebody began to watch meanwhile.
    fn pause(&self, longest: Duration) -> bool {
        let began = self.began();
        let (mut began, _) =
            self.wake.wait_timeout_while(began, longest, |began| !*began).expect("no holder of the flag panics");
        std::mem::take(&mut *began)
    }
}

struct Watcher {
    shared: Arc<Shared>,
    bulletin: PeerFile,
    /// The bulletin could not be used; that is logged once.
    bulletin_trouble: bool,
    appender: Appender,
    reading: Reading,
    /// Until when others' readers want to be told.
    watched_until: Option<Instant>,
    /// When figures were last told.
    told: Instant,
    seen: BTreeMap<String, (Instant, Figures)>,
    /// How far the rows were told; none while nobody watches here.
    rows_at: Option<u64>,
}

impl Watcher {
    /// Goes on for as long as the process does.
    fn run(mut self) {
        loop {
            let watched =
                self.shared.is_watched_here() || self.watched_until.is_some_and(|until| Instant::now() < until);
            let began = self.shared.pause(if watched { TICK } else { SECOND });
            let second = began || self.told.elapsed() >= SECOND;
            let here = self.shared.is_watched_here();
            // Before anybody is told that it is so.
            self.changes().watch(watched || here);
            if second {
                self.told = Instant::now();
            }
            self.tell(watched || here, here && second, second);
            self.listen(here);
            if here {
                self.tell_rows();
                if second {
                    self.tell_stats();
                }
            } else {
                self.rows_at = None;
            }
        }
    }

    fn changes(&self) -> &Changes {
        &self.appender.changes
    }

    /// Leaves a line for the others, if there is anything to say.
    fn tell(&mut self, watched: bool, watching: bool, second: bool) {
        // Read out in any case, so that figures are always of one second.
        let figures = second.then(|| self.figures()).filter(|_| watched);
        let lock = self.changes().take();
        if figures.is_none() && lock.is_empty() && !watching {
            return;
        }
        let notice = Notice { at_ms: unix_ms(), replica: self.appender.replica.to_string(), watching, figures, lock };
        let line = serde_json::to_string(&notice).expect("a notice is plain data");
        match self.bulletin.publish(&line) {
            Ok(()) => self.bulletin_trouble = false,
            Err(e) => {
                self.say_trouble(&e);
                // Who watches here is told all the same.
                self.heard(notice);
            }
        }
    }

    fn figures(&self) -> Figures {
        let (lock, lock_in_reach) = self.appender.lock_state();
        let (queue_rows, queue_bytes, oldest) = self.appender.queue.load();
        let draining = self.shared.draining.load(Ordering::Relaxed) || !self.appender.takes_rows();
        Figures {
            state: if draining { State::Draining } else { State::Ready },
            version: env!("CARGO_PKG_VERSION").to_owned(),
            lock: lock.to_owned(),
            lock_in_reach,
            queue_rows,
            queue_bytes,
            queue_age_ms: oldest.map_or(0, crate::time::ms),
            work: self.appender.meter.take(),
        }
    }

    fn listen(&mut self, here: bool) {
        let lines = match self.bulletin.poll() {
            Ok(lines) => lines,
            Err(e) => return self.say_trouble(&e),
        };
        // A line of another version, or half of one, is none.
        for notice in lines.lines().filter_map(|line| serde_json::from_str(line).ok()) {
            self.heard(notice);
        }
        if !here {
            self.seen.clear();
        }
    }

    fn heard(&mut self, notice: Notice) {
        let now = Instant::now();
        if notice.watching && notice.replica != *self.appender.replica {
            self.watched_until = Some(now + WATCHED_FOR);
        }
        if let Some(figures) = notice.figures {
            self.seen.insert(notice.replica, (now, figures));
        }
        for change in notice.lock {
            self.send(Event::Lock(Arc::new(change)));
        }
    }

    fn tell_rows(&mut self) {
        // Who comes first is told of what is written from now on.
        let Some(from) = self.rows_at else {
            self.rows_at = self.reading.end_now().ok();
            return;
        };
        match self.reading.new_rows_now(from, NEWS_ROWS_MAX) {
            // A rebuild may have cut off what followed: what is there then is told from its end on.
            Ok(news) if news.end == from => {
                self.rows_at = self.reading.end_now().ok().map(|end| end.min(from));
            }
            Ok(news) => {
                self.rows_at = Some(news.end);
                self.send(Event::Rows(Arc::new(news)));
            }
            Err(e) => tracing::debug!(error = %e, "no news of rows"),
        }
    }

    fn tell_stats(&mut self) {
        let now = Instant::now();
        self.seen.retain(|_, (seen, _)| now - *seen < FORGOTTEN_AFTER);
        let replicas = self.seen.iter().map(|(replica, (seen, figures))| ReplicaStats {
            replica: replica.clone(),
            seen_ms_ago: crate::time::ms(now - *seen),
            figures: figures.clone(),
        });
        let stats = Stats { replicas: replicas.collect(), file: self.reading.volume_now().ok() };
        self.send(Event::Stats(Arc::new(stats)));
    }

    fn send(&self, event: Event) {
        // Who has gone meanwhile misses nothing.
        let _ = self.shared.sender.send(event);
    }

    fn say_trouble(&mut self, e: &std::io::Error) {
        if !std::mem::replace(&mut self.bulletin_trouble, true) {
            tracing::warn!(error = %e, "events of other replicas can't be seen, nor they see ours");
        }
    }
}
