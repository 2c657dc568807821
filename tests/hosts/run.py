#!/usr/bin/env python3
"""Tests replicas on hosts of their own, on one network volume.

Guests are user-mode-linux machines with kernels and page caches of their own: one NFS server, and hosts with a replica each. Everything
runs in namespaces that end with this process. `tests/faults` checks what the file must hold.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# steps.py is shared with tests/containers.
sys.path.append(str(ROOT / "tests/support"))
import report
import sandbox
import scenes
from cluster import provide_tools
from steps import say
from trial import Options, Trial

# Where `build` leaves the names of the programs for the process inside the namespaces.
PROGRAMS = "ROWLOCK_HOSTS_PROGRAMS"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scenes", help="names, separated by commas; the quick gate unless given; `all` for all")
    parser.add_argument("--version", default="4.2", help="NFS versions, separated by commas (4.2, 4.1, 4.0, 3); `all` for all")
    parser.add_argument("--noac", action="store_true", help="mount without a cache of attributes")
    parser.add_argument("--mount-options", default="", help="more options of the mount")
    parser.add_argument("--runs", type=int, default=1, help="runs of each scene, each with the next seed")
    parser.add_argument("--seed", type=int, default=1, help="the seed of the first run")
    parser.add_argument("--binary", help="another replica than the one that cargo builds here")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/network-volumes.md")
    parser.add_argument("--verbose", action="store_true", help="print each fault, and what was answered and logged")
    parser.add_argument("--list", action="store_true", help="list the scenes, and exit")
    args = parser.parse_args()
    if args.scenes == "all":
        args.chosen = [scene for scene in scenes.SCENES if scene.name != "perf"]
    elif args.scenes:
        args.chosen = [scenes.named(name) for name in args.scenes.split(",")]
    else:
        args.chosen = [scene for scene in scenes.SCENES if scene.quick]
    args.versions = scenes.ALL_VERSIONS if args.version == "all" else args.version.split(",")
    return args


def build():
    """Builds replica and checker, as `make test` does, so that nothing is built twice."""
    command = ["cargo", "test", "--locked", "--test", "faults", "--no-run", "--message-format=json-render-diagnostics"]
    built = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if built.returncode:
        sys.exit(built.returncode)
    found = {}
    for line in built.stdout.splitlines():
        artifact = json.loads(line)
        if artifact.get("executable"):
            found[artifact["target"]["name"]] = artifact["executable"]
    os.environ[PROGRAMS] = json.dumps(found)


def run_all(args):
    programs = json.loads(os.environ[PROGRAMS])
    binary = str(Path(args.binary).resolve()) if args.binary else programs["rowlock"]
    provide_tools(binary)
    mount_options = ",".join(part for part in (args.mount_options, "noac" if args.noac else "") if part)
    trials = [
        (scene, version, args.seed + run)
        for version in args.versions
        for run in range(args.runs)
        for scene in args.chosen
        if version in scene.versions
    ]
    if not trials:
        raise SystemExit("hosts: none of these scenes is for this version of NFS")
    results = []
    for number, (scene, version, seed) in enumerate(trials, 1):
        began = time.monotonic()
        print(f"{number} of {len(trials)}: {scene.name}, NFSv{version}, seed {seed}", flush=True)
        options = ",".join(part for part in (mount_options, scene.mount_options) if part)
        trial = Trial(scene, Options(binary, programs["faults"], version, options, args.verbose), seed)
        results.append(trial.run())
        say(f"({time.monotonic() - began:.1f} s)")
    return results


def main():
    args = arguments()
    if args.list:
        for scene in scenes.SCENES:
            print(f"{scene.name:<18} {'quick ' if scene.quick else '      '}{(scene.happening.__doc__ or scene.name).splitlines()[0]}")
        return
    if args.write:
        # Before hours of trials, not after them.
        report.split_document()
    sandbox.enter(Path(__file__).resolve(), build)
    began = time.monotonic()
    results = run_all(args)
    text = report.tables(results)
    print(f"\n{text}")
    if args.write:
        report.write(text)
    bad = [result for result in results if not result.is_clean()]
    print(f"hosts: {len(results) - len(bad)} of {len(results)} trials are clean, in {time.monotonic() - began:.0f} s")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
