//! `rowlock load`: a load test that measures replicas and verifies the CSV.
//!
//! It trusts nothing that the service reports: latencies are measured here, and the CSV is read back by a parser of its own.

mod book;
mod engine;
mod exchange;
mod lines;
mod pace;
mod plan;
mod plot;
mod progress;
mod read_back;
mod report;
mod rows;
mod tally;
mod text;
mod verify;

use std::{rc::Rc, time::Duration};

use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    time::{ClockId, clock_gettime},
};
use tokio::task::LocalSet;

use crate::client::Connector;
use crate::load::{
    engine::{Engine, Phase},
    rows::Generator,
};
pub use crate::load::{
    plan::{Amount, Plan, Sleep, VerifyFrom},
    report::{Mode, Report, Verification},
    rows::ROW_BYTES_MIN,
    verify::{Fault, Finding},
};

/// Runs a load test, with a progress bar if standard error is a terminal. An interrupt (Ctrl-C) ends it with a report once all
/// requests are answered; a second one ends it at once.
///
/// # Errors
/// If the runtime cannot be started.
pub fn run(plan: &Plan, connector: Connector) -> std::io::Result<Report> {
    raise_open_files();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let run = uuid::Uuid::new_v4().simple().to_string()[..12].to_owned();
        let generator = Generator::new(&run, plan.seed, plan.row_bytes);
        let cpu_before = cpu_time();
        let engine = Rc::new(Engine::new(plan, connector.clone(), &generator));
        let interrupts = tokio::task::spawn_local(forward_interrupts(Rc::clone(&engine)));
        let shown = tokio::task::spawn_local(progress::show(Rc::clone(&engine), plan.amount));
        engine.run().await;
        let (cpu, is_aborted) = (cpu_time() - cpu_before, engine.phase() == Phase::Aborted);
        for task in [interrupts, shown] {
            task.abort();
            // Drops their references to the engine.
            let _ = task.await;
        }
        let engine = Rc::into_inner(engine).expect("the tasks have ended");
        let mut report = Report::new(plan, &run, &engine, cpu);
        if let (Some(from), Some(book), false) = (&plan.verify, engine.into_book(), is_aborted) {
            report.verification = Some(read_back::verify(plan, from, &connector, &generator, &book).await);
        }
        Ok(report)
    })
}

/// Passes interrupts on to the engine.
async fn forward_interrupts(engine: Rc<Engine>) {
    while tokio::signal::ctrl_c().await.is_ok() {
        engine.interrupt();
    }
}

/// Raises the limit of open files, usually 1024, because each connection is one. If that fails, connections fail and are counted.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// The processor time of this process so far.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}
