//! A harness that tries to break it: real replicas, a real Redis and real clients, while faults hit them by a seed's schedule;
//! then a checker that knows every request and its answer reads the file. See ARCHITECTURE.md, "Faults".

mod checker;
mod clients;
mod cluster;
#[path = "../support/disk/mod.rs"]
#[allow(dead_code, reason = "shared with the crash tests")]
mod disk;
#[path = "../support/ext4.rs"]
mod ext4;
mod history;
#[path = "../support/failpoints.rs"]
mod named_points;
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
use run::Ground;
use scene::{SCENES, Scene};
use table::Table;

/// Samples of each kind that are printed.
const SAMPLES: usize = 3;

/// Tries to break it.
#[derive(Parser)]
struct Args {
    /// Only this scene; may be given again. All of them without.
    #[arg(long, value_parser = Scene::named)]
    scene: Vec<&'static Scene>,
    /// Only this fault of these scenes; may be given again.
    #[arg(long, value_enum)]
    only: Vec<Fault>,
    /// How many runs of each scene, each with the next seed.
    #[arg(long, default_value_t = 1)]
    runs: u64,
    /// The first run's seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many faults hit each run; none: each of the scene's once.
    #[arg(long)]
    faults: Option<usize>,
    /// Ends at the first run in which something is wrong.
    #[arg(long)]
    until_wrong: bool,
    /// Tells each step of a run.
    #[arg(long)]
    steps: bool,
    /// The service to try, rather than the one that was built with this.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_rowlock"))]
    binary: PathBuf,
    /// Writes the table into docs/guarantees.md.
    #[arg(long)]
    write: bool,
    /// Lists the scenes and their faults, and does nothing.
    #[arg(long)]
    list: bool,
    /// Checks a history again that was kept in this folder, and does nothing else.
    #[arg(long)]
    check: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.list {
        for scene in &SCENES {
            println!("{}, on {:?}", scene.name, scene.volume);
            scene.faults.iter().for_each(|fault| println!("  {fault:?}: {}", fault.does()));
        }
        return ExitCode::SUCCESS;
    }
    let done = match &args.check {
        Some(folder) => run::check_again(folder).map(|findings| {
            print(&findings);
            findings.all() == 0
        }),
        None => sandbox::enter().and_then(|()| try_all(&args)),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("faults: {e}");
            ExitCode::from(2)
        }
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 4)]
async fn try_all(args: &Args) -> Result<bool, String> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/faults");
    fs::create_dir_all(&target).map_err(|e| format!("{}: {e}", target.display()))?;
    let clock_library = target.join("clock.so");
    ext4::run(
        "cc",
        &[
            "-shared",
            "-fPIC",
            "-O2",
            "-o",
            &clock_library.to_string_lossy(),
            concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults/clock.c"),
        ],
    );
    let hosts = sandbox::Host::all();
    // Replicas are started in folders of their own.
    let binary = args.binary.canonicalize().map_err(|e| format!("{}: {e}", args.binary.display()))?;
    let ground =
        Ground { hosts: &hosts, binary: &binary, clock_library: &clock_library, finds: &target, tells: args.steps };
    let mut table = Table::default();
    // The first process of a sandbox hears no signal that it does not ask for.
    let mut terminated = signal(SignalKind::terminate()).map_err(|e| e.to_string())?;
    tokio::select! {
        _ = tokio::signal::ctrl_c() => return Err("stopped".to_owned()),
        _ = terminated.recv() => return Err("stopped".to_owned()),
        () = all_runs(args, &ground, &mut table) => {}
    }
    println!("\n{}\n{}", table.by_scene(), table.by_fault());
    let never = table.never_fired();
    let is_whole = args.faults.is_some() || !args.only.is_empty() || never.is_empty();
    if !is_whole {
        println!("never took place: {never:?}");
    }
    if args.write {
        table.write(&Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/guarantees.md"))?;
    }
    Ok(table.wrong() == 0 && is_whole)
}

async fn all_runs(args: &Args, ground: &Ground<'_>, table: &mut Table) {
    let scenes: Vec<_> = if args.scene.is_empty() { SCENES.iter().collect() } else { args.scene.clone() };
    let all = args.runs * scenes.len() as u64;
    for number in 0..all {
        let (scene, seed) = (scenes[number as usize % scenes.len()], args.seed + number / scenes.len() as u64);
        let wanted = |fault: &Fault| args.only.is_empty() || args.only.contains(fault);
        let faults: Vec<_> = scene.faults.iter().copied().filter(wanted).collect();
        let count = args.faults.unwrap_or(faults.len());
        let begun = Instant::now();
        let outcome = run::run(ground, scene, seed, &run::schedule(&faults, count, seed)).await;
        println!(
            "{:>4} of {all}  {:<10} seed {seed}: {} faults, {} rows acknowledged, back within {:.1} s, {} wrong; {:.1} s",
            number + 1,
            scene.name,
            outcome.fired.values().sum::<u64>(),
            outcome.acked_rows,
            outcome.longest_outage.as_secs_f64(),
            outcome.findings.all(),
            begun.elapsed().as_secs_f64()
        );
        print(&outcome.findings);
        table.add(scene.name, &outcome);
        if args.until_wrong && outcome.findings.all() > 0 {
            return;
        }
    }
}

fn print(findings: &Findings) {
    for (wrong, found) in &findings.0 {
        println!("  {wrong:?}: {} times", found.len());
        found.iter().take(SAMPLES).for_each(|sample| println!("    {}", sample.chars().take(600).collect::<String>()));
    }
}
