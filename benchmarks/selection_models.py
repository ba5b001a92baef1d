"""Measures model selection with two real models and two prompts, on two kinds of task.

    .venv/bin/python -m benchmarks.selection_models [--seeds 0] [--scale 1]
        [--out benchmarks/selection_models.md]

`policy` is SmolLM2-135M-Instruct, `upstream:large` Qwen2.5-Coder-0.5B-Instruct, each with and
without three demonstrations. Half of the tasks are sums of two numbers, half ask for a number in a
page of text. An episode earns its reward of 0 or 1, minus its price by tokens.

One stack, five phases: each variant alone; even shares, and from that log an estimate for another
router; that router itself; a selector that decides shares; the same selector while the large
model's server is stopped.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.commands import Command, environment_of, fulgurite
from benchmarks.demo_runs import PROJECT
from benchmarks.pages import machine, write_page
from fulgurite.cost.prices import parse_prices
from fulgurite.selection.logged import LoggedEpisode, Weights, earned, logged_episode
from services.common.kafka.codec import make_codec
from services.local_stack.demo import empty_folder
from services.local_stack.local_stack import LocalStack, StackOptions
from services.local_stack.model import find_model
from services.local_stack.vllm_local import LocalVllm
from services.replay.archive import open_source
from services.replay.groups import read_groups
from services.replay.scoring import scores

FOLDER = PROJECT / "benchmarks" / "selection_models"
VARIANTS = (
    "policy,prompt@none",
    "policy,prompt@1",
    "upstream:large,prompt@none",
    "upstream:large,prompt@1",
)
SUM, PAGE = "sum", "page"
PAGE_CELL = "/medium"
"""In the context of a task of a page: its text has more than 1,000 bytes."""
SIZES = {"alone": 120, "even": 400, "candidate": 300, "selected": 800, "stopped": 300}
PRICES = """
currency = "credits"

[tokens.vllm]
input = 50.0
output = 200.0

[tokens.large]
input = 500.0
output = 2000.0
"""
WEIGHTS = Weights(price=1.0)


class Outcome(msgspec.Struct, frozen=True):
    """What an episode was, and what it earned."""

    variant: str
    """Empty if no call was made."""
    kind: str
    value: float
    has_failed: bool = False

    @classmethod
    def of(cls, episode: LoggedEpisode | None, *, has_failed: bool) -> Outcome:
        """None: no call was made, so nothing was earned."""
        if episode is None:
            return cls("", "", 0.0, has_failed)
        kind = PAGE if PAGE_CELL in episode.cell else SUM
        return cls(episode.variant or "", kind, earned(episode, WEIGHTS), has_failed)


class Phase(msgspec.Struct, frozen=True):
    """The episodes of one phase, in the order in which they ended."""

    outcomes: list[Outcome]

    def values_of(self, variant: str | None = None, kind: str | None = None) -> list[float]:
        """What the episodes of a variant, or of a kind of task, earned."""
        return [
            one.value
            for one in self.outcomes
            if variant in (None, one.variant) and kind in (None, one.kind)
        ]

    def mean_of(self, variant: str | None = None, kind: str | None = None) -> float:
        """The mean of `values_of`; 0 without any."""
        values = self.values_of(variant, kind)
        return statistics.fmean(values) if values else 0.0


class Counts(msgspec.Struct, frozen=True):
    """Tasks of each phase."""

    alone: int
    even: int
    candidate: int
    selected: int
    stopped: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What came out with one seed."""

    alone: dict[str, Phase]
    even: Phase
    candidate: dict[str, float]
    """Shares by variant."""
    estimate: dict[str, Any]
    """What `fulgurite select try` said of the candidate, from the log of even shares."""
    on_policy: Phase
    """What the candidate then earned."""
    selected: Phase
    stopped: Phase
    """After the large model's server was stopped."""
    seconds: float


