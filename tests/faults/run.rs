//! One run: replicas, clients, faults by the seed's schedule, and the verdict.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use rowlock::random::Random;
use tokio::task::block_in_place;

use crate::{
    checker::{Findings, Wrong, check},
    clients::Load,
    cluster::{Cluster, LOCK_TTL, REPLICAS, Setting},
    history::{History, Hold},
    nemesis::{Active, Fault},
    sandbox::Host,
    scene::{MEANWHILE, Scene, bears_another},
    support::PATIENCE,
};

/// How much longer than the time to live it may take until rows are acknowledged again: Redis's own calls end after 2 s, and a
/// machine with two cores has a bad moment now and then.
const BACK_WITHIN: Duration = Duration::from_secs(3);
const SUPERVISED_EVERY: Duration = Duration::from_millis(100);
const RECORDS: [&str; 2] = ["history.json", "rows.csv"];

/// What all runs share.
pub(crate) struct Ground<'a> {
    pub(crate) hosts: &'a [Host],
    pub(crate) binary: &'a Path,
    pub(crate) clock_library: &'a Path,
    /// Where what was found is kept.
    pub(crate) finds: &'a Path,
    /// Whether each step is told.
    pub(crate) tells: bool,
}

/// What came of it.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) fired: BTreeMap<Fault, u64>,
    pub(crate) acked_rows: u64,
    pub(crate) longest_outage: Duration,
    pub(crate) findings: Findings,
}

struct Run<'a> {
    cluster: Cluster<'a>,
    load: Load,
    random: Random,
    outcome: Outcome,
    holds: Vec<Hold>,
    is_mixed: bool,
    begun: Instant,
    tells: bool,
}

/// Runs the scene with these faults.
pub(crate) async fn run(ground: &Ground<'_>, scene: &Scene, seed: u64, faults: &[Fault]) -> Outcome {
    let setting = Setting {
        hosts: ground.hosts,
        binary: ground.binary,
        clock_library: ground.clock_library,
        volume: scene.volume,
        disk_trouble: scene.allowed().disk_trouble,
        linked: scene.has(&[Fault::ResetAnswers, Fault::SlowClients]),
    };
    let begun = Instant::now();
    let cluster = Cluster::start(&setting, seed).await;
    let load = Load::start(seed, &cluster.addresses);
    let random = Random(seed);
    let (outcome, is_mixed) = (Outcome::default(), scene.is_mixed);
    let mut run = Run { cluster, load, random, outcome, holds: Vec::new(), is_mixed, begun, tells: ground.tells };
    run.tell("started");
    if !run.load.served_since(0, PATIENCE).await {
        run.outcome.findings.add(Wrong::LateBack, "rows were never served");
    }
    for &fault in faults {
        run.strike(scene, fault).await;
    }
    run.judge(ground, scene, seed).await
}

