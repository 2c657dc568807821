//! Sends the requests of a run, as fast as they are answered or at a fixed rate, from one thread.

use std::{
    borrow::Cow,
    cell::{Cell, RefCell},
    rc::Rc,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::timeout,
};

use crate::client::{Connection, Connector};
use crate::load::{
    book::{Book, State},
    exchange::{Attempt, Requests},
    pace::{self, Due},
    plan::{Amount, Plan},
    rows::Generator,
    tally::{Tally, Times},
};

/// How long a request is retried.
pub(super) const RETRY_FOR: Duration = Duration::from_secs(60);
/// The pause before a retry, without `Retry-After`.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// A run that reaches no replica gives up after this time.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// How long a worker avoids its own replica after that gave no answer.
const AVOID_HOME_FOR: Duration = Duration::from_secs(1);

/// The phase of a run, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Requests are sent.
    Running,
    /// No more requests are sent; answers are waited for.
    Ending,
    /// Answers are not waited for.
    Aborted,
}

/// The state that all workers share.
pub(super) struct Engine {
    plan: Plan,
    connector: Connector,
    requests: Requests,
    pub(super) started_at: Instant,
    /// Requests that workers have started.
    started: Cell<u64>,
    /// All requests of the run; `None` if only time limits it.
    total: Option<u64>,
    deadline: Option<Instant>,
    /// In an open loop, one for each due request.
    permits: Semaphore,
    phase: watch::Sender<Phase>,
    pub(super) tally: RefCell<Tally>,
    /// Only if the CSV is read back.
    book: Option<RefCell<Book>>,
    /// Attempts without a connection.
    unconnected: Cell<u64>,
    /// Why the run gave up, if it did.
    pub(super) gave_up: RefCell<Option<String>>,
    last_answer: Cell<Option<Instant>>,
}

/// A worker's connections, one for each replica.
struct Worker {
    connections: Vec<Option<Connection>>,
    home: usize,
    /// Until when the home replica is avoided.
    avoid_home_until: Option<Instant>,
}

impl Engine {
    pub(super) fn new(plan: &Plan, connector: Connector, generator: &Generator) -> Self {
        let started_at = Instant::now();
        let duration = match plan.amount {
            Amount::Duration(duration) => Some(duration),
            Amount::Requests(_) => None,
        };
        let total = match (plan.amount, plan.rate) {
            (Amount::Requests(requests), _) => Some(requests),
            (Amount::Duration(duration), Some(rate)) => Some((duration.as_secs_f64() * rate).ceil() as u64),
            (Amount::Duration(_), None) => None,
        };
        Self {
            plan: plan.clone(),
            connector,
            requests: Requests::new(plan, generator),
            started_at,
            started: Cell::new(0),
            total,
            deadline: duration.map(|duration| started_at + duration),
            permits: Semaphore::new(0),
            phase: watch::Sender::new(Phase::Running),
            tally: RefCell::new(Tally::new(plan.targets.len(), plan.rate.is_some(), plan.plot)),
            book: plan.verify.is_some().then(|| RefCell::new(Book::new(plan.rows_each()))),
            unconnected: Cell::new(0),
            gave_up: RefCell::new(None),
            last_answer: Cell::new(None),
        }
    }

    /// Sends all requests, and waits for the answers.
    pub(super) async fn run(self: &Rc<Self>) {
        let mut workers = JoinSet::new();
        (0..self.plan.concurrency).for_each(|number| drop(workers.spawn_local(Rc::clone(self).work(number))));
        let due = Arc::new(Due::default());
        // Dropping the sender ends the thread.
        let pacer = self.plan.rate.zip(self.total).map(|(rate, total)| {
            let (alive, ended) = mpsc::channel::<()>();
            let pace = pace::Pace { started_at: self.started_at, rate, total, workers: self.plan.concurrency };
            let due = Arc::clone(&due);
            (alive, std::thread::spawn(move || pace.run(&due, &ended)))
        });
        let mut phase = self.phase.subscribe();
        tokio::select! {
            () = join_all(&mut workers) => {}
            () = due.hand_out(&self.permits) => {}
            _ = phase.wait_for(|phase| *phase == Phase::Aborted) => workers.shutdown().await,
        }
        drop(pacer);
    }

