"""Agents for the tests of the launcher, written to files, and the folder they run in."""

from __future__ import annotations

from pathlib import Path

ECHO = """
import json, os, sys
print(json.dumps({
    "argv": sys.argv, "stdin": sys.stdin.read(), "environ": dict(os.environ), "path0": sys.path[0], "cwd": os.getcwd(),
    "leader": os.getpgid(0) == os.getpid(), "name": __name__, "json_preloaded": "xml.dom" in sys.modules,
    "open": [fd for fd in range(3, 64) if os.path.exists(f"/proc/self/fd/{fd}") and os.readlink(f"/proc/self/fd/{fd}").startswith("socket")],
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

IGNORES_SIGTERM = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True)\ntime.sleep(600)\n"


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
