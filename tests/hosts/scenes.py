"""All scenes: what happens, and what the checker must know of it."""

from dataclasses import dataclass, field
from typing import Callable

import commands
import faults
import perf

V4 = ("4.2", "4.1", "4.0")
ALL_VERSIONS = (*V4, "3")


@dataclass(frozen=True)
class Scene:
    name: str
    happening: Callable
    # Part of the quick gate.
    quick: bool = False
    # The scene makes its cluster itself, and may have no load.
    alone: bool = False
    # A crash may leave an incomplete line, which goes to the quarantine.
    crashes: bool = False
    # Rows in a call that fails, or that hangs for longer than they wait, are answered with `internal`.
    disk_errors: bool = False
    # A replica may end because a write has failed in the middle of a batch, and is started again.
    disk_fails: bool = False
    versions: tuple = ALL_VERSIONS
    # Seconds of a scene without a fault.
    secs: float = 25
    # Seconds of each cut from NFS, and whether the host holds the OS lock.
    cuts: tuple = ()
    mount_options: str = ""
    load: dict = field(default_factory=dict)

    def play(self, trial):
        if self.alone:
            self.happening(trial)
            return
        with trial.cluster_up():
            trial.under_load(self.happening, **self.load)


SHORT, LONG = faults.SHORT_SECS, faults.PAST_LEASE_SECS
SCENES = [
    Scene("three-appends", commands.three_appends, quick=True, alone=True),
    Scene("first-starts", commands.first_starts, alone=True),
    Scene("bursts", faults.steady, quick=True),
    Scene("long-bursts", faults.steady, secs=120, load={"clients_per_host": 2}),
    Scene("bursts-noac", faults.steady, versions=("4.2",), mount_options="noac"),
    Scene("server-power", faults.server_power, quick=True, crashes=True, disk_errors=True),
    Scene("server-restart", faults.server_restart, disk_errors=True),
    Scene("server-grace", faults.server_grace, crashes=True, disk_errors=True),
    Scene("cut-nfs", faults.cut_nfs, quick=True, disk_errors=True, cuts=((LONG, None),)),
    Scene("cut-nfs-holder", faults.cut_nfs, disk_errors=True, cuts=((SHORT, True), (LONG, True)), versions=V4),
    Scene("cut-nfs-idle", faults.cut_nfs, disk_errors=True, cuts=((SHORT, False), (LONG, False)), versions=V4),
    Scene("cut-redis", faults.cut_redis),
    Scene("cut-both", faults.cut_both, disk_errors=True),
    Scene("host-power-holder", faults.host_power_holder, crashes=True),
    Scene("host-power-idle", faults.host_power_idle, crashes=True),
    Scene("stop-replica", faults.stop_replica),
    Scene("stop-host", faults.stop_host, crashes=True, disk_errors=True),
    Scene("kill-replica", faults.kill_replica, crashes=True),
    Scene("disk-full", faults.disk_full, crashes=True, disk_errors=True, disk_fails=True),
    Scene("quota", faults.quota, crashes=True, disk_errors=True, disk_fails=True),
    Scene("read-only", faults.read_only, crashes=True, disk_errors=True, disk_fails=True),
    # With NFSv3, a lock of a stale handle is asked for again and again: no call returns.
    Scene("stale-handles", faults.stale_handles, disk_errors=True, versions=V4),
    Scene("no-lock-manager", faults.no_lock_manager, versions=("3",)),
    Scene("embedded", faults.embedded, alone=True),
    Scene("perf", perf.perf, alone=True),
]


def named(name):
    for scene in SCENES:
        if scene.name == name:
            return scene
    raise SystemExit(f"hosts: no scene is named {name}; there are {', '.join(scene.name for scene in SCENES)}")