def make_tasks(count: int, rng: random.Random) -> list[dict[str, str]]:
    """Tasks of both kinds in turn."""
    return [(_sum(rng) if place % 2 else _page(rng)) for place in range(count)]


def _sum(rng: random.Random) -> dict[str, str]:
    left, right = rng.randint(11, 89), rng.randint(11, 89)
    return {"question": f"What is {left} + {right}?", "reference": str(left + right)}


def _page(rng: random.Random, lines: int = 30) -> dict[str, str]:
    """A list of numbers by name, and a question for one of them."""
    colours = ("red", "blue", "green", "white", "black", "brown")
    things = ("door", "gate", "safe", "desk", "room", "case", "shelf", "drawer")
    names = rng.sample([f"{colour} {thing}" for colour in colours for thing in things], lines)
    numbers = [str(number) for number in rng.sample(range(1000, 10_000), lines)]
    page = "\n".join(
        f"The code of the {name} is {number}." for name, number in zip(names, numbers, strict=True)
    )
    place = rng.randrange(lines)
    question = f"{page}\nWhat is the code of the {names[place]}?"
    return {"question": question, "reference": numbers[place]}


def demonstrations(rng: random.Random) -> str:
    """Three solved tasks, as chat messages."""
    shown = (_sum(rng), _page(rng, 6), _sum(rng))
    return "\n".join(
        json.dumps({"role": role, "content": task[key]})
        for task in shown
        for role, key in (("user", "question"), ("assistant", "reference"))
    )


class Run:
    """The phases of one seed, on a stack that runs."""

    def __init__(self, stack: LocalStack, folder: Path, seed: int) -> None:
        self._kafka = stack.kafka
        self._folder = folder
        self._rng = random.Random(f"selection {seed}")
        self._environment = environment_of(stack)
        self._prices = folder / "prices.toml"
        self._prices.write_text(PRICES)
        shown = folder / "demonstrations.jsonl"
        shown.write_text(demonstrations(self._rng))
        self._fulgurite("prompts", "set", "--alias=policy", f"--demonstrations={shown}")
        self._fulgurite("prompts", "rollback", "--alias=policy", "--to=none")

    def run(self, counts: Counts, large: LocalVllm) -> Report:
        """All phases. `large`: the server to be stopped."""
        began = time.monotonic()
        alone: dict[str, Phase] = {}
        for place, variant in enumerate(VARIANTS):
            self._route({variant: 1.0})
            alone[variant] = self._phase(f"alone-{place}", counts.alone)
        even_since = datetime.now(UTC)
        self._route(dict.fromkeys(VARIANTS, 0.25))
        even = self._phase("even", counts.even)
        shares = candidate_of(even)
        estimate = self._estimate(shares, even_since)
        self._route(shares)
        on_policy = self._phase("candidate", counts.candidate)
        self._route(dict.fromkeys(VARIANTS, 0.25))
        with Command(self._selector(), self._environment, self._folder / "selector.log"):
            selected = self._phase("selected", counts.selected)
            large.stop()
            stopped = self._phase("stopped", counts.stopped)
        return Report(
            alone=alone,
            even=even,
            candidate=shares,
            estimate=estimate,
            on_policy=on_policy,
            selected=selected,
            stopped=stopped,
            seconds=time.monotonic() - began,
        )

    def _route(self, shares: Mapping[str, float]) -> None:
        self._fulgurite("routes", "set", "policy", *_texts(shares))
        # Rollouts that begin before gateways have read the route would get the last one.
        time.sleep(2)

    def _selector(self) -> Sequence[str]:
        return (
            *("select", "start", "--alias=policy", "--mode=automatic"),
            *(f"--prices={self._prices}", f"--price-weight={WEIGHTS.price}"),
        )

    def _estimate(self, shares: Mapping[str, float], since: datetime) -> dict[str, Any]:
        words = ["select", "try", "--alias=policy", "--json", f"--prices={self._prices}"]
        words += [f"--price-weight={WEIGHTS.price}", f"--since={since:%Y-%m-%dT%H:%M:%S}"]
        first, *others = _texts(shares)
        return json.loads(self._fulgurite(*words, f"--shares={first}", *others))

    def _phase(self, name: str, count: int) -> Phase:
        """Run the agent on so many tasks, and read what its episodes earned from the log."""
        tasks, results = self._folder / f"{name}.jsonl", self._folder / f"{name}.json"
        made = make_tasks(count, self._rng)
        tasks.write_text("\n".join(map(json.dumps, made)))
        print(f"{name}: {count} tasks", flush=True)
        self._fulgurite(
            *("run", "--n=1", "--concurrency=16", "--max-ahead=100000", "--max-attempts=1"),
            *("--give-up-after=0", f"--tasks={tasks}", f"--results={results}"),
            *(f"--reward={FOLDER / 'rewards.py'}:score", "--preload=openai"),
            *("--", "python", str(FOLDER / "agent.py")),
        )
        rollouts = json.loads(results.read_text())["rollouts"]
        found = self._episodes(frozenset(str(one["group_id"]) for one in rollouts))
        return Phase(
            [
                Outcome.of(found.get(one["group_id"]), has_failed=one["outcome"] == "failed")
                for one in rollouts
            ]
        )

    def _episodes(self, groups: frozenset[str]) -> dict[str, LoggedEpisode]:
        codec = make_codec()
        prices = parse_prices(PRICES)
        source = open_source(self._kafka, codec, None)
        return {
            group.group_id: episode
            for group in read_groups(source, codec, keys=groups)
            for score in scores(group)
            for episode in [logged_episode(score.episode, "policy", score.reward or 0.0, prices)]
            if episode is not None
        }

    def _fulgurite(self, *words: str) -> str:
        # 3: nothing can be learned from what the episodes earned, which is not asked here.
        return fulgurite(self._environment, words, codes=(0, 3))


