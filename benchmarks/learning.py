"""Trains each example of `benchmarks/learning/` with the demo: three seeds and a control, whose
rewards are permuted.

    python -m benchmarks.learning [--runs full lora] [--seeds 0 1 2] [--no-control]

What has a report already is not run again, so an interrupted benchmark goes on where it was. Rows
of the page whose reports are on another machine stay.
"""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.demo_runs import PROJECT, change, machine, read_report, run
from services.local_stack.example import read_example

EXAMPLES = Path(__file__).with_name("learning")
HEAD = (
    "| run | seed | sampled, held out | greedy, held out | parts, sampled | updates | seconds "
    "| rollouts | reward of the rollouts of each version | remainder |"
)


def main() -> None:
    """Run what is asked for, and write the table of all reports that are there."""
    names = sorted(file.stem for file in EXAMPLES.glob("*.toml"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", nargs="*", choices=names, default=names, metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--no-control", dest="control", action="store_false")
    parser.add_argument("--work", type=Path, default=PROJECT / ".fulgurite" / "benchmarks")
    parser.add_argument("--out", type=Path, default=PROJECT / "benchmarks" / "learning.md")
    options = parser.parse_args()
    for name in options.runs:
        for seed in options.seeds:
            run(_folder(options.work, name, str(seed)), seed, example=EXAMPLES / f"{name}.toml")
        if options.control:
            folder = _folder(options.work, name, "control")
            run(folder, options.seeds[0], control=True, example=EXAMPLES / f"{name}.toml")
    text = _page(options.work, names, kept=_rows(options.out))
    options.out.write_text(text, encoding="utf-8")
    print(text)


def _folder(work: Path, name: str, seed: str) -> Path:
    return work / "learning" / name / seed


def _rows(page: Path) -> dict[tuple[str, str], str]:
    """The rows of a page by title and seed."""
    lines = page.read_text(encoding="utf-8").splitlines() if page.exists() else []
    cells = {line: [cell.strip() for cell in line.split("|")] for line in lines}
    return {(found[1], found[2]): line for line, found in cells.items() if len(found) > 2}


def _page(work: Path, names: list[str], kept: dict[tuple[str, str], str]) -> str:
    lines = [
        "# Learning curves",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {machine()}. Made by `benchmarks/learning.py` from the "
        "examples in `benchmarks/learning/`. 210 held-out tasks with other numbers than those of "
        "training, and with other wordings but for five turns; 95 % intervals. Seconds are from "
        "the first rollout to the last update; versions are compared after the same number of "
        "updates. In the control, rewards are permuted within groups, and nothing can be learned. "
        "Parts are rewards that were recorded and not trained on; by `all_right`, runs with "
        "different rewards can be compared.",
        "",
        HEAD,
        "|---" * HEAD.count(" | ") + "|---|",
    ]
    for name in names:
        title = read_example(EXAMPLES / f"{name}.toml").title
        rows = {key: row for key, row in kept.items() if key[0] == title}
        for report in (work / "learning" / name).glob("*/report.json"):
            rows[title, report.parent.name] = _row(title, report)
        lines += [rows[key] for key in sorted(rows)]
    return "\n".join([*lines, ""])


def _row(title: str, report_file: Path) -> str:
    report = read_report(report_file)
    curve = " ".join(f"{point['reward']:.2f}".removeprefix("0") for point in report["curve"])
    parts = ", ".join(
        f"{part} {before:.2f} → {report['components_after'].get(part, 0.0):.2f}"
        for part, before in report["components_before"].items()
    )
    return (
        f"| {title} | {report_file.parent.name} | {change(report, 'reward')} "
        f"| {change(report, 'greedy')} | {parts} | {report['updates']} "
        f"| {report['first_rollout_to_last_update_s']:.0f} | {report['rollouts']['declared']} "
        f"| {curve} | {report['ledger']['remainder']} |"
    )


if __name__ == "__main__":
    main()
