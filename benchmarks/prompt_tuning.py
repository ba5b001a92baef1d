"""Tunes the prompt of the calculator agent, and measures it on held-out tasks.

    .venv/bin/python -m benchmarks.prompt_tuning [--method demonstrations] [--seeds 0 1 2]
        [--held-out 210] [--out benchmarks/prompt_tuning.md]

No weight changes: the stack has no learner. Training and validation tasks are of the example's
training file, held-out ones of its held-out file, which shares neither a template nor a number with
it. Each held-out task is answered once, sampled, with the prompt before and after.

With `--method gepa` the reflection model is Qwen2.5-Coder-0.5B-Instruct, on a vLLM of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.commands import environment_of, fulgurite
from benchmarks.pages import opening, write_page
from fulgurite.learning.evaluation import compare_on_tasks
from fulgurite.prompts.history import AS_SENT
from services.local_stack.demo import empty_folder
from services.local_stack.local_stack import LocalStack, StackOptions
from services.local_stack.model import find_model
from services.local_stack.vllm_local import LocalVllm
from services.tuner.plan import Method

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
REFLECTION_MODEL = "qwen"
GEPA = ("--method=gepa", f"--reflection-model={REFLECTION_MODEL}")
HEAD = (
    "| seed | sampled, held out: before | after | difference | verdict on validation "
    "| candidates | rollouts | calls |"
)


def main() -> None:
    """Run all seeds and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument(
        "--method", type=Method, choices=list(Method), default=Method.demonstrations
    )
    parser.add_argument("--held-out", type=int, default=210)
    parser.add_argument("--train", type=int, default=96, help="training tasks")
    parser.add_argument("--validation", type=int, default=60, help="validation tasks")
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--again", action="store_true", help="run also what has a report already")
    parser.add_argument("--work", type=Path, default=PROJECT / ".fulgurite" / "prompt-tuning")
    parser.add_argument("--out", type=Path, default=PROJECT / "benchmarks" / "prompt_tuning.md")
    options = parser.parse_args()
    reports = [(seed, measured(options, seed)) for seed in options.seeds]
    by_reflection = options.method is Method.gepa
    reflection = "reflection by Qwen2.5-Coder-0.5B-Instruct, " if by_reflection else ""
    made_by = (
        "Made by `benchmarks/prompt_tuning.py`: SmolLM2-135M-Instruct, the calculator example, "
        f"{reflection}{options.train} training, {options.validation} validation and "
        f"{options.held_out} held-out tasks, no weight changed. Intervals are 95 %; the difference "
        "is paired by task."
    )
    method = "reflection" if by_reflection else "demonstrations"
    lines = opening(f"Prompt tuning by {method}", made_by, HEAD)
    lines += [row(seed, report) for seed, report in reports]
    lines += [line for seed, report in reports for line in system_prompt(seed, report)]
    write_page(options.out, lines)


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
    with reflection_model(folder, options.method) as reflection, stack:
        environment = {**environment_of(stack), **reflection}
        before = evaluate(environment, tasks, folder / "before.json", AS_SENT)
        by_reflection = options.method is Method.gepa
        verdict = tune(environment, tasks, options, seed, *(GEPA if by_reflection else ()))
        version = verdict["candidate"] or AS_SENT
        after = evaluate(environment, tasks, folder / "after.json", version)
        prompt = shown_version(environment, version) if version != AS_SENT else {}
    difference = compare_on_tasks(rewards_of(before), rewards_of(after))
    found = {
        "before": before["reward"],
        "after": after["reward"],
        "difference": None if difference is None else str(difference.estimate),
        "verdict": verdict,
        "system": prompt.get("system"),
    }
    report.write_text(json.dumps(found, indent=2), encoding="utf-8")
    return found


@contextmanager
def reflection_model(folder: Path, method: Method) -> Generator[dict[str, str]]:
    """Serve Qwen if the method needs it; the tuner's settings."""
    if method is not Method.gepa:
        yield {}
        return
    model = find_model(Path("qwen2.5-coder-0.5b"))
    with LocalVllm(model, folder, served_model=REFLECTION_MODEL, threads=1) as server:
        yield {
            "FULGURITE_TUNER_BASE_URL": f"{server.base_url}/v1",
            "FULGURITE_TUNER_MAX_TOKENS": "512",
        }


def make_tasks(folder: Path, options: argparse.Namespace, seed: int) -> Path:
    """Write train.jsonl, validation.jsonl and heldout.jsonl, and all.jsonl with the example's
    training tasks, of which the first two are parts.
    """
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
    (tasks / "all.jsonl").write_text("\n".join(lines))
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
    environment: dict[str, str], tasks: Path, options: argparse.Namespace, seed: int, *more: str
) -> dict[str, Any]:
    """The verdict of a tuning, with its number of candidates. `more` are further options."""
    words = ["tune", "--alias=policy", "--json", f"--seed={seed}", *more]
    words += [f"--tasks={tasks / 'train.jsonl'}", f"--validation={tasks / 'validation.jsonl'}"]
    words += [f"--held-out={tasks / 'heldout.jsonl'}", f"--candidates={options.candidates}"]
    lines = fulgurite(environment, [*words, *REWARD, "--", *AGENT], codes=(0, 3)).splitlines()
    return json.loads(lines[-1])


def shown_version(environment: dict[str, str], version: str) -> dict[str, Any]:
    """What a version of the prompt changes."""
    words = ["prompts", "show", "--alias=policy", version, "--json"]
    return json.loads(fulgurite(environment, words))


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


def system_prompt(seed: int, report: dict[str, Any]) -> list[str]:
    """The system prompt that a model wrote, if one did."""
    written = report["system"]
    return ["", f"The best of seed {seed}:", "", "```text", written, "```"] if written else []


def shown(estimate: dict[str, Any]) -> str:
    """A mean with its interval."""
    return f"{estimate['mean']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"


if __name__ == "__main__":
    main()