def candidate_of(even: Phase) -> dict[str, float]:
    """A router that gives most to the variant that earned most, and 10% to each other."""
    best = max(VARIANTS, key=even.mean_of)
    return {variant: 0.7 if variant == best else 0.1 for variant in VARIANTS}


def _texts(shares: Mapping[str, float]) -> list[str]:
    return [f"{variant}={share}" for variant, share in shares.items()]


def measured(options: argparse.Namespace, seed: int) -> Report:
    """The report of one seed."""
    folder: Path = options.work / f"seed-{seed}"
    file = folder / "report.json"
    if file.is_file():
        return msgspec.json.decode(file.read_bytes(), type=Report)
    folder.mkdir(parents=True, exist_ok=True)
    counts = msgspec.convert(
        {name: round(options.scale * size) for name, size in SIZES.items()}, Counts
    )
    data = empty_folder(folder / "data")
    with LocalVllm(
        find_model(Path("qwen2.5-coder-0.5b")), folder, served_model="large", threads=1
    ) as large:
        upstreams = {"large": {"base_url": large.base_url}}
        settings = {
            "FULGURITE_UPSTREAMS": json.dumps(upstreams),
            # A small model seldom ends by itself.
            "FULGURITE_REWARDER_FAILURE_POLICIES": '{"truncated": "train"}',
        }
        with LocalStack(
            StackOptions(data=data, own_kafka=True, trains=False, environment=settings)
        ) as stack:
            report = Run(stack, folder, seed).run(counts, large)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    return report


def _row(variant: str, phase: Phase) -> str:
    cells = [
        f"{phase.mean_of(kind=kind):.2f} (n = {len(phase.values_of(kind=kind))})"
        for kind in (SUM, PAGE)
    ]
    return f"| `{variant}` | {' | '.join(cells)} | {phase.mean_of():.3f} |"


