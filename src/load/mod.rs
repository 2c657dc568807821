//! A load test that verifies: fires at replicas, measures, and reads the file back.
//!
//! What is measured comes from here alone, and what the file must hold is judged by a parser of its own: nothing is believed
//! because the service says so.

mod book;
mod engine;
mod exchange;
mod lines;
mod pace;
mod plot;
mod progress;
mod read_back;
mod report;
mod rows;
mod tally;
mod verify;

use std::{num::NonZeroU64, path::PathBuf, rc::Rc, time::Duration};

use hyper::header::HeaderValue;
use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    time::{ClockId, clock_gettime},
};
use tokio::task::LocalSet;

use crate::client::{Connector, Target};
use crate::load::{
    engine::{Engine, Phase},
    rows::Generator,
};
pub use crate::load::{
    report::{Mode, Report, Verification},
    verify::{Fault, Finding},
};

/// The shortest row: it must hold the run's mark and its number.
pub const ROW_BYTES_MIN: usize = rows::ROW_BYTES_MIN;

/// How much is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// So many requests.
    Requests(u64),
    /// As many as there is time for.
    Duration(Duration),
}

/// Every so many requests, the lock is held for a while before the row is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sleep {
    /// How long.
    pub length: Duration,
    /// Every so many requests.
    pub every: NonZeroU64,
}

/// From where the file is read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VerifyFrom {
    /// A path on this host.
    File(PathBuf),
    /// `/rows.csv` of the first replica that gives it.
    Http,
}

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Plan {
    /// At least one.
    pub targets: Vec<Target>,
    /// How much.
    pub amount: Amount,
    /// Requests under way at once.
    pub concurrency: usize,
    /// Requests a second, whether those before are answered or not; none: each waits for the one before.
    pub rate: Option<f64>,
    /// The length of a row's data in bytes, at least `ROW_BYTES_MIN`.
    pub row_bytes: usize,
    /// Rows a request by `/append/batch`; none: one by `/append`.
    pub batch: Option<u32>,
    /// Some rows sleep.
    pub sleep: Option<Sleep>,
    /// Every so many requests, the lock is left to expire.
    pub skip_release_every: Option<NonZeroU64>,
    /// Each request has an `Idempotency-Key`, and is repeated until it is known.
    pub keys: bool,
    /// What rows are filled from.
    pub seed: u64,
    /// `Bearer` and a token.
    pub authorization: Option<HeaderValue>,
    /// Whether and where the file is read back.
    pub verify: Option<VerifyFrom>,
    /// Keep latencies over time, for a plot.
    pub plot: bool,
}

impl Plan {
    /// Rows in a request.
    fn rows_each(&self) -> u64 {
        self.batch.map_or(1, u64::from)
    }
}

/// Carries it out, and reports. Shows its progress where standard error is a terminal; an interrupt (Ctrl-C) ends it with a report
/// once what is under way is answered, a second one at once.
///
/// # Errors
/// What the system did not give.
pub fn run(plan: &Plan, connector: Connector) -> std::io::Result<Report> {
    raise_open_files();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let run = uuid::Uuid::new_v4().simple().to_string()[..12].to_owned();
        let generator = Generator::new(&run, plan.seed, plan.row_bytes);
        let cpu_before = cpu_time();
        let engine = Rc::new(Engine::new(plan, connector.clone(), &generator));
        let interrupts = tokio::task::spawn_local(listen(Rc::clone(&engine)));
        let shown = tokio::task::spawn_local(progress::show(Rc::clone(&engine), plan.amount));
        engine.run().await;
        let (cpu, is_aborted) = (cpu_time() - cpu_before, engine.phase() == Phase::Over);
        for task in [interrupts, shown] {
            task.abort();
            // They hold what is taken apart now.
            let _ = task.await;
        }
        let engine = Rc::into_inner(engine).expect("nobody else holds it any more");
        let mut report = report::Report::new(plan, &run, &engine, cpu);
        if let (Some(from), Some(book), false) = (&plan.verify, engine.into_book(), is_aborted) {
            report.verification = Some(read_back::verify(plan, from, &connector, &generator, &book).await);
        }
        Ok(report)
    })
}

/// Tells interrupts on.
async fn listen(engine: Rc<Engine>) {
    while tokio::signal::ctrl_c().await.is_ok() {
        engine.interrupt();
    }
}

/// Each connection is an open file, of which a shell gives 1024. Where it can't be, a connection that fails says so.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// What this process has used of the processors so far.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}