    /// Ends the run: the first time once all requests are answered, the second time at once.
    pub(super) fn interrupt(&self) {
        let next = if *self.phase.borrow() == Phase::Running { Phase::Ending } else { Phase::Aborted };
        self.enter(next);
    }

    pub(super) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    fn enter(&self, phase: Phase) {
        self.permits.close();
        self.phase.send_if_modified(|now| std::mem::replace(now, phase.max(*now)) < phase);
    }

    /// How many requests were started.
    pub(super) fn started(&self) -> u64 {
        self.started.get()
    }

    /// From the start of the run to the last answer.
    pub(super) fn elapsed(&self) -> Duration {
        self.last_answer.get().map_or_else(|| self.started_at.elapsed(), |last| last - self.started_at)
    }

    pub(super) fn into_book(self) -> Option<Book> {
        self.book.map(RefCell::into_inner)
    }

    async fn work(self: Rc<Self>, number: usize) {
        let targets = self.plan.targets.len();
        let connections = (0..targets).map(|_| None).collect();
        let mut worker = Worker { connections, home: number % targets, avoid_home_until: None };
        while let Some(request) = self.next().await {
            self.complete(&mut worker, request).await;
        }
    }

    /// Waits until the next request is due, and returns its number.
    async fn next(&self) -> Option<u64> {
        if self.plan.rate.is_some() {
            self.permits.acquire().await.ok()?.forget();
        }
        let request = self.started.get();
        let is_over = self.phase() > Phase::Running
            || self.total.is_some_and(|total| request >= total)
            || self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if is_over {
            return None;
        }
        self.started.set(request + 1);
        Some(request)
    }

    /// Sends a request, and retries it until its outcome is known, if the plan allows that.
    async fn complete(&self, worker: &mut Worker, request: u64) {
        let sent_at = Instant::now();
        let due_at = self.plan.rate.map_or(sent_at, |rate| self.started_at + pace::due_at(request, rate));
        if let Some(book) = &self.book {
            book.borrow_mut().send(sent_at - self.started_at);
        }
        let body = self.requests.body(request);
        let mut state = State::NotWritten;
        for attempts in 1.. {
            let target = worker.choose(attempts);
            let connection = &mut worker.connections[target];
            let attempt = self.requests.send(&self.connector, &self.plan.targets[target], connection, &body).await;
            let now = Instant::now();
            self.last_answer.set(Some(now));
            worker.note_answer(&attempt, target, now);
            if let Attempt::Answered(answer) = &attempt
                && answer.is_acknowledged()
            {
                state = State::Acknowledged;
                let times = Times { latency: now - due_at, from_send: now - sent_at };
                let mut tally = self.tally.borrow_mut();
                tally.count_attempt(answer.status.as_u16(), Cow::Borrowed(""));
                tally.acknowledge(target, &answer.receipt(), now - self.started_at, times);
                break;
            }
            let Failed { is_certain, retryable, retry_after } = self.fail(attempt);
            if !is_certain {
                state = State::Unknown;
            }
            let may_repeat = if state == State::Unknown { self.plan.keys } else { retryable };
            // Each of the other replicas is tried once without a pause.
            let at_once = attempts < self.plan.targets.len() && retry_after.is_none();
            let wait = retry_after.unwrap_or(if at_once { Duration::ZERO } else { RETRY_AFTER });
            let until_known = retryable || !is_certain;
            if !may_repeat || !until_known || sent_at.elapsed() + wait > RETRY_FOR || self.ends_within(wait).await {
                break;
            }
        }
        self.settle(request, state);
    }

