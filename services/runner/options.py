"""What a run is: a frozen value, and the reading of its tasks."""

from __future__ import annotations

import math
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from fulgurite.enums import Mode
from fulgurite.versions import Version
from services.runner.errors import BadTasks

HIDDEN_FIELD = "reference"
"""A task's field for its reward function: it is declared with the task and never reaches the agent.
"""

REWARD_NAME = "reward"

JUDGE = "judge:"
"""What a reward begins with that a model gives."""

DEFAULT_GIVE_UP_AFTER = 64
"""Eight batches of the learner's default size: where one group in ten teaches something, one run in
a thousand meets so many others.
"""

Task = dict[str, Any]


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that `fulgurite run` can be told."""

    tasks: Path
    command: tuple[str, ...]
    run_id: str
    n: int = 6
    concurrency: int = 16
    rewards: Mapping[str, str] = {}
    """By their names: a function, `FILE.py:FUNCTION` or `builtin:NAME`, or a model that ranks the
    group, `judge:ALIAS`. A group waits for each. Empty: no reward is awaited.
    """
    rubric: Path | None = None
    """Standards that judges have on top of their own."""
    weights: Mapping[str, float] = {}
    """Of rewards by name in the sum that is learned from: 1 where nothing is said, 0 for what is
    only recorded.
    """
    mode: Mode = Mode.train
    model: str = "policy"
    deadline_s: float = 300.0
    max_attempts: int = 3
    epochs: int | None = None
    """Passes over the tasks; None: one, or as many as the updates take."""
    limit: int | None = None
    """Groups at most."""
    max_ahead: int | None = None
    updates: int | None = None
    until_version: Version | None = None
    give_up_after: int = DEFAULT_GIVE_UP_AFTER
    """Groups in a row that are of no use, and end the run; 0: never."""
    preload: tuple[str, ...] = ()
    pass_environment: tuple[str, ...] = ()
    seed: int = 0
    cwd: Path = Path()

    @property
    def waits_for_learner(self) -> bool:
        """Whether the run ends by a version."""
        return self.updates is not None or self.until_version is not None


def read_tasks(path: Path) -> list[Task]:
    """JSON objects, one a line. Raises BadTasks."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadTasks(f"{path}: {error}") from error
    tasks: list[Task] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            task: Any = msgspec.json.decode(line)
        except msgspec.DecodeError as error:
            raise BadTasks(f"{path}, line {number}: {error}") from error
        if not isinstance(task, dict):
            raise BadTasks(f"{path}, line {number}: a task is a JSON object, not {line[:40]!r}")
        tasks.append(cast(Task, task))
    if not tasks:
        raise BadTasks(f"{path}: no task in it")
    return tasks


_NAMED = re.compile(r"([A-Za-z_][\w.-]*)=(.+)")


def read_rewards(given: Sequence[str], unnamed: str = REWARD_NAME) -> dict[str, str]:
    """By name, from `[NAME=]REFERENCE`; the name is `unnamed` where none is given. Raises
    ValueError.
    """
    rewards: dict[str, str] = {}
    for one in given:
        named = _NAMED.fullmatch(one)
        name, reference = named.groups() if named else (unnamed, one)
        if name in rewards:
            raise ValueError(
                f"{rewards[name]!r} and {reference!r} are both named {name!r}: say NAME={reference}"
            )
        rewards[name] = reference
    return rewards


def read_weights(pairs: Sequence[str]) -> dict[str, float]:
    """From `NAME=NUMBER`. Raises ValueError."""
    weights: dict[str, float] = {}
    for pair in pairs:
        name, _, number = pair.partition("=")
        try:
            weights[name] = float(number)
        except ValueError:
            weights[name] = math.nan
        if not name or not math.isfinite(weights[name]):
            raise ValueError(f"{pair!r} is not NAME=NUMBER, for example `style=0.2`")
    return weights


def in_order(tasks: list[Task], options: RunOptions) -> Iterator[Task]:
    """The tasks of a run, group by group. Training shuffles each pass after the first, with the
    run's seed.
    """
    passes, started = 0, 0
    endless = options.epochs is None and options.waits_for_learner
    while endless or passes < (options.epochs or 1):
        order = list(tasks)
        if options.mode is Mode.train and passes > 0:
            random.Random(f"{options.seed} {passes}").shuffle(order)
        for task in order:
            if options.limit is not None and started >= options.limit:
                return
            started += 1
            yield task
        passes += 1


def planned_rollouts(tasks: int, options: RunOptions) -> int | None:
    """How many rollouts a run has; None for one that ends with a version."""
    if options.waits_for_learner and options.epochs is None:
        return None
    groups = tasks * (options.epochs or 1)
    return options.n * (groups if options.limit is None else min(groups, options.limit))


def for_agent(task: Task) -> str:
    """What the agent gets: JSON without the hidden field."""
    return msgspec.json.encode(
        {name: value for name, value in task.items() if name != HIDDEN_FIELD}
    ).decode()


_INHERITED = ("PATH", "HOME", "LANG", "TMPDIR", "TZ")
_INHERITED_PREFIXES = ("LC_", "PYTHON")


def clean_environment(
    environment: Mapping[str, str], passed: tuple[str, ...] = ()
) -> dict[str, str]:
    """What an agent inherits: where programs and its home are, the language, Python's own settings,
    and what it is explicitly passed.
    """
    return {
        name: value
        for name, value in environment.items()
        if name in _INHERITED or name.startswith(_INHERITED_PREFIXES) or name in passed
    }


def own_environment(options: RunOptions) -> dict[str, str]:
    """`clean_environment` of this process."""
    return clean_environment(os.environ, options.pass_environment)
