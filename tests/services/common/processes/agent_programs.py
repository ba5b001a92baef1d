"""Programs for the tests of the fork server and the runner, and ways to wait for them."""

from __future__ import annotations

import time
from pathlib import Path

import psutil

ECHO = """
import json, os, sys
print(json.dumps({
    "argv": sys.argv, "stdin": sys.stdin.read(), "environ": dict(os.environ), "path0": sys.path[0], "cwd": os.getcwd(),
    "leader": os.getpgid(0) == os.getpid(), "name": __name__, "json_preloaded": "xml.dom" in sys.modules,
    "open": [link for fd in os.listdir("/proc/self/fd") if (link := os.path.realpath(f"/proc/self/fd/{fd}")).startswith("socket")],
}))
"""

EXITS = "import sys\nsys.stderr.write('last words')\nsys.exit(int(sys.argv[1]))\n"

RAISES = "def inner():\n    raise KeyError('what')\n\ninner()\n"

SLEEPS = """
import os, subprocess, sys, time
child = subprocess.Popen(["sleep", "600"])
with open(sys.argv[1], "w") as file:
    file.write(f"{os.getpid()} {child.pid}\\n")
print("ready", flush=True)
time.sleep(600)
"""

LEAVES_A_CHILD = """
import subprocess, sys
child = subprocess.Popen(["sleep", "600"])
with open(sys.argv[1], "w") as file:
    file.write(f"{child.pid}\\n")
"""

IGNORES_SIGTERM = (
    "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', "
    "flush=True)\ntime.sleep(600)\n"
)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for_line(path: Path, timeout_s: float = 20.0) -> str:
    """What an agent wrote to a file, once it is a whole line. Raises TimeoutError."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if path.is_file() and (text := path.read_text()).endswith("\n"):
            return text
        time.sleep(0.02)
    raise TimeoutError(f"{path} was not written in {timeout_s} s")


def is_soon_dead(pid: int, timeout_s: float = 5.0) -> bool:
    """Whether a process is gone by then."""
    until = time.monotonic() + timeout_s
    while is_alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not is_alive(pid)


def descendants(pid: int) -> list[int]:
    """Ids of all processes below one."""
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]
