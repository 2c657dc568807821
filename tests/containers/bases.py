"""The images that ours stand on: pulled, or made under the same names out of Debian's packages where no registry is reached."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from engine import run, unmount_below

PULL_SECS_MAX = 20
# A registry that answers may still take its time with layers.
LAYERS_SECS_MAX = 300
SUITE = "bookworm"
MIRROR = "http://deb.debian.org/debian"
DEBIAN = f"debian:{SUITE}-slim"
RUST = f"rust:1.95-slim-{SUITE}"
# What compose relies on in the official images: user, folder and its owner, and the path of the program.
SERVICES = {
    f"redis:7-{SUITE}": "RUN mkdir -p /data && chown redis:redis /data\nWORKDIR /data",
    f"haproxy:2.6-{SUITE}": "RUN true",
    "prom/prometheus:v2.53.5": "RUN mkdir -p /prometheus && chown nobody /prometheus",
}
BUILDER_PACKAGES = ["gcc", "libc6-dev", "ca-certificates"]
SERVICE_PACKAGES = ["redis-server", "haproxy", "prometheus"]


def exists(image):
    return subprocess.run(["docker", "image", "inspect", image], capture_output=True).returncode == 0


def pull(image, secs_max):
    try:
        subprocess.run(["docker", "pull", "--quiet", image], check=True, timeout=secs_max, capture_output=True)
        return True
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return False


def provide(made):
    """All base images. Notes in `made` those that were not here before."""
    missing = [image for image in [DEBIAN, RUST, *SERVICES] if not exists(image)]
    made += missing
    # One tells whether a registry is in reach.
    if missing and pull(missing[0], PULL_SECS_MAX):
        missing = [image for image in missing[1:] if not pull(image, LAYERS_SECS_MAX)]
    print(f"  pulled: {', '.join(image for image in made if image not in missing) or 'none'}")
    if missing:
        print(f"  not to be had from a registry, so made of Debian's packages: {', '.join(missing)}", flush=True)
        make(missing)


def make(missing):
    if os.geteuid() != 0 or not shutil.which("debootstrap"):
        raise SystemExit(
            "Neither is an image registry in reach, nor can images be made here: that takes root and debootstrap.\n"
            f"Please pull these by hand, and try again: {' '.join(missing)}"
        )
    folder = Path(tempfile.mkdtemp(prefix="rowlock-bases-", dir="/var/tmp"))
    try:
        root = folder / "root"
        run("debootstrap", "--variant=minbase", SUITE, root, MIRROR)
        if DEBIAN in missing:
            bring_in(root, DEBIAN, ["CMD bash"])
        if RUST in missing:
            with copy(root, folder / "builder") as builder:
                install(builder, BUILDER_PACKAGES)
                add_toolchain(builder)
                path = "/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
                bring_in(builder, RUST, ["ENV CARGO_HOME=/usr/local/cargo", f"ENV PATH={path}"])
        if services := [image for image in SERVICES if image in missing]:
            with copy(root, folder / "services") as root_of_services:
                install(root_of_services, SERVICE_PACKAGES)
                bring_in(root_of_services, "rowlock-test-services", ["CMD bash"])
            for image in services:
                run("docker", "build", "--quiet", "--tag", image, "-", input=f"FROM rowlock-test-services\n{SERVICES[image]}\n")
            run("docker", "rmi", "rowlock-test-services", check=False)
    finally:
        # debootstrap's own, if it was ended in the middle.
        unmount_below(folder)
        run("rm", "-rf", "--one-file-system", folder)


@contextlib.contextmanager
def copy(root, to):
    run("cp", "-a", "--reflink=auto", root, to)
    try:
        yield to
    finally:
        run("rm", "-rf", "--one-file-system", to)


def bring_in(root, image, changes):
    with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as tar:
        options = [part for change in changes for part in ("--change", change)]
        run("docker", "import", *options, "-", image, stdin=tar.stdout)


def install(root, packages):
    """With this host's way to its mirrors: names, certificates."""
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    run("chroot", root, "apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages, env=env)
    policy.unlink()


def add_toolchain(root):
    """This host's toolchain, its crates and what it trusts, so that the build reaches the crates, or needs not to."""
    sysroot = Path(run("rustc", "--print", "sysroot").strip())
    print(f"  the builder has this host's {run('rustc', '--version').strip()}")
    home = root / "usr/local/cargo"
    toolchain = root / "usr/local/rustup/toolchains/host"
    (home / "bin").mkdir(parents=True)
    (toolchain / "bin").mkdir(parents=True)
    for tool in ["cargo", "rustc"]:
        shutil.copy2(sysroot / "bin" / tool, toolchain / "bin" / tool)
        (home / "bin" / tool).symlink_to(Path("/usr/local/rustup/toolchains/host/bin") / tool)
    run("cp", "-a", sysroot / "lib", toolchain)
    registry = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo")) / "registry"
    for part in ["index", "cache"]:
        if (registry / part).exists():
            (home / "registry").mkdir(exist_ok=True)
            run("cp", "-a", registry / part, home / "registry")
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", root / "etc/ssl/certs/ca-certificates.crt")
