"""Programs for the tests of child processes and of the runner, and ways to wait for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil

SLEEP = "import time; print('up', flush=True); time.sleep(600)"
IGNORES_SIGTERM = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], process_group=0)
print("up", child.pid, flush=True)
time.sleep(600)
"""
"""Its child is in another group of the same session."""

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


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether it holds within a minute: the machine may be busy."""
    deadline = time.monotonic() + 60
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_soon_dead(pid: int) -> bool:
    """Whether a process ends by itself."""
    return eventually(lambda: not is_alive(pid))


def wait_for_line(path: Path) -> str:
    """What a program wrote to a file, once it is a whole line. Raises AssertionError."""
    assert eventually(lambda: path.is_file() and path.read_text().endswith("\n")), path
    return path.read_text()


def descendants(pid: int) -> list[int]:
    """Ids of all processes below one."""
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]
