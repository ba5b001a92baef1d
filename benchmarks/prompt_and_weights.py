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
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.commands import environment_of, fulgurite
from benchmarks.demo_runs import PROJECT
from benchmarks.pages import opening, write_page
from benchmarks.prompt_tuning import AGENT, REWARD, evaluate, make_tasks, rewards_of, shown, tune
from fulgurite.learning.evaluation import compare_on_tasks
from fulgurite.prompts.history import AS_SENT
from services.local_stack.demo import GROUPS_PER_STEP, MAX_WAIT_S, empty_folder
from services.local_stack.example_runs import CONCURRENCY
from services.local_stack.local_stack import LocalStack, StackOptions

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
    made_by = (
        "Made by `benchmarks/prompt_and_weights.py`: SmolLM2-135M-Instruct, the calculator "
        f"example. `weights` trains all weights for {options.updates} updates, and its calls are "
        "the budget of the others. `prompt` spends it on `fulgurite tune` by demonstrations. "
        "`both` spends half of it on a tuning, and trains with the prompt that it found, whatever "
        f"the verdict. A tuning has {options.train} training and {options.validation} validation "
        f"tasks. {options.held_out} held-out tasks with other wordings and numbers are answered "
        "once, sampled, and not counted. Intervals are 95 %; the difference is paired by task."
    )
    lines = opening("A prompt, weights, or both", made_by, HEAD)
    lines += [row for seed in options.seeds for row in rows(seed, run_seed(options, seed))]
    write_page(options.out, lines)


def run_seed(options: argparse.Namespace, seed: int) -> dict[str, Arm]:
    """All arms of a seed. Those that have a report are not run again."""
    run = Run(options, seed)
    arms = run.reported("weights", run.weights)
    budget = arms["weights"].calls
    arms |= run.reported("prompt", lambda: run.prompt(budget))
    return arms | run.reported("both", lambda: run.both(budget))


class Run:
    """The arms of one seed, each on a stack of its own."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        self._options = options
        self._seed = seed
        self._folder: Path = options.work / f"seed-{seed}"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._tasks = make_tasks(self._folder, options, seed)

    def reported(self, name: str, run: Callable[[], dict[str, Arm]]) -> dict[str, Arm]:
        """The arms of a report, which is made if there is none."""
        report = self._folder / f"{name}.json"
        if not report.is_file():
            report.write_bytes(msgspec.json.encode(run()))
        return msgspec.json.decode(report.read_bytes(), type=dict[str, Arm])

    def weights(self) -> dict[str, Arm]:
        """The base model, and its weights trained."""
        updates: int = self._options.updates
        with self._stack(trains=True) as environment:
            nothing = Arm(0, 0, self._measure(environment, "nothing"))
            calls = self._train(environment, "weights", updates)
            trained = Arm(calls, updates, self._measure(environment, "weights"))
        return {"nothing": nothing, "weights": trained}

    def prompt(self, budget: int) -> dict[str, Arm]:
        """The prompt tuned with a budget of calls."""
        with self._stack(trains=False) as environment:
            calls, prompt = self._tune(environment, budget)
            return {"prompt": Arm(calls, 0, self._measure(environment, "prompt", prompt))}

    def both(self, budget: int) -> dict[str, Arm]:
        """The prompt tuned with half the budget, then weights trained with what is left."""
        with self._stack(trains=True) as environment:
            calls, prompt = self._tune(environment, budget // 2)
            if prompt != AS_SENT:
                fulgurite(environment, ["prompts", "promote", "--alias=policy", prompt])
            updates = max(1, round(self._options.updates * (budget - calls) / budget))
            calls += self._train(environment, "both", updates)
            return {"both": Arm(calls, updates, self._measure(environment, "both", prompt))}

    @contextmanager
    def _stack(self, *, trains: bool) -> Generator[dict[str, str]]:
        """The variables of commands on a stack, whose data is removed afterwards."""
        settings = {
            "FULGURITE__BATCH__GROUPS": str(GROUPS_PER_STEP),
            "FULGURITE__BATCH__MAX_WAIT_S": str(MAX_WAIT_S),
            "FULGURITE__ENGINE__SEED": str(self._seed),
        }
        data = empty_folder(self._folder / "data")
        stack = LocalStack(
            StackOptions(data=data, own_kafka=True, environment=settings, trains=trains)
        )
        with stack:
            yield environment_of(stack)
        shutil.rmtree(data)

    def _tune(self, environment: dict[str, str], budget: int) -> tuple[int, str]:
        """How many calls a tuning took, and the version that it found."""
        verdict = tune(environment, self._tasks, self._options, self._seed, f"--max-calls={budget}")
        return verdict["cost"]["calls"], verdict["candidate"] or AS_SENT

    def _train(self, environment: dict[str, str], name: str, updates: int) -> int:
        """Train the policy with the prompt in force; how many calls it took."""
        results = self._folder / f"{name}-training.json"
        words = ["run", f"--tasks={self._tasks / 'all.jsonl'}", "--n=6", f"--updates={updates}"]
        words += [f"--seed={self._seed}", f"--results={results}"]
        # The last one counts.
        words += [*REWARD, f"--concurrency={CONCURRENCY}"]
        fulgurite(environment, [*words, "--", *AGENT])
        return json.loads(results.read_text(encoding="utf-8"))["counts"]["calls"]

    def _measure(
        self, environment: dict[str, str], name: str, prompt: str = AS_SENT
    ) -> dict[str, Any]:
        """The summary of a run on the held-out tasks with a version of the prompt."""
        results = self._folder / f"{name}-held-out.json"
        return evaluate(environment, self._tasks, results, prompt)


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
