"""Starts the command line as a user does: in a process of its own, from any folder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

PROJECT = Path(__file__).parents[2]


def fulgurite_command(*words: str) -> list[str]:
    """The arguments that start `fulgurite WORDS`. As with the installed command (-P), no module is
    imported from the working folder.
    """
    return [sys.executable, "-P", "-m", "services.cli.main", *words]


def run_fulgurite(
    *words: str,
    environment: Mapping[str, str],
    folder: Path = PROJECT,
    code: int = 0,
    timeout_s: float = 600.0,
) -> subprocess.CompletedProcess[str]:
    """Run `fulgurite WORDS` in a folder until it ends, and check its exit code."""
    done = subprocess.run(
        fulgurite_command(*words),
        cwd=folder,
        env={**environment, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done