def _section(seed: int, report: Report) -> list[str]:
    """What came out with a seed: the variants, the estimate, the selector, the stopped server."""
    best = max(VARIANTS, key=lambda variant: report.alone[variant].mean_of())
    fixed = report.alone[best].mean_of()
    oracle = statistics.fmean(
        max(report.alone[variant].mean_of(kind=kind) for variant in VARIANTS)
        for kind in (SUM, PAGE)
    )
    selected = report.selected.values_of()
    quarters = [selected[len(selected) * place // 4 :][: len(selected) // 4] for place in range(4)]
    said = report.estimate["candidate"]
    preferred = max(report.candidate, key=lambda variant: report.candidate[variant])
    went = [one for one in report.selected.outcomes[-len(selected) // 4 :] if one.kind]
    lines = [
        "",
        f"## Seed {seed}",
        "",
        "| variant, alone | earns, sums | earns, pages | all |",
        "|---|---|---|---|",
        *[_row(variant, report.alone[variant]) for variant in VARIANTS],
        "",
        f"Best fixed variant `{best}`: {fixed:.3f}; the best of each kind: {oracle:.3f}; even "
        f"shares: {report.even.mean_of():.3f}.",
        "",
        f"**Estimate for another router** (0.7 for `{preferred}`, "
        f"0.1 for each other): {said['mean']:.3f} [{said['low']:.3f}, {said['high']:.3f}] from the "
        f"{len(report.even.outcomes)} episodes with even shares; it then earned "
        f"{report.on_policy.mean_of():.3f} in {len(report.on_policy.outcomes)} episodes.",
        "",
        f"**Selector**, from even shares, {len(selected)} episodes: by quarters "
        f"{', '.join(f'{statistics.fmean(part):.3f}' for part in quarters)}. Regret against the "
        f"best fixed variant {fixed * len(selected) - sum(selected):+.0f}, against the best of "
        f"each kind {oracle * len(selected) - sum(selected):+.0f}. Shares in the last quarter:",
        "",
        "| variant | sums | pages |",
        "|---|---|---|",
    ]
    for variant in VARIANTS:
        shares = [
            sum(one.variant == variant for one in went if one.kind == kind)
            / max(1, sum(one.kind == kind for one in went))
            for kind in (SUM, PAGE)
        ]
        lines.append(f"| `{variant}` | {shares[0]:.0%} | {shares[1]:.0%} |")
    failed = [place for place, one in enumerate(report.stopped.outcomes) if one.has_failed]
    parts = [
        sum(place * 3 // len(report.stopped.outcomes) == part for place in failed)
        for part in range(3)
    ]
    return [
        *lines,
        "",
        f"**The large model's server stopped:** {len(failed)} of {len(report.stopped.outcomes)} "
        f"episodes failed; by thirds {', '.join(map(str, parts))}.",
    ]


def main() -> None:
    """Run all seeds and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of tasks")
    parser.add_argument("--work", type=Path, default=PROJECT / ".fulgurite" / "selection-models")
    parser.add_argument("--out", type=Path, default=PROJECT / "benchmarks" / "selection_models.md")
    options = parser.parse_args()
    reports = [(seed, measured(options, seed)) for seed in options.seeds]
    lines = [
        "# Model selection with two real models and two prompts",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {machine()}. Made by `benchmarks/selection_models.py`: "
        "`policy` is SmolLM2-135M-Instruct, `upstream:large` Qwen2.5-Coder-0.5B-Instruct, each "
        "with what the agent sends and with three demonstrations (`prompt@1`). Half of the tasks "
        "are sums of two numbers, half ask for a number in a page of thirty lines. An episode "
        "earns its reward of 0 or 1, minus its price by tokens: 50 and 200 credits a million of "
        "prompt and answer for the small model, ten times as much for the large one.",
    ]
    if options.scale < 1:
        lines[-1] += (
            f" `--scale {options.scale:g}`: with few episodes all figures are rough, and a "
            "selector has hardly left its warm-up."
        )
    for seed, report in reports:
        lines += _section(seed, report)
    write_page(options.out, lines)


if __name__ == "__main__":
    main()
