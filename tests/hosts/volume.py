"""The volume: ext4 on the server's second disk, exported by the kernel's NFS server, and mounted by the hosts."""

import errno
import time

from sandbox import RUN
from steps import check, wait_until

DISK = "/dev/ubdb"
# Clients of a lost host and of a restarted server wait this long. The kernel takes no less than 10 s.
LEASE_SECS = 10
EXPORT_OPTIONS = "rw,sync,no_root_squash,no_subtree_check,fsid=1"
# 5 times nlm_timeout, which is at least 3 s.
LOCKD_GRACE_SECS = 15
THREADS = 8
DISK_MIB = 1024
# Replicas run under this user, as a service does: root has no quota.
USER = 1000


class Volume:
    def __init__(self, server, version, mount_options):
        self.server, self.version, self.mount_options = server, version, mount_options
        create_disk(server.disk)

    def make(self):
        self.server.shell(f"mkfs.ext4 -q -m 0 -O quota -E lazy_itable_init=0 {DISK}")
        self.start(is_new=True)

    def start(self, is_new=False):
        """Mounts the disk and starts the server, which then waits for its former clients."""
        v3 = self.version == "3"
        # What the server remembers of its clients must lie on the disk that survives a power cut.
        self.server.shell(
            f"mkdir -p /export && mount -t ext4 -o usrquota {DISK} /export && mkdir -p /export/data /export/state/nfsdcld /var/lib/nfs && "
            f"chown {USER}:{USER} /export/data && rm -rf /var/lib/nfs/nfsdcld && ln -s /export/state/nfsdcld /var/lib/nfs/nfsdcld && "
            # With NFSv3, lockd's own grace period also keeps locks of NFSv4 waiting.
            f"modprobe lockd nlm_timeout={LOCKD_GRACE_SECS // 5} && modprobe nfsd && mount -t nfsd nfsd /proc/fs/nfsd && "
            f"echo {LEASE_SECS} > /proc/fs/nfsd/nfsv4leasetime && echo {LEASE_SECS} > /proc/fs/nfsd/nfsv4gracetime && "
            f"echo '/export 10.78.0.0/16({EXPORT_OPTIONS})' > /etc/exports && "
            "for program in 'rpcbind -w' nfsdcld 'rpc.statd --no-notify' rpc.mountd; do setsid $program > /dev/null 2>&1; done; "
            "exportfs -ra"
        )
        self.start_threads()
        # A new server has no former clients. lockd cannot be told so, and clients that come too early wait much longer.
        if is_new and v3:
            time.sleep(LOCKD_GRACE_SECS + 1)
        elif is_new:
            self.server.shell("echo Y > /proc/fs/nfsd/v4_end_grace")

    def start_threads(self):
        self.server.shell(f"rpc.nfsd {'' if self.version == '3' else '-N 3'} {THREADS}")

    def stop_threads(self):
        self.server.shell("rpc.nfsd 0")

    def is_in_grace(self):
        return self.server.shell("cat /proc/fs/nfsd/v4_end_grace").strip() == "N"

    def grace_periods(self):
        """How often the server has waited for former clients since its boot. It stops as soon as all of them have their locks again."""
        return int(self.server.shell("dmesg | grep -c 'NFSD: starting .* grace period' || true"))

    def mount(self, host):
        v3 = self.version == "3"
        if v3:
            self.start_lock_manager(host)
        options = ",".join(part for part in [f"vers={self.version}", "proto=tcp", "hard", self.mount_options] if part)
        source = f"{self.server.address}:/export/data"
        host.shell(f"modprobe nfsv{'3' if v3 else '4'}; mount -t nfs -o {options} {source} /mnt/data", secs_max=100)

    def start_lock_manager(self, host):
        host.shell("for program in 'rpcbind -w' 'rpc.statd --no-notify'; do setsid $program > /dev/null 2>&1; done; true")

    def read(self, name):
        """A file as the server's own file system has it."""
        return self.server.read(f"/export/data/{name}")

    def size(self, name):
        return int(self.server.shell(f"stat -c %s /export/data/{name} 2> /dev/null || echo 0"))

    def fill(self, bytes_left):
        """Fills the disk, but for some bytes."""
        self.server.shell(
            f"cd /export; dd if=/dev/zero of=reserve bs={bytes_left} count=1 conv=fsync 2> /dev/null; "
            # Most of it at once, the rest in pieces: replicas take space at the same time.
            "fallocate -l $(($(stat -f -c '%f*%S' .) - (8 << 20))) filler; "
            "dd if=/dev/zero bs=64K >> filler 2> /dev/null; sync; rm reserve"
        )

    def empty(self):
        self.server.shell("rm /export/filler")

    def export(self, options):
        self.server.shell(f"echo '/export 10.78.0.0/16({options})' > /etc/exports; exportfs -ra; exportfs -f")

    def withdraw(self):
        """Makes the clients' file handles stale, as if another volume were exported."""
        self.export(EXPORT_OPTIONS.replace("fsid=1", "fsid=2"))

    def holds_os_lock(self, host, name):
        """Whether this host has the OS lock of a file, as the server knows it (NFSv4 only)."""
        inode = self.server.shell(f"stat -c %i /export/data/{name}").strip()
        states = self.server.shell(
            "for client in /proc/fs/nfsd/clients/*; do "
            f"grep -q '^address: \"{host.address}:' $client/info && grep 'type: lock' $client/states; done; true"
        )
        locked = self.server.shell("cat /proc/locks")
        # A lock's state may stay on the server for a moment after the lock has gone.
        return f':{inode}"' in states and any(f":{inode} " in line and " DELEG " not in line for line in locked.splitlines())


class Canary:
    """Bytes that were written to a file but not synced: proof that a power cut loses what was not written out."""

    def __init__(self, guest, folder):
        self.guest, self.name = guest, f"canary-{guest.name}"
        # NFS writes a file out at every close, also of a copy of the descriptor, and when its attributes are asked for. The kernel itself
        # does so after 30 s.
        guest.shell(
            "echo 0 > /proc/sys/vm/dirty_writeback_centisecs; "
            f'setsid python3 -c \'import os, time; file = os.open("{folder}/{self.name}", os.O_CREAT | os.O_WRONLY); '
            'os.write(file, b"unsynced"); open("/tmp/canary", "w").close(); time.sleep(1000)\' > /dev/null 2>&1 &'
        )
        wait_until("the canary is written", lambda: guest.shell("ls /tmp/canary 2> /dev/null || true") != "")

    def check_lost(self, volume):
        try:
            content = volume.read(f"../{self.name}" if self.guest is volume.server else self.name)
        except OSError as e:
            check(e.errno == errno.ENOENT, f"the canary cannot be read: {e}")
            return
        check(content == b"", f"the power cut of {self.guest.name} lost nothing: {content[:40]}")


def data_disk():
    return RUN / "data.img"


def create_disk(path):
    """An empty disk; blocks that are not written take no memory."""
    path.unlink(missing_ok=True)
    with open(path, "wb") as disk:
        disk.truncate(DISK_MIB << 20)
