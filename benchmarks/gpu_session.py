"""What has to be measured on a GPU, part by part, within ten minutes:

    .venv/bin/python -m benchmarks.gpu_session [PART ...] [--within SECONDS] [--tiny]

Each part is a process of its own with a limit of its own, and prints one line of JSON: what it
found, or what was the matter. A failure of one part does not stop the others. Parts for which no
time is left are named; a second call makes them. `--tiny` tries all of it on a CPU, with models and
loads that mean nothing. `gpu_session.md` has the lines that are expected.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LIMITS_S = {
    "capture": 290,
    "forest": 290,
    "served": 120,
    "lora": 120,
    "resume": 220,
    "demo": 500,
}
"""Each part with the most seconds that it may take, those that say most about a GPU first."""

_LONGER = 5
"""As many times as long may a part take on a CPU, where an engine starts in minutes."""
_SHOWN = 600
"""Characters of a failed part's last words."""


def main() -> int:
    """Run the parts that are named, or all. Returns 1 if one of them failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(LIMITS_S))
    parser.add_argument(
        "--within", type=float, default=590.0, help="seconds for all parts together"
    )
    parser.add_argument("--tiny", action="store_true", help="on a CPU, small; five times as long")
    given = parser.parse_args()
    if unknown := set(given.parts) - LIMITS_S.keys():
        parser.error(f"unknown parts {sorted(unknown)}; there are {', '.join(LIMITS_S)}")
    longer = _LONGER if given.tiny else 1
    end = time.monotonic() + longer * given.within
    failed = 0
    for part in given.parts or LIMITS_S:
        began = time.monotonic()
        limit = min(longer * LIMITS_S[part], end - began)
        told = run(part, limit, tiny=given.tiny) if limit > 0 else {"skipped": "no time is left"}
        failed += "result" not in told
        line = {"part": part, "seconds": round(time.monotonic() - began, 1), **told}
        print(json.dumps(line), flush=True)
    return min(failed, 1)


def run(part: str, limit_s: float, *, tiny: bool) -> dict[str, Any]:
    """Run a part within its limit; what it found, or why it found nothing."""
    argv = [sys.executable, "-m", "benchmarks.gpu_parts", part, *(["--tiny"] if tiny else [])]
    with tempfile.TemporaryDirectory(prefix=f"fulgurite-{part}-") as folder:
        log = Path(folder) / "log"
        found = Path(folder) / "found.json"
        with log.open("w") as output:
            # A session of its own, so that what it started ends with it.
            process = subprocess.Popen(
                [*argv, str(found)], stdout=output, stderr=output, start_new_session=True
            )
            try:
                code = process.wait(limit_s)
                words = f"exit status {code}"
            except subprocess.TimeoutExpired:
                words = f"not done after {limit_s:.0f} s"
            finally:
                _end(process)
        # A part writes what it has as soon as it has it.
        result = json.loads(found.read_text()) if found.is_file() else None
        if words == "exit status 0":
            return {"result": result}
        return {"failed": f"{words}: {log.read_text(errors='replace')[-_SHOWN:]}", "so_far": result}


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a part and all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        if number is signal.SIGTERM:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                continue
            time.sleep(1)
    process.wait()


if __name__ == "__main__":
    sys.exit(main())
