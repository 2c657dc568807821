"""Base images: pulled from a registry, or built from Debian packages under the same names if no registry is reachable."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from engine import unmount_below
from steps import run

PULL_SECS_MAX = 20
# Layers may take longer than the first answer of a registry.
LAYERS_SECS_MAX = 300
SUITE = "bookworm"
MIRROR = "http://deb.debian.org/debian"
DEBIAN = f"debian:{SUITE}-slim"
RUST = f"rust:1.95-slim-{SUITE}"
# What docker-compose.yml needs of the official images: user, folder, its owner, and the path of the program.
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
    """Provides all base images. Adds those that were missing to `made`."""
    missing = [image for image in [DEBIAN, RUST, *SERVICES] if not exists(image)]
    made += missing
    # The first image shows whether a registry is reachable.
    if missing and pull(missing[0], PULL_SECS_MAX):
        missing = [image for image in missing[1:] if not pull(image, LAYERS_SECS_MAX)]
    print(f"  pulled: {', '.join(image for image in made if image not in missing) or 'none'}")
    if missing:
        print(f"  not available from a registry, so built from Debian packages: {', '.join(missing)}", flush=True)
        build(missing)


def build(missing):
    if os.geteuid() != 0 or not shutil.which("debootstrap"):
        raise SystemExit(
            "No image registry is reachable, and base images cannot be built here: that needs root and debootstrap.\n"
            f"Pull these images by hand and try again: {' '.join(missing)}"
        )
    folder = Path(tempfile.mkdtemp(prefix="rowlock-bases-", dir="/var/tmp"))
    try:
        root = folder / "root"
        run("debootstrap", "--variant=minbase", SUITE, root, MIRROR)
        if DEBIAN in missing:
            import_image(root, DEBIAN, ["CMD bash"])
        if RUST in missing:
            with copy(root, folder / "builder") as builder:
                install(builder, BUILDER_PACKAGES)
                add_toolchain(builder)
                path = "/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
                import_image(builder, RUST, ["ENV CARGO_HOME=/usr/local/cargo", f"ENV PATH={path}"])
        if services := [image for image in SERVICES if image in missing]:
            with copy(root, folder / "services") as root_of_services:
                install(root_of_services, SERVICE_PACKAGES)
                import_image(root_of_services, "rowlock-test-services", ["CMD bash"])
            for image in services:
                run("docker", "build", "--quiet", "--tag", image, "-", input=f"FROM rowlock-test-services\n{SERVICES[image]}\n")
            run("docker", "rmi", "rowlock-test-services", check=False)
    finally:
        # debootstrap leaves mounts behind if it is interrupted.
        unmount_below(folder)
        run("rm", "-rf", "--one-file-system", folder)


@contextlib.contextmanager
def copy(root, to):
    run("cp", "-a", "--reflink=auto", root, to)
    try:
        yield to
    finally:
        run("rm", "-rf", "--one-file-system", to)


def import_image(root, image, changes):
    with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as tar:
        options = [part for change in changes for part in ("--change", change)]
        run("docker", "import", *options, "-", image, stdin=tar.stdout)


def install(root, packages):
    """Installs packages with this host's name servers."""
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    run("chroot", root, "apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages, env=env)
    policy.unlink()


def add_toolchain(root):
    """Copies this host's Rust toolchain, its crates and its certificates, so that the build can reach crates or needs no network."""
    sysroot = Path(run("rustc", "--print", "sysroot").strip())
    print(f"  the builder uses this host's {run('rustc', '--version').strip()}")
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