/// All of these in the seed's order, again and again, until there are so many.
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
    async fn strike(&mut self, scene: &Scene, fault: Fault) {
        let pause = 50 + self.random.below(250) as u64;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        self.supervise().await;
        let active = self.begin(fault, None).await;
        let mut meanwhile = None;
        if self.is_mixed && bears_another(fault) {
            let more: Vec<_> = MEANWHILE.into_iter().filter(|other| *other != fault && scene.has(&[*other])).collect();
            let other = more[self.random.below(more.len())];
            tokio::time::sleep(Duration::from_millis(pause)).await;
            meanwhile = Some(self.begin(other, Some(active.place)).await);
        } else if fault.is_survived() && !self.is_mixed && !self.cluster.is_guarded().await {
            self.see_it_back(fault, false).await;
        }
        let hold = self.random.below(400) as u64;
        tokio::time::sleep(Duration::from_millis(hold)).await;
        if let Some(other) = meanwhile {
            self.end(other).await;
        }
        self.end(active).await;
        self.supervise().await;
        self.see_it_back(fault, true).await;
    }

    async fn begin(&mut self, fault: Fault, but: Option<usize>) -> Active {
        self.tell(fault.does());
        let mut active = fault.begin(&mut self.cluster, &mut self.random, &mut self.holds, but).await;
        active.felt(&mut self.cluster).await;
        active
    }

    fn tell(&self, what: &str) {
        if self.tells {
            println!("  {:>6.2} s  {what}", self.begun.elapsed().as_secs_f64());
        }
    }

    async fn end(&mut self, active: Active) {
        let fault = active.fault;
        self.tell("ends");
        let proof = active.end(&mut self.cluster).await;
        match proof {
            Some(0) => self.outcome.findings.add(Wrong::FaultDidNotHappen, format!("{fault:?}")),
            Some(_) => *self.outcome.fired.entry(fault).or_default() += 1,
            None => {}
        }
    }

    /// Starts those again that have ended.
    async fn supervise(&mut self) {
        self.cluster.bury();
        self.cluster.start_missing(REPLICAS).await;
    }

    async fn see_it_back(&mut self, fault: Fault, is_over: bool) {
        let when = if is_over { "afterwards" } else { "while it lasts" };
        let (from, from_us) = (Instant::now(), self.load.now_us());
        while !self.load.served_since(from_us, SUPERVISED_EVERY).await && from.elapsed() < PATIENCE {
            // Whoever is told of a failed sync only now ends now.
            if is_over {
                self.supervise().await;
            }
        }
        let outage = from.elapsed();
        self.tell(&format!("{when}: a row after {outage:.2?}"));
        if outage > LOCK_TTL + BACK_WITHIN {
            let guarded = self.cluster.is_guarded().await;
            let what = format!("{fault:?}, {when}: no row for {outage:?}; the files are kept: {guarded}");
            self.outcome.findings.add(Wrong::LateBack, what);
        }
        self.outcome.longest_outage = self.outcome.longest_outage.max(outage);
    }

    async fn judge(self, ground: &Ground<'_>, scene: &Scene, seed: u64) -> Outcome {
        self.tell("ends the load");
        let Self { mut cluster, load, mut outcome, holds, .. } = self;
        outcome.acked_rows = load.acked_rows();
        let mut history = load.end().await;
        history.holds = holds;
        cluster.bury();
        let logs = cluster.logs();
        for place in cluster.serving() {
            cluster.terminate(place, true);
        }
        for end in &cluster.unexpected_ends {
            outcome.findings.add(Wrong::UnexpectedEnd, end);
        }
        if let Err(e) = block_in_place(|| cluster.check_file()) {
            outcome.findings.add(Wrong::Torn, e);
        }
        let text = fs::read(&cluster.csv).expect("a readable CSV");
        check(&history, &text, scene.allowed(), &mut outcome.findings);
        if outcome.findings.all() > 0 {
            keep(ground, scene, seed, &history, &cluster, &logs, &outcome);
        }
        outcome
    }
}

/// Keeps what shows what went wrong, and says how to see it again.
fn keep(
    ground: &Ground<'_>,
    scene: &Scene,
    seed: u64,
    history: &History,
    cluster: &Cluster<'_>,
    logs: &str,
    outcome: &Outcome,
) {
    let folder = ground.finds.join(format!("{}-{seed}", scene.name));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a folder");
    cluster.keep_files(&folder);
    fs::write(folder.join(RECORDS[0]), serde_json::to_vec(history).expect("JSON")).expect("writable");
    fs::write(folder.join("logs.txt"), logs).expect("writable");
    fs::write(folder.join("findings.txt"), format!("{:#?}", outcome.findings)).expect("writable");
    println!("  kept; judged again by: cargo test --test faults -- --check {}", folder.display());
    println!("  the same schedule again: make faults SCENE={} SEED={seed} RUNS=1", scene.name);
}

/// Checks again what was kept.
pub(crate) fn check_again(folder: &Path) -> Result<Findings, String> {
    let read = |name: &str| fs::read(folder.join(name)).map_err(|e| format!("{}: {e}", folder.join(name).display()));
    let history: History = serde_json::from_slice(&read(RECORDS[0])?).map_err(|e| e.to_string())?;
    // Its name begins with the scene's.
    let name = folder.file_name().and_then(|name| name.to_str()?.rsplit_once('-'));
    let scene = Scene::named(name.map_or("", |(scene, _)| scene))?;
    let mut findings = Findings::default();
    check(&history, &read(RECORDS[1])?, scene.allowed(), &mut findings);
    Ok(findings)
}
