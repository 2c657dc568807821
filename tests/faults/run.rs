//! One run: replicas, clients, faults in an order that the seed decides, and the check of the result.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use rowlock::random::Random;
use tokio::task::block_in_place;

use crate::{
    checker::{Findings, Violation, check},
    clients::Load,
    cluster::{Cluster, ClusterOptions, LOCK_TTL, REPLICAS},
    history::{ForeignHold, History},
    nemesis::{ActiveFault, Fault, Proof},
    sandbox::Host,
    scene::{OVERLAPPING, Scene},
    support::PATIENCE,
};

/// An outage may last as long as the time to live and this: a call to Redis times out after 2 s, and a busy machine with two cores
/// needs some more.
const RECOVERY_MAX: Duration = Duration::from_secs(3);
const SUPERVISION_INTERVAL: Duration = Duration::from_millis(100);
const HISTORY_FILE: &str = "history.json";
const CSV_FILE: &str = "rows.csv";

/// What all runs share.
pub(crate) struct Environment<'a> {
    pub(crate) hosts: &'a [Host],
    pub(crate) binary: &'a Path,
    pub(crate) clock_library: &'a Path,
    /// The folder for the files of runs with violations.
    pub(crate) artifacts: &'a Path,
    pub(crate) prints_steps: bool,
}

/// The result of a run.
#[derive(Default)]
pub(crate) struct Report {
    /// How many times each fault had an effect.
    pub(crate) fired: BTreeMap<Fault, u64>,
    pub(crate) acked_rows: u64,
    pub(crate) longest_outage: Duration,
    pub(crate) findings: Findings,
}

struct Run<'a> {
    cluster: Cluster<'a>,
    load: Load,
    random: Random,
    report: Report,
    holds: Vec<ForeignHold>,
    overlaps: bool,
    begun: Instant,
    prints_steps: bool,
}

/// Runs the scene with these faults and checks the result.
pub(crate) async fn run(environment: &Environment<'_>, scene: &Scene, seed: u64, faults: &[Fault]) -> Report {
    let options = ClusterOptions {
        hosts: environment.hosts,
        binary: environment.binary,
        clock_library: environment.clock_library,
        volume: scene.volume,
        disk_errors: scene.allowed().disk_errors,
        proxied_clients: scene.has(&[Fault::ResetResponses, Fault::SlowClients]),
    };
    let begun = Instant::now();
    let cluster = Cluster::start(&options, seed).await;
    let load = Load::start(seed, &cluster.addresses);
    let random = Random(seed);
    let (overlaps, prints_steps) = (scene.overlaps, environment.prints_steps);
    let mut run =
        Run { cluster, load, random, report: Report::default(), holds: Vec::new(), overlaps, begun, prints_steps };
    run.print_step("started");
    if !run.load.acked_since(0, PATIENCE).await {
        run.report.findings.add(Violation::SlowRecovery, "no row was acknowledged after the start");
    }
    for &fault in faults {
        run.inject(scene, fault).await;
    }
    run.finish(environment, scene, seed).await
}

/// `count` faults: rounds of all given faults, each round in an order that the seed decides.
pub(crate) fn schedule(faults: &[Fault], count: usize, seed: u64) -> Vec<Fault> {
    let (mut schedule, mut random) = (Vec::new(), Random(!seed));
    while schedule.len() < count && !faults.is_empty() {
        let mut round = faults.to_vec();
        while !round.is_empty() {
            schedule.push(round.swap_remove(random.below(round.len())));
        }
    }
    schedule.truncate(count);
    schedule
}

