"""Keys stay with the processes that need them: no child inherits them unasked, and no other process
reads them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.common.runtime import process_secrets
from services.common.runtime.process_secrets import KEYS, without_keys

NOBODY = 65534
STOP_BEING_ROOT = (
    f"import os, ctypes, collections.abc; os.setuid({NOBODY}); ctypes.CDLL(None).prctl(4, 1, 0, 0, "
    "0)\n"
)
"""A change of user makes a process undumpable by itself: this one is dumpable again, as any other
of that user.
"""

SOURCE = (
    Path(process_secrets.__file__).read_text().replace("from __future__ import annotations", "")
)
WAIT = "\nprint('up', flush=True)\nimport sys; sys.stdin.read()\n"


def start(code: str) -> subprocess.Popen[str]:
    """A Python process of a user that is not root, from whom nothing is hidden."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", (STOP_BEING_ROOT if os.geteuid() == 0 else "") + code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"FULGURITE_ADMIN_KEY": "sk-hidden"},
        cwd="/",
    )


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize(("call", "readable"), [("", True), ("hide_from_other_processes()", False)])
def test_another_process_of_the_same_user_cannot_read_the_environment(
    call: str, readable: bool
) -> None:
    with start(SOURCE + call + WAIT) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "up\n"
        with start(f"print(open('/proc/{holder.pid}/environ').read())") as reader:
            seen, error = reader.communicate()
        holder.communicate()
    assert ("sk-hidden" in seen) is readable
    assert readable or "PermissionError" in error


def test_an_environment_without_keys() -> None:
    inherited = dict.fromkeys(KEYS, "secret") | {"PATH": "/bin", "FULGURITE_POLICY": "policy"}
    assert without_keys(inherited) == {"PATH": "/bin", "FULGURITE_POLICY": "policy"}
    assert without_keys(inherited, frozenset({"FULGURITE_API_KEYS"})).keys() == {
        "PATH",
        "FULGURITE_POLICY",
        "FULGURITE_API_KEYS",
    }
