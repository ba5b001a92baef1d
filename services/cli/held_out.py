"""Collects what models earned on held-out tasks, and compares them in pairs.

Rewards come from runs in mode `val`, as they end, or from the log.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import msgspec

from fulgurite.enums import Mode
from fulgurite.learning.evaluation import Difference, adjusted, compare_on_tasks
from fulgurite.learning.intervals import Estimate, estimate
from fulgurite.versions import MalformedVersion, parse_version
from services.cli.errors import show_left_out
from services.common.kafka.codec import make_codec
from services.common.kafka.settings import KafkaSettings
from services.replay.errors import BadArgument
from services.replay.groups import Group, read_groups
from services.replay.leaving_out import LeftOut
from services.replay.listing import Wanted, listed
from services.replay.log_source import LogSource
from services.replay.windows import parse_window
from services.runner.errors import BadTasks
from services.runner.options import Task, read_tasks, task_id


class Earned(msgspec.Struct):
    """What one model, alias or version earned."""

    model: str
    rewards: dict[str, list[float]] = {}
    """Rewards of each task's rollouts; a task is named by its JSON."""
    unscored: int = 0
    """Rollouts without a reward."""
    others: int = 0
    """Rollouts that another version answered, at least in part; they do not count."""

    def add(self, task: str, reward: float | None, versions: Sequence[str]) -> None:
        """Add a rollout. `versions`: those that answered its calls."""
        if is_version(self.model) and list(versions) != [self.model]:
            self.others += 1
        elif reward is None:
            self.unscored += 1
        else:
            self.rewards.setdefault(task, []).append(reward)

    @property
    def mean(self) -> Estimate | None:
        """The mean reward; None without any."""
        return estimate(list(self.rewards.values()))


class Pair(msgspec.Struct, frozen=True):
    """Two models on the tasks that both have."""

    baseline: str
    candidate: str
    difference: Difference | None
    adjusted_p: float | None
    """`difference.p`, corrected for the number of pairs."""


def pairs(earned: Sequence[Earned]) -> list[Pair]:
    """Compare each model with each that is named before it."""
    found = [
        (one.model, other.model, compare_on_tasks(one.rewards, other.rewards))
        for one, other in itertools.combinations(earned, 2)
    ]
    corrected = iter(adjusted([found.p for _, _, found in found if found is not None]))
    return [
        Pair(baseline, candidate, difference, None if difference is None else next(corrected))
        for baseline, candidate, difference in found
    ]


def reason_of(difference: Difference, baseline: str) -> str:
    """Why a version is promoted, for people who read its route."""
    return f"{difference.estimate} against {baseline} on held-out tasks"


def held_out_rewards(
    kafka: KafkaSettings, models: Sequence[str], since: str, tasks: Path | None
) -> list[Earned]:
    """Collect from the log what `collect` does; prints which records are left out.

    `since`: an age, an ISO time, or `all`. `tasks`: only the tasks of this file. Raises
    BadArgument, LogUnavailable.
    """
    codec, left_out = make_codec(), LeftOut()
    since_ms = parse_window(since)
    groups = read_groups(LogSource(kafka, codec), codec, since_ms=since_ms)
    chosen = None if tasks is None else {task_id(task) for task in tasks_of(tasks)}
    found = collect(groups, models, chosen, left_out)
    show_left_out(left_out.lines)
    return found


def tasks_of(path: Path) -> list[Task]:
    """Read a file of tasks. Raises BadArgument."""
    try:
        return read_tasks(path)
    except BadTasks as error:
        raise BadArgument(str(error)) from error


def collect(
    groups: Iterable[Group],
    models: Sequence[str],
    tasks: Collection[str] | None,
    left_out: LeftOut,
) -> list[Earned]:
    """Collect the rollouts of mode `val`.

    `models`: versions, or aliases as they were declared; none: every version that answered.
    `tasks`: only these.
    """
    rollouts = list(left_out.each(groups, _rollouts))
    names = models or sorted(
        {version for rollout in rollouts for version in rollout.versions}, key=_order
    )
    found = [Earned(name) for name in names]
    for rollout in rollouts:
        if tasks is None or rollout.task in tasks:
            for earned in found:
                if earned.model == rollout.alias or [earned.model] == rollout.versions:
                    earned.add(rollout.task, rollout.reward, rollout.versions)
    return found


class _Rollout(msgspec.Struct, frozen=True):
    task: str
    alias: str
    versions: list[str]
    reward: float | None


def _rollouts(group: Group) -> Iterable[_Rollout]:
    """The rollouts of a declared group of mode `val`, unless it names a prompt version: what it
    earned is the prompt's.
    """
    declaration = group.declaration
    if declaration is None or declaration.prompt_version is not None:
        return
    task = task_id(msgspec.json.decode(declaration.task))
    for row in listed(group, Wanted(mode=Mode.val)):
        # A model that is no policy has no version, whatever its server says.
        versions: list[str] = row["versions"] if declaration.policy is not None else []
        yield _Rollout(task, declaration.alias, versions, row["reward"])


def is_version(text: str) -> bool:
    """Whether a name is a version rather than an alias."""
    try:
        parse_version(text)
    except MalformedVersion:
        return False
    return True


def _order(version: str) -> tuple[str, int, int]:
    parsed = parse_version(version)
    return parsed.policy, parsed.epoch, parsed.step
