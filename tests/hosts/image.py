"""What the guests boot from: a root of Debian packages, made once and kept in target/hosts."""

import fcntl
import hashlib
import shutil
import sys
from pathlib import Path

from steps import run, say

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
CACHE = ROOT / "target/hosts"
KERNEL = Path("/usr/bin/linux.uml")
MODULES = Path("/usr/lib/uml/modules")
MIRROR = "http://deb.debian.org/debian"
PACKAGES = ["nfs-kernel-server", "nfs-common", "python3-minimal", "libpython3-stdlib", "iproute2", "kmod", "procps", "e2fsprogs", "quota"]
# A stub: the real first process comes with the tools of each run.
STUB = """#!/bin/bash
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
[ -e /proc/cmdline ] || mount -t proc proc /proc
mkdir -p /tools
mount -t hostfs -o "$(sed -n 's/.*bed\\.tools=\\([^ ]*\\).*/\\1/p' /proc/cmdline)" none /tools
exec /tools/init
"""


def suite():
    """This host's Debian release, so that the replica finds its C library in the guest; else the one that has user-mode-linux 6.1."""
    lines = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    return lines.get("VERSION_CODENAME", "bookworm") if lines.get("ID") == "debian" else "bookworm"


def version():
    """Changes with everything that the image is made of."""
    kernel = run("dpkg-query", "--show", "user-mode-linux")
    return hashlib.sha256("\n".join([suite(), kernel, STUB, (HERE / "xstate.c").read_text(), *PACKAGES]).encode()).hexdigest()


def root_image():
    return CACHE / "root.img"


def library():
    return CACHE / "xstate.so"


def is_current():
    mark = CACHE / "version"
    return root_image().exists() and library().exists() and mark.exists() and mark.read_text() == version()


def provide():
    """Makes the image if it is missing or old. Runs in a mount namespace of its own, with the machine's network."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "image.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_current():
            make()


def make():
    say(f"making the guests' root of Debian {suite()}; a minute or two, once")
    folder = CACHE / "root"
    shutil.rmtree(folder, ignore_errors=True)
    for old in (CACHE / "version", root_image()):
        old.unlink(missing_ok=True)
    run("debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", suite(), folder, MIRROR)
    shutil.copytree(MODULES, folder / "lib/modules", dirs_exist_ok=True)
    for modules in (folder / "lib/modules").iterdir():
        run("chroot", folder, "depmod", modules.name)
    stub = folder / "sbin/bed-init"
    stub.write_text(STUB)
    stub.chmod(0o755)
    for waste in ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/man"):
        shutil.rmtree(folder / waste, ignore_errors=True)
    run("cc", "-O2", "-shared", "-fPIC", "-o", library(), HERE / "xstate.c", "-ldl")
    mib = int(run("du", "-sm", folder).split()[0]) * 5 // 4 + 64
    run("mke2fs", "-q", "-t", "ext4", "-d", folder, "-O", "^has_journal", root_image(), f"{mib}M")
    shutil.rmtree(folder)
    (CACHE / "version").write_text(version())


if __name__ == "__main__":
    sys.exit(provide())
