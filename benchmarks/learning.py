"""Trains each example of `benchmarks/learning/` with the demo: three seeds and a control, whose
rewards are permuted.

    python -m benchmarks.learning [--runs full lora] [--seeds 0 1 2] [--no-control]

What has a report already is not run again, so an interrupted benchmark goes on where it was. Rows
of the page whose reports are on another machine stay.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

from benchmarks.demo_runs import IDLE, PROJECT, change, idle, read_report, run
from benchmarks.pages import opening, write_page
from services.local_stack.example import read_example

HEAD = (
    "| run | seed | tasks | sampled, held out | greedy, held out | parts, sampled | updates "
    "| seconds | rollouts | reward of the rollouts of each version | remainder "
    "| idle |"
)
INTRODUCTION = (
    "Held-out tasks with other numbers than those of training, and with other wordings but for "
    "five turns; 95 % intervals. Seconds are from the first rollout to the last update; versions "
    "are compared after the same number of updates. In the control, rewards are permuted within "
    "groups, and nothing can be learned. Parts are rewards that were recorded and not trained on; "
    "by `all_right`, runs with different rewards can be compared. Rows were made on several days "
    "on machines with two cores (Intel and AMD), in bf16; without AVX-512, in fp32: both roles, "
    "seed 2, one role, seed 1, and five turns with `step`. Most of seeds 1 and 2, the control, "
    "roles and five turns had other work beside them."
)


class Benchmark(NamedTuple):
    """Examples to train, a TOML file each, and the page of their results."""

    name: str
    title: str
    introduction: str
    shows_samples: bool = False
    """Whether the best answers of seed 0 are printed below the table, to be read."""

    @property
    def examples(self) -> Path:
        """The folder of the files."""
        return PROJECT / "benchmarks" / self.name


def main() -> None:
    """Run what is asked for, and write the table of all reports that are there."""
    run_benchmark(Benchmark("learning", "Learning curves", INTRODUCTION), __doc__)


def run_benchmark(benchmark: Benchmark, description: str | None) -> None:
    """Run what the command line asks for, and write the page."""
    names = sorted(file.stem for file in benchmark.examples.glob("*.toml"))
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--runs", nargs="*", choices=names, default=names, metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--no-control", dest="control", action="store_false")
    parser.add_argument("--work", type=Path, default=PROJECT / ".fulgurite" / "benchmarks")
    parser.add_argument("--out", type=Path, default=benchmark.examples.with_suffix(".md"))
    options = parser.parse_args()
    work: Path = options.work / benchmark.name
    for name in options.runs:
        for seed in options.seeds:
            _run(benchmark, work, name, str(seed), seed)
        if options.control:
            _run(benchmark, work, name, "control", options.seeds[0], control=True)
    write_page(options.out, _page(benchmark, work, names, kept=_rows(options.out)))


def _run(
    benchmark: Benchmark, work: Path, name: str, folder: str, seed: int, *, control: bool = False
) -> None:
    file = benchmark.examples / f"{name}.toml"
    example = read_example(file)
    # Runs of one agent begin with the same model.
    warm = work / "warm" / example.agent.parent.name / str(seed)
    run(
        work / name / folder,
        seed,
        control=control,
        example=file,
        warm_model=None if example.warm_start is None else warm,
    )


def _rows(page: Path) -> dict[tuple[str, str], str]:
    """The rows of a page by title and seed."""
    lines = page.read_text(encoding="utf-8").splitlines() if page.exists() else []
    cells = {line: [cell.strip() for cell in line.split("|")] for line in lines}
    return {(found[1], found[2]): line for line, found in cells.items() if len(found) > 2}


def _page(
    benchmark: Benchmark, work: Path, names: list[str], kept: dict[tuple[str, str], str]
) -> list[str]:
    made_by = (
        f"Made by `benchmarks/{benchmark.name}.py` from the examples in "
        f"`benchmarks/{benchmark.name}/`. {benchmark.introduction} {IDLE}"
    )
    lines = opening(benchmark.title, made_by, HEAD)
    for name in names:
        title = read_example(benchmark.examples / f"{name}.toml").title
        rows = {key: row for key, row in kept.items() if key[0] == title}
        for report in (work / name).glob("*/report.json"):
            rows[title, report.parent.name] = _row(title, report)
        lines += [rows[key] for key in sorted(rows)]
    return lines + [line for name in names for line in _samples(benchmark, work, name)]


def _samples(benchmark: Benchmark, work: Path, name: str) -> list[str]:
    """The best answers of a run's first seed, where the page shows them."""
    report_file = work / name / "0" / "report.json"
    samples = read_report(report_file).get("samples") if report_file.is_file() else None
    if not benchmark.shows_samples or not samples:
        return []
    lines = ["", f"## {read_example(benchmark.examples / f'{name}.toml').title}: the best answers"]
    for sample in samples:
        lines += ["", f"Reward {sample['reward']:g}:", "", "```text", *sample["lines"], "```"]
    return lines


def _row(title: str, report_file: Path) -> str:
    report = read_report(report_file)
    curve = " ".join(f"{point['reward']:.2f}".removeprefix("0") for point in report["curve"])
    parts = ", ".join(
        f"{part} {before:.2f} → {report['components_after'].get(part, 0.0):.2f}"
        for part, before in report["components_before"].items()
    )
    seconds = f"{report['first_rollout_to_last_update_s']:.0f}"
    return (
        f"| {title} | {report_file.parent.name} | {report['held_out']} "
        f"| {change(report, 'reward')} | {change(report, 'greedy')} | {parts} "
        f"| {report['updates']} | {seconds} | {report['rollouts']['declared']} "
        f"| {curve} | {report['ledger']['remainder']} | {idle(report)} |"
    )


if __name__ == "__main__":
    main()