    fn settle(&self, request: u64, state: State) {
        let mut tally = self.tally.borrow_mut();
        match state {
            State::Acknowledged => {}
            State::NotWritten => tally.not_written += 1,
            State::Unknown => tally.unknown += 1,
        }
        if let Some(book) = &self.book {
            book.borrow_mut().settle(request, self.started_at.elapsed(), state);
        }
    }

    /// Waits; true if the run ends meanwhile.
    async fn ends_within(&self, wait: Duration) -> bool {
        let mut phase = self.phase.subscribe();
        timeout(wait, phase.wait_for(|phase| *phase > Phase::Running)).await.is_ok()
    }

    /// Counts an attempt that was not acknowledged.
    fn fail(&self, attempt: Attempt) -> Failed {
        let (status, code, failed) = match attempt {
            Attempt::NotSent(reason) => {
                self.count_unconnected();
                (0, Cow::Borrowed(reason), Failed { is_certain: true, retryable: true, retry_after: None })
            }
            Attempt::NoAnswer(reason) => {
                (0, Cow::Borrowed(reason), Failed { is_certain: false, retryable: true, retry_after: None })
            }
            Attempt::Answered(answer) => {
                let problem = answer.problem();
                let status = answer.status.as_u16();
                if answer.status.is_client_error() && !matches!(status, 408 | 409 | 429) {
                    self.give_up_on_refusal(status, &problem.code, &problem.detail);
                }
                let failed = Failed {
                    is_certain: problem.is_certainly_not_written(),
                    retryable: problem.retryable,
                    retry_after: answer.retry_after,
                };
                (status, Cow::Owned(problem.code), failed)
            }
        };
        self.tally.borrow_mut().count_attempt(status, code);
        failed
    }

    fn count_unconnected(&self) {
        self.unconnected.set(self.unconnected.get() + 1);
        let is_all = self.unconnected.get() > self.tally.borrow().attempts;
        if is_all && self.started_at.elapsed() > CONNECT_WITHIN {
            self.give_up(|| "no --url can be reached".to_owned());
        }
    }

    /// Gives up if no request was acknowledged so far: all requests would be refused.
    fn give_up_on_refusal(&self, status: u16, code: &str, detail: &str) {
        if self.tally.borrow().acknowledged == 0 {
            let what = [code, detail].iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(": ");
            let reason = if what.is_empty() { "not an answer of Rowlock" } else { &what };
            self.give_up(|| format!("refused with {status}, {reason}"));
        }
    }

    fn give_up(&self, reason: impl FnOnce() -> String) {
        self.gave_up.borrow_mut().get_or_insert_with(reason);
        self.enter(Phase::Ending);
    }
}

/// Waits for all workers, and passes on a panic.
async fn join_all(workers: &mut JoinSet<()>) {
    while let Some(ended) = workers.join_next().await {
        if let Err(e) = ended
            && e.is_panic()
        {
            std::panic::resume_unwind(e.into_panic());
        }
    }
}

/// An attempt that was not acknowledged.
struct Failed {
    /// Its rows are certainly not written.
    is_certain: bool,
    retryable: bool,
    retry_after: Option<Duration>,
}

impl Worker {
    /// The replica for an attempt: the home replica, unless it recently gave no answer; a retry goes to the next one.
    fn choose(&mut self, attempts: usize) -> usize {
        let is_away = self.avoid_home_until.is_some_and(|again| Instant::now() < again);
        let away = usize::from(is_away && attempts == 1);
        (self.home + attempts - 1 + away) % self.connections.len()
    }

    fn note_answer(&mut self, attempt: &Attempt, target: usize, now: Instant) {
        if target == self.home {
            let is_answer = matches!(attempt, Attempt::Answered(_));
            self.avoid_home_until = (!is_answer).then(|| now + AVOID_HOME_FOR);
        }
    }
}
