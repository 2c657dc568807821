//! Sends the requests of a run: as fast as they are answered, or at a rate of its own. One thread does it all.

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
    Amount, Plan,
    book::{Book, State},
    exchange::{Attempt, Requests},
    pace::{self, Due},
    rows::Generator,
    tally::{Tally, Times},
};

/// A request that is not known to be written, or not to be, is tried again for so long.
pub(super) const RETRY_FOR: Duration = Duration::from_secs(60);
/// Where an answer does not say when to come back.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// A run that reaches nobody ends.
const REACH_WITHIN: Duration = Duration::from_secs(3);
/// How soon a worker comes back to its own replica after that gave no answer.
const HOME_AGAIN: Duration = Duration::from_secs(1);

/// How far a run has come. The order counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Requests are sent.
    Running,
    /// What is under way is waited for.
    Ending,
    /// Nothing is waited for.
    Over,
}

/// What all workers share.
pub(super) struct Engine {
    plan: Plan,
    connector: Connector,
    requests: Requests,
    pub(super) begun: Instant,
    /// How many requests were taken by workers.
    taken: Cell<u64>,
    /// None: until the time is over.
    total: Option<u64>,
    deadline: Option<Instant>,
    /// One for each request that is due, where there is a rate.
    permits: Semaphore,
    phase: watch::Sender<Phase>,
    pub(super) tally: RefCell<Tally>,
    /// Only where the file will be read back.
    book: Option<RefCell<Book>>,
    /// Attempts for which there was no connection.
    unreached: Cell<u64>,
    /// Why it makes no sense to go on.
    pub(super) hopeless: RefCell<Option<String>>,
    last_answer: Cell<Option<Instant>>,
}

/// A worker's connections, one for each replica.
struct Worker {
    connections: Vec<Option<Connection>>,
    home: usize,
    /// Not before this.
    home_again: Option<Instant>,
}

