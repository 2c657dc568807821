"""Faults of hosts, network and server, each under a load, with the proof that it took place."""

import errno
import time

from cluster import TTL_SECS, Replica, as_user
from steps import check, say, wait_until
from volume import EXPORT_OPTIONS, LEASE_SECS, Canary

# Longer than the server's lease, so that it gives the locks of a lost host to others.
PAST_LEASE_SECS = LEASE_SECS + 4
# Shorter than the server's lease.
SHORT_SECS = 4
# The disk has so much space left when it is full.
SPACE_LEFT = 16 << 10
FAULT_SEEN_SECS_MAX = 30


def steady(trial):
    """No fault: bursts, quiet phases and readers."""
    time.sleep(trial.scene.secs)


def cut(trial, *others, secs, holding=None):
    """Drops all packets between a host and others for some seconds."""
    with trial.load.busy():
        host = trial.rng.choice(trial.hosts) if holding is None else trial.catch(holding)
        host.link.cut(*others)
        # A caught host is paused.
        host.resume()
        began = time.monotonic()
        if secs > LEASE_SECS:
            trial.wait_until_others_served("while a host is cut off")
    time.sleep(max(0, began + secs - time.monotonic()))
    dropped = host.link.heal()
    check(dropped, f"the cut of {host.name} dropped no packet")
    trial.fault(f"{host.name} was cut off for {secs} s: {dropped} packets dropped")
    trial.wait_until_served("after the cut", host)
    time.sleep(2)


def cut_nfs(trial):
    for secs, holding in trial.scene.cuts:
        cut(trial, trial.cluster.server.link, secs=secs, holding=holding)


def cut_redis(trial):
    for secs in (1, TTL_SECS + 3):
        cut(trial, "redis", secs=secs)


def cut_both(trial):
    for secs in (SHORT_SECS, PAST_LEASE_SECS):
        cut(trial, trial.cluster.server.link, "redis", secs=secs)


def host_power(trial, holding):
    """A host loses its power, with or without the OS lock, and comes back."""
    canaries = {host: Canary(host, "/mnt/data") for host in trial.hosts}
    with trial.load.busy():
        host = trial.catch(holding)
        trial.replicas[host].may_exit = True
        host.cut_power()
        trial.wait_until_others_served("while a host is dead")
    canaries[host].check_lost(trial.volume)
    time.sleep(2)
    host.boot().wait_until_up()
    trial.volume.mount(host)
    trial.fault(f"{host.name} lost its power")
    trial.restart(host)
    trial.wait_until_served("after the host's boot", host)


def host_power_holder(trial):
    host_power(trial, True)


def host_power_idle(trial):
    host_power(trial, False)


def server_power(trial):
    """The server loses its power, and with it what it had not written to its disk."""
    time.sleep(trial.rng.uniform(1, 4))
    with trial.load.busy():
        canary = Canary(trial.cluster.server, "/export")
        trial.cluster.server.cut_power()
        time.sleep(1)
        trial.cluster.server.boot().wait_until_up()
        trial.volume.start()
    check(trial.volume.grace_periods() == 1, "the server does not wait for its former clients")
    canary.check_lost(trial.volume)
    trial.fault("the server lost its power, and unsynced data")
    trial.wait_until_all_serve("after the server's boot")


def server_restart(trial):
    """The NFS server is restarted, and waits for its former clients."""
    with trial.load.busy():
        restart_server(trial)
    trial.fault("the NFS server was restarted")
    trial.wait_until_all_serve("after the server's restart")


def restart_server(trial):
    before = trial.volume.grace_periods()
    trial.volume.stop_threads()
    time.sleep(2)
    check(not trial.history.acked_since(time.monotonic() - 1), "rows were acknowledged while no NFS server ran")
    trial.volume.start_threads()
    check(trial.volume.grace_periods() > before, "the server does not wait for its former clients")


def server_grace(trial):
    """The server waits for a client that does not come back, for its whole grace period. A replica starts meanwhile."""
    absent, starting = trial.hosts[:2]
    with trial.load.busy():
        trial.replicas[starting].signal("KILL")
        wait_until("the replica is dead", lambda: trial.replicas[starting].exit_status() is not None)
        absent.link.cut(trial.cluster.server.link)
        restart_server(trial)
        trial.replicas[starting].start()
        time.sleep(LEASE_SECS / 2)
        check(trial.volume.is_in_grace(), "the grace period is over too early")
        trial.wait_until_served("after the grace period")
    check(absent.link.heal(), "the cut dropped no packet")
    trial.fault(f"the NFS server waited for {absent.name}")
    trial.wait_until_all_serve("after the grace period")


def stop_replica(trial):
    """A replica stops for longer than its lease; its host goes on."""
    for _ in range(2):
        host = trial.rng.choice(trial.hosts)
        with trial.load.busy():
            trial.replicas[host].signal("STOP")
        time.sleep(PAST_LEASE_SECS)
        state = host.shell("sed -n 's/^State:\\s*//p' /proc/$(cat /tmp/pid)/status")
        check(state.startswith("T"), f"the replica of {host.name} is not stopped but {state}")
        trial.replicas[host].signal("CONT")
        trial.fault(f"the replica of {host.name} stopped for {PAST_LEASE_SECS} s")
        trial.wait_until_served("after the stop", host)


