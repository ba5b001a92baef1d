"""Runs the demo with three seeds and the control, one after the other, and writes the table that is
checked in.

    .venv/bin/python benchmarks/demo_runs.py [--seeds 0 1 2] [--out benchmarks/demo_runs.md]

The control is the same run with rewards permuted within groups: what it gains is what chance gains.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.pages import opening, write_page

PROJECT = Path(__file__).resolve().parents[1]

HEAD = (
    "| run | sampled, held out | greedy, held out | updates | seconds from first rollout to last "
    "update | reward of the rollouts of each version | ledger remainder | idle |"
)

IDLE = (
    "Idle is the share of the seconds in which no call was in flight and no training step was "
    "running; – where it was not measured."
)


def main() -> None:
    """Run all and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--again", action="store_true", help="run also what has a report already")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--control-seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=PROJECT / ".fulgurite" / "benchmarks")
    parser.add_argument("--out", type=Path, default=PROJECT / "benchmarks" / "demo_runs.md")
    options = parser.parse_args()
    reports = [
        (
            f"seed {seed}",
            run(options.work / f"seed-{seed}", seed, again=options.again),
        )
        for seed in options.seeds
    ]
    reports.append(
        (
            f"control, seed {options.control_seed}",
            run(options.work / "control", options.control_seed, control=True, again=options.again),
        )
    )
    made_by = f"Made by `benchmarks/demo_runs.py`. Intervals are 95 %. {IDLE}"
    lines = opening("The demo, three seeds and a control", made_by, HEAD)
    write_page(options.out, [*lines, *(row(name, report) for name, report in reports)])


def run(
    out: Path,
    seed: int,
    *,
    control: bool = False,
    again: bool = False,
    example: Path | None = None,
    warm_model: Path | None = None,
    more: Sequence[str] = (),
) -> dict[str, Any]:
    """One demo, of another example if one is given, with `more` options; its report.

    `warm_model`: where the example's warm start is kept, so that the next run begins with it.
    """
    report = out / "report.json"
    if not report.is_file() or again:
        argv = [sys.executable, "-m", "services.local_stack.demo"]
        argv += ["--seed", str(seed), "--out", str(out)]
        argv += ["--control"] if control else []
        argv += ["--example", str(example)] if example is not None else []
        argv += more
        if warm_model is not None and warm_model.is_dir():
            argv += ["--model", str(warm_model), "--no-warm-start"]
        subprocess.run(argv, check=True, cwd=PROJECT)
        if warm_model is not None and not warm_model.is_dir():
            warm_model.parent.mkdir(parents=True, exist_ok=True)
            (out / "warm" / "model").rename(warm_model)
        # Topics, checkpoints and versions take gigabytes a run.
        shutil.rmtree(out / "data")
        shutil.rmtree(out / "warm", ignore_errors=True)
    return read_report(report)


def read_report(file: Path) -> dict[str, Any]:
    """What a demo wrote of itself."""
    return json.loads(file.read_text(encoding="utf-8"))


def row(name: str, report: dict[str, Any]) -> str:
    """One line of the table."""
    curve = " ".join(f"{point['reward']:.2f}".removeprefix("0") for point in report["curve"])
    seconds = report["first_rollout_to_last_update_s"]
    return (
        f"| {name} | {change(report, 'reward')} | {change(report, 'greedy')} | {report['updates']} "
        f"| {seconds:.0f} | {curve} | {report['ledger']['remainder']} | {idle(report)} |"
    )


def idle(report: dict[str, Any]) -> str:
    """The idle share; a dash in a report that has none."""
    share = report.get("idle_share")
    return "–" if share is None else f"{100 * share:.0f} %"


def change(report: dict[str, Any], what: str) -> str:
    """Before and after, with intervals."""
    before, after = report[f"{what}_before"], report[f"{what}_after"]
    low, high = report[f"{what}_before_interval"], report[f"{what}_after_interval"]
    return f"{before:.2f} [{low[0]:.2f}, {low[1]:.2f}] → {after:.2f} [{high[0]:.2f}, {high[1]:.2f}]"


if __name__ == "__main__":
    main()
