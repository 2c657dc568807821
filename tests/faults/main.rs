//! Fault tests: real replicas, a real Redis and real clients, while faults hit them on a schedule that a seed decides. Then a
//! checker that knows every request and its response reads the file.

mod checker;
mod clients;
mod cluster;
#[path = "../support/disk/mod.rs"]
#[allow(dead_code, reason = "shared with the crash tests")]
mod disk;
#[path = "../support/ext4.rs"]
mod ext4;
#[path = "../support/failpoints.rs"]
mod failpoints;
mod history;
mod hosts;
mod nemesis;
mod proxy;
mod run;
mod sandbox;
mod scene;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "shared with the integration tests")]
mod support;
mod table;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use checker::Findings;
use nemesis::Fault;
use run::Environment;
use scene::{SCENES, Scene};
use table::Table;

/// How many violations of a kind are printed.
const PRINTED_MAX: usize = 3;
const PRINTED_CHARS_MAX: usize = 600;

/// Injects faults into a cluster of replicas and checks the file that they write.
#[derive(Parser)]
struct Args {
    /// Run only this scene; may be repeated. Default: all scenes.
    #[arg(long, value_parser = Scene::named)]
    scene: Vec<&'static Scene>,
    /// Inject only this fault; may be repeated.
    #[arg(long, value_enum)]
    only: Vec<Fault>,
    /// How many runs of each scene; each has the next seed.
    #[arg(long, default_value_t = 1)]
    runs: u64,
    /// The seed of the first run.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many faults hit each run. Default: each fault of the scene once.
    #[arg(long)]
    faults: Option<usize>,
    /// Stop after the first run with a violation.
    #[arg(long)]
    until_violation: bool,
    /// Print each step of a run.
    #[arg(long)]
    steps: bool,
    /// Another binary of the service than the one that was built with these tests.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_rowlock"))]
    binary: PathBuf,
    /// Writes the table into docs/guarantees.md.
    #[arg(long)]
    write: bool,
    /// List the scenes and their faults, and exit.
    #[arg(long)]
    list: bool,
    /// Check the history in this folder again, and exit.
    #[arg(long)]
    check: Option<PathBuf>,
    /// Check a history that `tests/hosts` recorded, against --csv, and exit.
    #[arg(long, requires = "csv")]
    history: Option<PathBuf>,
    /// The CSV of --history, as it is on the volume.
    #[arg(long, requires = "history")]
    csv: Option<PathBuf>,
    /// With --history: error responses of a failing disk are no violations.
    #[arg(long)]
    disk_errors: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.list {
        for scene in &SCENES {
            println!("{}, on {:?}", scene.name, scene.volume);
            scene.faults.iter().for_each(|fault| println!("  {fault:?}: {}", fault.description()));
        }
        return ExitCode::SUCCESS;
    }
    let print_all = |findings: Findings| {
        print(&findings);
        findings.total() == 0
    };
    let result = match (&args.check, &args.history, &args.csv) {
        (Some(folder), ..) => run::check_again(folder).map(print_all),
        (_, Some(history), Some(csv)) => hosts::check(history, csv, args.disk_errors).map(print_all),
        _ => sandbox::enter().and_then(|()| run_all(&args)),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("faults: {e}");
            ExitCode::from(2)
        }
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 4)]
async fn run_all(args: &Args) -> Result<bool, String> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/faults");
    fs::create_dir_all(&target).map_err(|e| format!("{}: {e}", target.display()))?;
    let clock_library = build_clock_library(&target);
    let hosts = sandbox::Host::all();
    // A replica does not start in this folder, so the path must be absolute.
    let binary = args.binary.canonicalize().map_err(|e| format!("{}: {e}", args.binary.display()))?;
    let environment = Environment {
        hosts: &hosts,
        binary: &binary,
        clock_library: &clock_library,
        artifacts: &target,
        prints_steps: args.steps,
    };
    let mut table = Table::default();
    // The first process of a PID namespace receives only signals that it has handlers for.
    let mut terminated = signal(SignalKind::terminate()).map_err(|e| e.to_string())?;
    tokio::select! {
        _ = tokio::signal::ctrl_c() => return Err("stopped".to_owned()),
        _ = terminated.recv() => return Err("stopped".to_owned()),
        () = run_scenes(args, &environment, &mut table) => {}
    }
    println!("\n{}\n{}", table.by_scene(), table.by_fault());
    let never = table.never_fired();
    let is_complete = args.faults.is_some() || !args.only.is_empty() || never.is_empty();
    if !is_complete {
        println!("faults that never had an effect: {never:?}");
    }
    if args.write {
        table.write(&Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/guarantees.md"))?;
    }
    Ok(table.violations() == 0 && is_complete)
}

/// The library that sets the clock of Redis.
fn build_clock_library(folder: &Path) -> PathBuf {
    let library = folder.join("clock.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults/clock.c");
    ext4::run("cc", &["-shared", "-fPIC", "-O2", "-o", &library.to_string_lossy(), source]);
    library
}

async fn run_scenes(args: &Args, environment: &Environment<'_>, table: &mut Table) {
    let scenes: Vec<_> = if args.scene.is_empty() { SCENES.iter().collect() } else { args.scene.clone() };
    let all = args.runs * scenes.len() as u64;
    for number in 0..all {
        let (scene, seed) = (scenes[number as usize % scenes.len()], args.seed + number / scenes.len() as u64);
        let is_selected = |fault: &Fault| args.only.is_empty() || args.only.contains(fault);
        let faults: Vec<_> = scene.faults.iter().copied().filter(is_selected).collect();
        let count = args.faults.unwrap_or(faults.len());
        let begun = Instant::now();
        let report = run::run(environment, scene, seed, &run::schedule(&faults, count, seed)).await;
        println!(
            "{:>4} of {all}  {:<12} seed {seed}: {} faults, {} rows acknowledged, longest outage {:.1} s, {} violations; {:.1} s",
            number + 1,
            scene.name,
            report.fired.values().sum::<u64>(),
            report.acked_rows,
            report.longest_outage.as_secs_f64(),
            report.findings.total(),
            begun.elapsed().as_secs_f64()
        );
        print(&report.findings);
        table.add(scene.name, &report);
        if args.until_violation && report.findings.total() > 0 {
            return;
        }
    }
}

fn print(findings: &Findings) {
    for (violation, descriptions) in &findings.0 {
        println!("  {violation:?}: {} times", descriptions.len());
        for description in descriptions.iter().take(PRINTED_MAX) {
            println!("    {}", description.chars().take(PRINTED_CHARS_MAX).collect::<String>());
        }
    }
}