impl Engine {
    pub(super) fn new(plan: &Plan, connector: Connector, generator: &Generator) -> Self {
        let begun = Instant::now();
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
            begun,
            taken: Cell::new(0),
            total,
            deadline: duration.map(|duration| begun + duration),
            permits: Semaphore::new(0),
            phase: watch::Sender::new(Phase::Running),
            tally: RefCell::new(Tally::new(plan.targets.len(), plan.rate.is_some(), plan.plot)),
            book: plan.verify.is_some().then(|| RefCell::new(Book::new(plan.rows_each()))),
            unreached: Cell::new(0),
            hopeless: RefCell::new(None),
            last_answer: Cell::new(None),
        }
    }

    /// Sends all there is to send, and waits for the answers.
    pub(super) async fn run(self: &Rc<Self>) {
        let mut workers = JoinSet::new();
        (0..self.plan.concurrency).for_each(|number| drop(workers.spawn_local(Rc::clone(self).work(number))));
        let due = Arc::new(Due::default());
        // Dropped with this function, which ends the thread.
        let pacer = self.plan.rate.zip(self.total).map(|(rate, total)| {
            let (alive, ended) = mpsc::channel::<()>();
            let pace = pace::Pace { begun: self.begun, rate, total, workers: self.plan.concurrency };
            let due = Arc::clone(&due);
            (alive, std::thread::spawn(move || pace.tell(&due, &ended)))
        });
        let mut phase = self.phase.subscribe();
        tokio::select! {
            () = all(&mut workers) => {}
            () = due.hand_out(&self.permits) => {}
            _ = phase.wait_for(|phase| *phase == Phase::Over) => workers.shutdown().await,
        }
        drop(pacer);
    }

    /// Asks to end: the first time once all that is under way is answered, the second time at once.
    pub(super) fn interrupt(&self) {
        let next = if *self.phase.borrow() == Phase::Running { Phase::Ending } else { Phase::Over };
        self.enter(next);
    }

    pub(super) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    fn enter(&self, phase: Phase) {
        self.permits.close();
        self.phase.send_if_modified(|now| std::mem::replace(now, phase.max(*now)) < phase);
    }

    /// How many requests were sent, or tried to be.
    pub(super) fn taken(&self) -> u64 {
        self.taken.get()
    }

    /// From the begin to the last answer.
    pub(super) fn elapsed(&self) -> Duration {
        self.last_answer.get().map_or_else(|| self.begun.elapsed(), |last| last - self.begun)
    }

    pub(super) fn into_book(self) -> Option<Book> {
        self.book.map(RefCell::into_inner)
    }

    async fn work(self: Rc<Self>, number: usize) {
        let targets = self.plan.targets.len();
        let connections = (0..targets).map(|_| None).collect();
        let mut worker = Worker { connections, home: number % targets, home_again: None };
        while let Some(request) = self.next().await {
            self.carry_out(&mut worker, request).await;
        }
    }

    /// The number of the next request, once it is due.
    async fn next(&self) -> Option<u64> {
        if self.plan.rate.is_some() {
            self.permits.acquire().await.ok()?.forget();
        }
        let request = self.taken.get();
        let is_over = self.phase() > Phase::Running
            || self.total.is_some_and(|total| request >= total)
            || self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if is_over {
            return None;
        }
        self.taken.set(request + 1);
        Some(request)
    }

    /// Sends it until it is known what became of it, as far as it may be repeated.
    async fn carry_out(&self, worker: &mut Worker, request: u64) {
        let sent_at = Instant::now();
        let intended_at = self.plan.rate.map_or(sent_at, |rate| self.begun + pace::intended(request, rate));
        if let Some(book) = &self.book {
            book.borrow_mut().send(sent_at - self.begun);
        }
        let body = self.requests.body(request);
        let mut state = State::NotWritten;
        for attempts in 1.. {
            let target = worker.choose(attempts);
            let connection = &mut worker.connections[target];
            let attempt = self.requests.send(&self.connector, &self.plan.targets[target], connection, &body).await;
            let now = Instant::now();
            self.last_answer.set(Some(now));
            worker.learn(&attempt, target, now);
            if let Attempt::Answered(answer) = &attempt
                && answer.is_acknowledged()
            {
                state = State::Acknowledged;
                let times = Times { latency: now - intended_at, from_send: now - sent_at };
                let mut tally = self.tally.borrow_mut();
                tally.answer(answer.status.as_u16(), Cow::Borrowed(""));
                tally.acknowledge(target, &answer.receipt(), now - self.begun, times);
                break;
            }
            let Failed { is_certain, retryable, retry_after } = self.fail(attempt);
            if !is_certain {
                state = State::Unknown;
            }
            let may_repeat = if state == State::Unknown { self.plan.keys } else { retryable };
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
            book.borrow_mut().settle(request, self.begun.elapsed(), state);
        }
    }

    /// Waits, unless the run is to end.
    async fn ends_within(&self, wait: Duration) -> bool {
        let mut phase = self.phase.subscribe();
        timeout(wait, phase.wait_for(|phase| *phase > Phase::Running)).await.is_ok()
    }

    /// Counts an attempt that was not acknowledged, and says what is known of it.
    fn fail(&self, attempt: Attempt) -> Failed {
        let (status, code, failed) = match attempt {
            Attempt::NotSent(reason) => {
                self.reached_nobody();
                (0, Cow::Borrowed(reason), Failed { is_certain: true, retryable: true, retry_after: None })
            }
            Attempt::NoAnswer(reason) => {
                (0, Cow::Borrowed(reason), Failed { is_certain: false, retryable: true, retry_after: None })
            }
            Attempt::Answered(answer) => {
                let problem = answer.problem();
                let status = answer.status.as_u16();
                if answer.status.is_client_error() && !matches!(status, 408 | 409 | 429) {
                    self.refused_for_good(status, &problem.code, &problem.detail);
                }
                let failed = Failed {
                    is_certain: problem.is_certainly_not_written(),
                    retryable: problem.retryable,
                    retry_after: answer.retry_after,
                };
                (status, Cow::Owned(problem.code), failed)
            }
        };
        self.tally.borrow_mut().answer(status, code);
        failed
    }

    fn reached_nobody(&self) {
        self.unreached.set(self.unreached.get() + 1);
        let is_all = self.unreached.get() > self.tally.borrow().attempts;
        if is_all && self.begun.elapsed() > REACH_WITHIN {
            self.give_up(|| "no --url can be reached".to_owned());
        }
    }

    /// Before anything was acknowledged this is what all will be told.
    fn refused_for_good(&self, status: u16, code: &str, detail: &str) {
        if self.tally.borrow().acknowledged == 0 {
            let what = [code, detail].iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(": ");
            let said = if what.is_empty() { "no answer of Rowlock's" } else { &what };
            self.give_up(|| format!("refused with {status}, {said}"));
        }
    }

    fn give_up(&self, reason: impl FnOnce() -> String) {
        self.hopeless.borrow_mut().get_or_insert_with(reason);
        self.enter(Phase::Ending);
    }
}

/// Waits for all of them.
async fn all(workers: &mut JoinSet<()>) {
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
    /// Nothing was written by it.
    is_certain: bool,
    retryable: bool,
    retry_after: Option<Duration>,
}

impl Worker {
    /// Its own replica, unless that gave no answer just now; a repeat goes to the next one.
    fn choose(&mut self, attempts: usize) -> usize {
        let is_away = self.home_again.is_some_and(|again| Instant::now() < again);
        let away = usize::from(is_away && attempts == 1);
        (self.home + attempts - 1 + away) % self.connections.len()
    }

    fn learn(&mut self, attempt: &Attempt, target: usize, now: Instant) {
        if target == self.home {
            let is_answer = matches!(attempt, Attempt::Answered(_));
            self.home_again = (!is_answer).then(|| now + HOME_AGAIN);
        }
    }
}