def stop_host(trial):
    """A whole host stops past both leases, once with the OS lock and once without."""
    for holding in (True, False):
        with trial.load.busy():
            host = trial.catch(holding)
            began = time.monotonic()
            trial.wait_until_others_served("while a host is stopped")
        time.sleep(max(0, began + PAST_LEASE_SECS - time.monotonic()))
        try:
            host.shell("true", secs_max=1)
            check(False, f"{host.name} is not stopped")
        except OSError:
            pass
        host.resume()
        trial.fault(f"{host.name} stopped for more than {PAST_LEASE_SECS} s")
        trial.wait_until_served("after the stop", host)


def kill_replica(trial):
    for _ in range(4):
        host = trial.rng.choice(trial.hosts)
        trial.replicas[host].signal("KILL")
        wait_until("the replica is dead", lambda: trial.replicas[host].exit_status() == 128 + 9)
        trial.fault(f"the replica of {host.name} was killed")
        trial.wait_until_served("while a replica is dead")
        trial.restart(host)
        trial.wait_until_served("after the kill", host)


def refused_meanwhile(trial, is_expected):
    """Waits until answers of the load show the fault, and some seconds more."""
    before = trial.load.answers.copy()
    wait_until("the load sees the fault", lambda: any(map(is_expected, trial.load.answers - before)), FAULT_SEEN_SECS_MAX)
    time.sleep(3)


def check_writes_fail(trial, reason):
    """Another program of the replicas' user cannot write either."""
    output = trial.hosts[0].shell(
        as_user("dd if=/dev/zero of=/mnt/data/probe bs=1M count=1 conv=fsync 2>&1; rm -f /mnt/data/probe"), check=False
    )
    check(reason in output, f"a write does not fail with {reason!r}: {output}")


def is_storage_error(answer):
    """An error of the replica, not of the connection."""
    return answer[0] in "45"


def disk_full(trial):
    for _ in range(2):
        trial.volume.fill(SPACE_LEFT)
        check_writes_fail(trial, "No space left on device")
        refused_meanwhile(trial, is_storage_error)
        trial.volume.empty()
        trial.fault("the disk was full")
        trial.wait_until_all_serve("after the disk has space again")


def quota(trial):
    """The replicas' user has no quota left."""
    server = trial.cluster.server
    used = int(server.shell("repquota -u -v -O csv /export 2> /dev/null | awk -F, '/1000/ { print $4 }'").strip())
    server.shell(f"setquota -u 1000 {used} {used + 150} 0 0 /export")
    check_writes_fail(trial, "Disk quota exceeded")
    refused_meanwhile(trial, is_storage_error)
    server.shell("setquota -u 1000 0 0 0 0 /export")
    trial.fault("the quota was used up")
    trial.wait_until_all_serve("after the quota was raised")


def read_only(trial):
    trial.volume.export(EXPORT_OPTIONS.replace("rw", "ro"))
    check_writes_fail(trial, "Read-only file system")
    refused_meanwhile(trial, is_storage_error)
    trial.volume.export(EXPORT_OPTIONS)
    trial.fault("the export was read-only")
    trial.wait_until_all_serve("after the export is writable again")


def stale_handles(trial):
    """Another volume is exported for some seconds: every file handle is stale."""
    trial.volume.withdraw()
    try:
        trial.hosts[0].read("/mnt/data/rows.csv")
        check(False, "the file handles are not stale")
    except OSError as e:
        check(e.errno == errno.ESTALE, f"the file handles are not stale: {e}")
    refused_meanwhile(trial, is_storage_error)
    trial.volume.export(EXPORT_OPTIONS)
    trial.fault("the file handles were stale")
    trial.wait_until_all_serve("after the export is back")


def no_lock_manager(trial):
    """A host without rpc.statd cannot lock over NFSv3 (ENOLCK): its replica serves nothing until it can."""
    host = trial.hosts[0]
    check(trial.replicas[host].terminate() == 0, "the replica does not end")
    # A kernel that has locked before needs no rpc.statd any more.
    host.cut_power()
    host.boot().wait_until_up()
    trial.volume.mount(host)
    host.shell("kill $(pidof rpc.statd rpcbind)")
    output = host.shell(as_user("flock /mnt/data/probe true 2>&1"), secs_max=100, check=False)
    check("No locks available" in output, f"the host can lock without rpc.statd: {output}")
    trial.replicas[host].start()
    time.sleep(5)
    now = time.monotonic()
    check(not trial.history.acked_since(now - 5, host), "a replica without locks acknowledges rows")
    trial.fault(f"{host.name} could not lock")
    trial.volume.start_lock_manager(host)
    if trial.replicas[host].exit_status() is not None:
        trial.restart(host)
    trial.wait_until_served("after the host can lock again", host)


def embedded(trial):
    """Without Redis, replicas on a network volume either refuse to start, or share one lock with all hosts."""
    with trial.cluster_up(redis=False):
        replicas = [Replica(trial.cluster, host).start() for host in trial.hosts]
        for replica in replicas:
            wait_until("the replica is ready or has ended", lambda replica=replica: replica.exit_status() is not None or replica.is_ready())
        refused = [replica for replica in replicas if replica.exit_status() is not None]
        check(len(refused) in (0, len(replicas)), f"only {len(refused)} replicas refuse the volume")
        if refused:
            say(f"refused: {refused[0].host.shell('tail -n 1 /tmp/log')[-300:].strip()}")
            trial.result.refused = True
            return
        for replica in replicas:
            check(replica.terminate() == 0, "a replica does not end")
        trial.under_load(steady)
