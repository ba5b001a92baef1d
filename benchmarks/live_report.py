"""What the benchmark of live traffic reports, and its page."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import msgspec

from benchmarks.live_users import AT_ONCE, PEOPLE, Conversation, Population
from benchmarks.pages import opening
from services.local_stack.demo import LedgerReport

PARTS = {
    "honest": Population(),
    "poisoned": Population(flipped=0.2, flood=0.25),
}
QUOTA = 20
WAVE = 144
"""Conversations before the users wait for a version: on two cores a model that answers leaves its
learner little time, and how often it steps would be the machine's doing.
"""


class Decision(msgspec.Struct, frozen=True):
    """A route that the gate wrote."""

    targets: str
    reason: str


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """What happened while users talked to what is served."""

    conversations: list[Conversation]
    bad_version: str | None
    until_rolled_back: list[Conversation]
    """Conversations since a bad version was published."""
    is_rolled_back: bool | None
    decisions: list[Decision]
    updates: int
    served: list[str]
    """Version that served at the begin, and at the end."""
    seconds: float


class Report(Held, frozen=True, kw_only=True):
    """What became of one part."""

    measured: dict[str, Any]
    """What `fulgurite eval` said."""
    ledger: LedgerReport


HEAD = (
    "| part | seed | conversations | votes: good, bad, none | votes against the answer "
    "| versions | promoted, rolled back | right answers, by sixth | sampled, held out "
    "| difference | ledger: actions, remainder | seconds |"
)


def page(reports: Sequence[tuple[str, int, Report]], held_out: int) -> list[str]:
    """The lines of the page of results."""
    made_by = (
        "Made by `benchmarks/live.py`: "
        f"SmolLM2-135M-Instruct with the calculator example and adapters of rank 16. {PEOPLE} "
        f"simulated users, {AT_ONCE} conversations at a time; a vote comes 0.1 to 12 seconds "
        "after its answer, a twentieth of what it is for people, and so are the waits of "
        f"aggregator and rewarder. After every {WAVE} conversations the users wait until the "
        "learner has made a version, two minutes at most. Without a vote, a function that cannot "
        "know what is right is the fallback. "
        f"{PARTS['honest'].silent:.0%} of the conversations get no vote, and "
        f"{PARTS['honest'].wrong:.0%} of the votes are wrong. `poisoned` goes on from the log of "
        f"`honest`: {PARTS['poisoned'].flipped:.0%} of the votes are turned into their opposite, "
        f"and {PARTS['poisoned'].flood:.0%} of the conversations are of one user, who votes "
        f"against each answer; the quota is {QUOTA} an hour. Held out are {held_out} tasks with "
        "other wordings and numbers, sampled once by the version that served at the begin and by "
        "the one that served at the end; intervals are 95 %, the difference is paired by task. "
        "At the end of `poisoned` the learner is stopped, and the weights of the first version are "
        "published again: what users say then waits for a learner, and is open in the ledger."
    )
    lines = opening("Votes of simulated users", made_by, HEAD)
    lines += [_row(part, seed, report) for part, seed, report in reports]
    for part, seed, report in reports:
        lines += ["", f"## {part}, seed {seed}: what the gate decided", ""]
        lines += [f"- {one.targets}: {one.reason}" for one in report.decisions]
        lines += [f"- {_bad(report)}"] if report.bad_version is not None else []
        terms = ", ".join(f"{name} {count}" for name, count in sorted(report.ledger.terms.items()))
        lines += ["", f"Ledger: {terms}."]
    return lines


def _row(part: str, seed: int, report: Report) -> str:
    held = report.conversations
    votes = [one for one in held if one.vote is not None]
    good = sum(one.vote == 1.0 for one in votes)
    against = sum(one.vote != float(one.is_right) for one in votes)
    decided = [one.reason.split()[0] for one in report.decisions]
    rolled = decided.count("rolled")
    before, after = report.measured["models"][0], report.measured["models"][-1]
    difference = report.measured["pairs"][0]["difference"] if report.measured["pairs"] else None
    return (
        f"| {part} | {seed} | {len(held)} | {good}, {len(votes) - good}, {len(held) - len(votes)} "
        f"| {against} | {report.updates} | {decided.count('promoted')}, {rolled} "
        f"| {' '.join(_sixths(held))} | {_mean(before)} → {_mean(after)} "
        f"| {'–' if difference is None else _estimate(difference['estimate'], '+')} "
        f"| {report.ledger.actions}, {report.ledger.remainder} | {report.seconds:.0f} |"
    )


def _sixths(held: Sequence[Conversation]) -> list[str]:
    """The share of right answers to users who do not flood, in each sixth of the time."""
    ours = [one.is_right for one in held if not one.is_flood]
    bounds = [len(ours) * place // 6 for place in range(7)]
    parts = [ours[low:high] for low, high in itertools.pairwise(bounds)]
    return [f"{sum(part) / max(1, len(part)):.2f}".removeprefix("0") for part in parts]


def _mean(measured: dict[str, Any]) -> str:
    return f"`{measured['model']}` {_estimate(measured['mean'])}"


def _estimate(found: dict[str, Any], sign: str = "") -> str:
    mean, low, high = (format(found[key], f"{sign}.2f") for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _bad(report: Report) -> str:
    """What became of the version that was published to be rolled back."""
    after = report.until_rolled_back
    got = sum(one.version == report.bad_version for one in after)
    what = "rolled back" if report.is_rolled_back else "not rolled back"
    return (
        f"{report.bad_version}, the weights of the first version: {what} within {len(after)} "
        f"conversations, {got} of which it answered"
    )
