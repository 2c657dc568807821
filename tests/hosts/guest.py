"""A guest: user-mode-linux, a kernel as a process, which needs neither KVM nor other privileges. It has a page cache of its own."""

import json
import os
import signal
import socket
import subprocess
import time

import image
from sandbox import RUN, Link
from steps import run

BOOT_SECS_MAX = 120
AGENT_PORT = 7000
TOOLS = RUN / "tools"


class Guest:
    def __init__(self, name, number, memory_mib=192, disk=None):
        self.name, self.memory_mib, self.disk = name, memory_mib, disk
        self.link = Link(number)
        self.address = self.link.address
        self.process = None

    def boot(self):
        """Starts the guest with a new root. `wait_until_up` waits for it."""
        own = RUN / self.name
        own.mkdir(exist_ok=True)
        root = own / "root.cow"
        root.unlink(missing_ok=True)
        kernel = [
            str(image.KERNEL), f"mem={self.memory_mib}M", f"umid={self.name}", f"uml_dir={RUN}/",
            f"ubd0={root},{image.root_image()}", "root=/dev/ubda", "rw", "init=/sbin/bed-init",
            "con=null", "con0=null,fd:1", "panic=-1",
            f"vec0:transport=tap,ifname={self.link.tap},depth=128,gro=1,mac={self.link.mac}",
            f"bed.name={self.name}", f"bed.address={self.address}", f"bed.gateway={self.link.gateway}", f"bed.tools={TOOLS}",
        ]  # fmt: skip
        if self.disk:
            kernel.append(f"ubd1={self.disk}")
        self.began = time.monotonic()
        with open(own / "console", "a") as console:
            self.process = subprocess.Popen(
                ["unshare", "--pid", "--fork", "--kill-child=KILL", *kernel],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                # The guest's memory is a file there.
                env=os.environ | {"LD_PRELOAD": str(image.library()), "TMPDIR": str(own)},
            )
        return self

    def wait_until_up(self):
        while True:
            try:
                self.shell("true", secs_max=5)
                return self
            except OSError:
                if time.monotonic() - self.began > BOOT_SECS_MAX or self.process.poll() is not None:
                    console = (RUN / self.name / "console").read_text(errors="replace")
                    raise SystemExit(f"{self.name} does not boot:\n{console[-3000:]}") from None
                time.sleep(0.05)

    def kernel(self):
        """The process of the guest's kernel: the first of a process namespace, which ends with it."""
        children = open(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read().split()
        return int(children[0])

    def cut_power(self):
        """What the guest's page cache had not given to its disks is lost. What it had is kept: no cache of a disk is emulated."""
        if self.process and self.process.poll() is None:
            os.kill(self.kernel(), signal.SIGKILL)
            self.process.wait()
        self.process = None

    def pause(self):
        os.kill(self.kernel(), signal.SIGSTOP)

    def resume(self):
        os.kill(self.kernel(), signal.SIGCONT)

    def remove(self):
        self.cut_power()
        self.link.remove()
        run("rm", "-rf", RUN / self.name)

    def ask(self, request, secs_max):
        with socket.create_connection((self.address, AGENT_PORT), timeout=min(secs_max, 3)) as connection:
            connection.settimeout(secs_max + 5)
            connection.sendall(json.dumps(request).encode() + b"\n")
            parts = []
            while part := connection.recv(1 << 20):
                parts.append(part)
        if not parts:
            raise OSError(f"{self.name} does not answer")
        return b"".join(parts)

    def shell(self, command, secs_max=60, check=True):
        """The output of a command on the guest."""
        answer = json.loads(self.ask({"shell": command, "secs_max": secs_max}, secs_max))
        if check and answer["status"] != 0:
            raise SystemExit(f"{self.name}: failed ({answer['status']}): {command}\n{answer['output']}")
        return answer["output"]

    def read(self, path, offset=None, count=None, secs_max=60):
        """The bytes of a file on the guest, all of them or a range, by a plain `open` and `pread`."""
        request = {"read": str(path)}
        if offset is not None:
            request |= {"offset": offset, "bytes": count}
        status, _, content = self.ask(request, secs_max).partition(b"\n")
        if status != b"ok":
            raise OSError(int(status), os.strerror(int(status)), path)
        return content
