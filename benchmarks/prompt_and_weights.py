"""Compares a tuned prompt, trained weights, and weights trained with a tuned prompt, at about the
same number of calls.

    .venv/bin/python -m benchmarks.prompt_and_weights [--seeds 0 1 2] [--updates 10]
        [--held-out 210] [--out benchmarks/prompt_and_weights.md]

`weights` makes `--updates` versions, and the calls that this took are the budget of the others.
`prompt` spends it on a tuning. `both` spends half of it on a tuning, puts the best candidate in
force whatever its verdict, and trains with the rest. Calls for held-out tasks are not counted.
"""

from __future__ import annotations

import argparse
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.commands import environment_of, fulgurite
from benchmarks.demo_runs import PROJECT, machine
from benchmarks.prompt_tuning import AGENT, REWARD, evaluate, make_tasks, rewards_of, shown, tune
from fulgurite.learning.evaluation import compare_on_tasks
from services.local_stack.demo import GROUPS_PER_STEP, MAX_WAIT_S, empty_folder
from services.local_stack.example_runs import CONCURRENCY
from services.local_stack.local_stack import LocalStack, StackOptions

ARMS = ("weights", "prompt", "both")
NOTHING = "nothing"
HEAD = "| seed | optimised | calls | updates | sampled, held out | `both` less this |"


class Arm(msgspec.Struct):
    """What one arm spent, and what it earns on the held-out tasks."""

    calls: int
    updates: int
    held_out: dict[str, Any]
    """The summary of the run on these tasks."""


def main() -> None:
    """Run all seeds and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=10, help="of `weights`")
    parser.add_argument("--held-out", type=int, default=210)
    parser.add_argument("--train", type=int, default=64, help="training tasks of a tuning")
    parser.add_argument("--validation", type=int, default=32, help="validation tasks of a tuning")
    parser.add_argument("--candidates", type=int, default=64, help="most candidates of a tuning")
    parser.add_argument("--work", type=Path, default=PROJECT / ".fulgurite" / "prompt-and-weights")
    parser.add_argument("--out", type=Path, default=PROJECT / "benchmarks/prompt_and_weights.md")
    options = parser.parse_args()
    lines = [
        "# A prompt, weights, or both",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {machine()}. Made by `benchmarks/prompt_and_weights.py`: "
        "SmolLM2-135M-Instruct, the calculator example. `weights` trains all weights for "
        f"{options.updates} updates, and its calls are the budget of the others. `prompt` spends "
        "it on `fulgurite tune` by demonstrations. `both` spends half of it on a tuning, and "
        "trains with the prompt that it found, whatever the verdict. A tuning has "
        f"{options.train} training and {options.validation} validation tasks. {options.held_out} "
        "held-out tasks with other wordings and numbers are answered once, sampled, and not "
        "counted. Intervals are 95 %; the difference is paired by task.",
        "",
        HEAD,
        "|---" * HEAD.count(" | ") + "|---|",
        *(row for seed in options.seeds for row in rows(seed, run_seed(options, seed))),
        "",
    ]
    options.out.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


def run_seed(options: argparse.Namespace, seed: int) -> dict[str, Arm]:
    """All arms of a seed. One that has a report is not run again."""
    folder: Path = options.work / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    tasks = make_tasks(folder, options, seed)
    arms: dict[str, Arm] = {}
    for name in ARMS:
        report = folder / f"{name}.json"
        if not report.is_file():
            budget = arms["weights"].calls if arms else 0
            found = run_arm(name, folder, tasks, options, seed, budget)
            report.write_bytes(msgspec.json.encode(found))
        arms |= msgspec.json.decode(report.read_bytes(), type=dict[str, Arm])
    return arms


def run_arm(
    name: str, folder: Path, tasks: Path, options: argparse.Namespace, seed: int, budget: int
) -> dict[str, Arm]:
    """An arm on a stack of its own; for `weights` also the base model before it."""
    settings = {
        "FULGURITE__BATCH__GROUPS": str(GROUPS_PER_STEP),
        "FULGURITE__BATCH__MAX_WAIT_S": str(MAX_WAIT_S),
        "FULGURITE__ENGINE__SEED": str(seed),
    }
    stack = LocalStack(
        StackOptions(
            data=empty_folder(folder / "data"),
            own_kafka=True,
            environment=settings,
            trains=name != "prompt",
        )
    )
    arms: dict[str, Arm] = {}
    calls, updates, prompt = 0, 0, "none"
    with stack:
        environment = environment_of(stack)

        def measure(arm: str) -> None:
            results = folder / f"{arm}-held-out.json"
            arms[arm] = Arm(calls, updates, evaluate(environment, tasks, results, prompt))

        if name == "weights":
            measure(NOTHING)
            updates = options.updates
        else:
            spent = budget if name == "prompt" else budget // 2
            verdict = tune(environment, tasks, options, seed, f"--max-calls={spent}")
            calls, prompt = verdict["cost"]["calls"], verdict["candidate"] or prompt
        if name == "both":
            if prompt != "none":
                fulgurite(environment, ["prompts", "promote", "--alias=policy", prompt])
            updates = max(1, round(options.updates * (budget - calls) / budget))
        if updates:
            calls += train(environment, tasks, folder / f"{name}-training.json", updates, seed)
        measure(name)
    shutil.rmtree(folder / "data")
    return arms


def train(environment: dict[str, str], tasks: Path, results: Path, updates: int, seed: int) -> int:
    """Train the policy with what prompt is in force; how many calls it took."""
    words = ["run", f"--tasks={tasks / 'all.jsonl'}", "--n=6", f"--updates={updates}"]
    words += [f"--seed={seed}", f"--results={results}"]
    # The last one counts.
    words += [*REWARD, f"--concurrency={CONCURRENCY}"]
    fulgurite(environment, [*words, "--", *AGENT])
    return json.loads(results.read_text(encoding="utf-8"))["counts"]["calls"]


def rows(seed: int, arms: dict[str, Arm]) -> list[str]:
    """The lines of a seed."""
    best = rewards_of(arms["both"].held_out)
    lines: list[str] = []
    for name, arm in arms.items():
        less = compare_on_tasks(rewards_of(arm.held_out), best) if name != "both" else None
        lines.append(
            f"| {seed} | {name} | {arm.calls} | {arm.updates} | {shown(arm.held_out['reward'])} "
            f"| {'' if less is None else less.estimate} |"
        )
    return lines


if __name__ == "__main__":
    main()
