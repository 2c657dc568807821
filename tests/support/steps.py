"""What the test beds in Python share: commands, steps and their output."""

import contextlib
import http.client
import shlex
import subprocess
import time


def run(*command, check=True, quiet=True, **kwargs):
    """Returns the standard output of a command. A command that fails ends the test with its output."""
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE if quiet else None,
        stderr=subprocess.PIPE if quiet else None,
        text=True,
        **kwargs,
    )
    if check and done.returncode != 0:
        raise SystemExit(f"failed ({done.returncode}): {shlex.join(map(str, command))}\n{done.stdout or ''}{done.stderr or ''}")
    return done.stdout or ""


def check(is_true, complaint):
    if not is_true:
        raise SystemExit(f"FAILED: {complaint}")


def say(text):
    print(f"  {text}", flush=True)


def wait_until(description, condition, secs_max=60):
    deadline = time.monotonic() + secs_max
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if condition():
                return
        check(time.monotonic() < deadline, f"not within {secs_max} s: {description}")
        time.sleep(0.05)


@contextlib.contextmanager
def step(title):
    print(title, flush=True)
    begun = time.monotonic()
    yield
    say(f"({time.monotonic() - begun:.1f} s)")