impl Run<'_> {
    /// Injects the fault, in some scenes with another one at the same time, and measures the outage.
    async fn inject(&mut self, scene: &Scene, fault: Fault) {
        let pause = 50 + self.random.below(250) as u64;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        self.restart_exited().await;
        let active = self.begin(fault, None).await;
        let mut overlapping = None;
        if self.overlaps && fault.allows_overlap() {
            let others: Vec<_> =
                OVERLAPPING.into_iter().filter(|other| *other != fault && scene.has(&[*other])).collect();
            let other = others[self.random.below(others.len())];
            tokio::time::sleep(Duration::from_millis(pause)).await;
            overlapping = Some(self.begin(other, Some(active.slot)).await);
        } else if fault.others_keep_serving() && !self.overlaps && !self.cluster.files_are_locked().await {
            self.measure_outage(fault, false).await;
        }
        let lasts = self.random.below(400) as u64;
        tokio::time::sleep(Duration::from_millis(lasts)).await;
        if let Some(other) = overlapping {
            self.end(other).await;
        }
        self.end(active).await;
        self.restart_exited().await;
        self.measure_outage(fault, true).await;
    }

    async fn begin(&mut self, fault: Fault, spared: Option<usize>) -> ActiveFault {
        self.print_step(fault.description());
        let mut active = fault.begin(&mut self.cluster, &mut self.random, &mut self.holds, spared).await;
        active.wait_for_effect(&mut self.cluster).await;
        active
    }

    fn print_step(&self, step: &str) {
        if self.prints_steps {
            println!("  {:>6.2} s  {step}", self.begun.elapsed().as_secs_f64());
        }
    }

    async fn end(&mut self, active: ActiveFault) {
        let fault = active.fault;
        self.print_step("end of the fault");
        match active.end(&mut self.cluster).await {
            Proof::Effects(0) => self.report.findings.add(Violation::FaultWithoutEffect, format!("{fault:?}")),
            Proof::Effects(_) => *self.report.fired.entry(fault).or_default() += 1,
            Proof::ReplicaExited => {}
        }
    }

    /// Starts replicas again that have exited.
    async fn restart_exited(&mut self) {
        self.cluster.remove_exited();
        self.cluster.start_missing(REPLICAS).await;
    }

    /// Measures how long it takes until a new append is acknowledged.
    async fn measure_outage(&mut self, fault: Fault, is_over: bool) {
        let when = if is_over { "after the fault" } else { "during the fault" };
        let (from, from_us) = (Instant::now(), self.load.now_us());
        while !self.load.acked_since(from_us, SUPERVISION_INTERVAL).await && from.elapsed() < PATIENCE {
            // A replica may exit only now because of a failed sync.
            if is_over {
                self.restart_exited().await;
            }
        }
        let outage = from.elapsed();
        self.print_step(&format!("{when}: a row was acknowledged after {outage:.2?}"));
        if outage > LOCK_TTL + RECOVERY_MAX {
            let locked = self.cluster.files_are_locked().await;
            let description = format!("{fault:?}, {when}: no row for {outage:?}; the files are locked: {locked}");
            self.report.findings.add(Violation::SlowRecovery, description);
        }
        self.report.longest_outage = self.report.longest_outage.max(outage);
    }

    /// Ends the load and the replicas, and checks the file.
    async fn finish(self, environment: &Environment<'_>, scene: &Scene, seed: u64) -> Report {
        self.print_step("end of the load");
        let Self { mut cluster, load, mut report, holds, .. } = self;
        report.acked_rows = load.acked_rows();
        let mut history = load.end().await;
        history.holds = holds;
        cluster.remove_exited();
        let logs = cluster.logs();
        for slot in cluster.serving() {
            cluster.drain_and_terminate(slot);
        }
        for exit in &cluster.unexpected_exits {
            report.findings.add(Violation::UnexpectedExit, exit);
        }
        if let Err(e) = block_in_place(|| cluster.run_check()) {
            report.findings.add(Violation::Torn, e);
        }
        let text = fs::read(&cluster.csv).expect("a readable CSV");
        check(&history, &text, scene.allowed(), &mut report.findings);
        if report.findings.total() > 0 {
            let folder = environment.artifacts.join(format!("{}-{seed}", scene.name));
            keep_artifacts(&folder, &history, &cluster, &logs, &report.findings);
            println!("  the same schedule again: make faults SCENE={} SEED={seed} RUNS=1", scene.name);
        }
        report
    }
}

/// Saves the files of a run with violations, and prints how to check them again.
fn keep_artifacts(folder: &Path, history: &History, cluster: &Cluster<'_>, logs: &str, findings: &Findings) {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder).expect("a folder");
    cluster.copy_files(folder);
    fs::write(folder.join(HISTORY_FILE), serde_json::to_vec(history).expect("JSON")).expect("writable");
    fs::write(folder.join("logs.txt"), logs).expect("writable");
    fs::write(folder.join("findings.txt"), format!("{findings:#?}")).expect("writable");
    println!("  saved; to check again: cargo test --test faults -- --check {}", folder.display());
}

/// Checks a saved run again.
pub(crate) fn check_again(folder: &Path) -> Result<Findings, String> {
    let read = |name: &str| fs::read(folder.join(name)).map_err(|e| format!("{}: {e}", folder.join(name).display()));
    let history: History = serde_json::from_slice(&read(HISTORY_FILE)?).map_err(|e| e.to_string())?;
    // The folder is named SCENE-SEED.
    let name = folder.file_name().and_then(|name| name.to_str()?.rsplit_once('-'));
    let scene = Scene::named(name.map_or("", |(scene, _)| scene))?;
    let mut findings = Findings::default();
    check(&history, &read(CSV_FILE)?, scene.allowed(), &mut findings);
    Ok(findings)
}
