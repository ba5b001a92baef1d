"""Tunes the prompt of the calculator agent by demonstrations, and measures it on held-out tasks.

    .venv/bin/python benchmarks/prompt_tuning.py [--seeds 0 1 2] [--held-out 210]
        [--out benchmarks/prompt_tuning.md]

No weight changes: the stack has no learner. Training and validation tasks are of the example's
training file, held-out ones of its held-out file, which shares neither a template nor a number with
it. Each held-out task is answered once, sampled, with the prompt before and after.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.commands import environment_of, fulgurite
from benchmarks.demo_runs import machine
from fulgurite.learning.evaluation import compare_on_tasks
from services.local_stack.demo import empty_folder
from services.local_stack.local_stack import LocalStack, StackOptions

PROJECT = Path(__file__).resolve().parents[1]
EXAMPLE = PROJECT / "examples" / "calculator"
AGENT = ("python", str(EXAMPLE / "agent.py"))
REWARD = (
    f"--reward=reward={EXAMPLE / 'rewards.py'}:score",
    "--weight=expression_right=0",
    "--weight=answer_follows=0",
    "--preload=openai",
    "--concurrency=24",
)
HEAD = (
    "| seed | sampled, held out: before | after | difference | verdict on validation "
    "| candidates | rollouts | calls |"
)


def main() -> None:
    """Run all seeds and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--held-out", type=int, default=210)
    parser.add_argument("--train", type=int, default=96, help="training tasks")
    parser.add_argument("--validation", type=int, default=60, help="validation tasks")
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--again", action="store_true", help="run also what has a report already")
    parser.add_argument("--work", type=Path, default=PROJECT / ".fulgurite" / "prompt-tuning")
    parser.add_argument("--out", type=Path, default=PROJECT / "benchmarks" / "prompt_tuning.md")
    options = parser.parse_args()
    rows = [row(seed, measured(options, seed)) for seed in options.seeds]
    lines = [
        "# Prompt tuning by demonstrations",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {machine()}. Made by `benchmarks/prompt_tuning.py`: "
        f"SmolLM2-135M-Instruct, the calculator example, {options.train} training, "
        f"{options.validation} validation and {options.held_out} held-out tasks, no weight "
        "changed. Intervals are 95 %; the difference is paired by task.",
        "",
        HEAD,
        "|---" * HEAD.count(" | ") + "|---|",
        *rows,
        "",
    ]
    options.out.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


def measured(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The report of one seed."""
    folder = options.work / f"seed-{seed}"
    report = folder / "report.json"
    if report.is_file() and not options.again:
        return json.loads(report.read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    tasks = make_tasks(folder, options, seed)
    data = empty_folder(folder / "data")
    stack = LocalStack(StackOptions(data=data, own_kafka=True, trains=False))
    with stack:
        environment = environment_of(stack)
        before = evaluate(environment, tasks, folder / "before.json", "none")
        verdict = tune(environment, tasks, options, seed)
        after = evaluate(environment, tasks, folder / "after.json", verdict["candidate"] or "none")
    difference = compare_on_tasks(rewards_of(before), rewards_of(after))
    found = {
        "before": before["reward"],
        "after": after["reward"],
        "difference": None if difference is None else str(difference.estimate),
        "verdict": verdict,
    }
    report.write_text(json.dumps(found, indent=2), encoding="utf-8")
    return found


def make_tasks(folder: Path, options: argparse.Namespace, seed: int) -> Path:
    """Write train.jsonl, validation.jsonl and heldout.jsonl."""
    tasks = folder / "tasks"
    subprocess.run(
        [
            sys.executable,
            str(EXAMPLE / "tasks.py"),
            f"--seed={seed}",
            f"--held-out={options.held_out}",
            f"--out={tasks}",
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    lines = list(dict.fromkeys((tasks / "train.jsonl").read_text().splitlines()))
    last = options.train + options.validation
    (tasks / "train.jsonl").write_text("\n".join(lines[: options.train]))
    (tasks / "validation.jsonl").write_text("\n".join(lines[options.train : last]))
    return tasks


def evaluate(
    environment: dict[str, str], tasks: Path, results: Path, version: str
) -> dict[str, Any]:
    """The summary of a run on the held-out tasks with a version of the prompt."""
    words = ["run", "--mode=val", "--n=1", f"--tasks={tasks / 'heldout.jsonl'}"]
    words += [f"--prompt-version={version}", f"--results={results}", "--give-up-after=0"]
    fulgurite(environment, [*words, *REWARD, "--", *AGENT])
    return json.loads(results.read_text(encoding="utf-8"))


def tune(
    environment: dict[str, str], tasks: Path, options: argparse.Namespace, seed: int
) -> dict[str, Any]:
    """The verdict of a tuning, with its number of candidates."""
    words = ["tune", "--alias=policy", "--json", f"--seed={seed}"]
    words += [f"--tasks={tasks / 'train.jsonl'}", f"--validation={tasks / 'validation.jsonl'}"]
    words += [f"--held-out={tasks / 'heldout.jsonl'}", f"--candidates={options.candidates}"]
    lines = fulgurite(environment, [*words, *REWARD, "--", *AGENT], codes=(0, 3)).splitlines()
    return json.loads(lines[-1])


def rewards_of(summary: dict[str, Any]) -> dict[str, list[float]]:
    """Rewards by task. Both runs have the tasks in the same order."""
    groups = list(dict.fromkeys(one["group_id"] for one in summary["rollouts"]))
    places = {group: str(place) for place, group in enumerate(groups)}
    return {
        places[one["group_id"]]: [one["reward"]]
        for one in summary["rollouts"]
        if one["reward"] is not None
    }


def row(seed: int, report: dict[str, Any]) -> str:
    """One line of the table."""
    verdict = report["verdict"]
    said = verdict["decision"] or verdict["why_not"]
    return (
        f"| {seed} | {shown(report['before'])} | {shown(report['after'])} | {report['difference']} "
        f"| {said} | {verdict['candidates']} | {verdict['rollouts']} | "
        f"{verdict['cost']['calls']} |"
    )


def shown(estimate: dict[str, Any]) -> str:
    """A mean with its interval."""
    return f"{estimate['mean']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"


if __name__ == "__main__":
    main()
