"""Defines the options of a run, and reads its tasks, rewards and weights."""

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
"""Field of a task for its reward function. It is declared with the task and hidden from the agent.
"""

REWARD_NAME = "reward"

JUDGE = "judge:"
"""Prefix of a reward that a model gives."""

DEFAULT_GIVE_UP_AFTER = 64
"""Eight batches of the learner's default size. If one group in ten is useful, one run in a thousand
meets so many useless groups in a row.
"""

Task = dict[str, Any]


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `fulgurite run`."""

    tasks: Path
    held_out: Path | None = None
    """File of tasks that are left out."""
    command: tuple[str, ...]
    run_id: str
    n: int = 6
    concurrency: int = 16
    rewards: Mapping[str, str] = {}
    """Rewards by name: `FILE.py:FUNCTION`, `builtin:NAME`, or `judge:ALIAS` for a model that ranks
    the group. A group waits for each of them; if empty, for none.
    """
    rubric: Path | None = None
    """File of criteria for judges, added to the default ones."""
    weights: Mapping[str, float] = {}
    """Weights of the rewards by name in the sum that is trained on: 1 if not given, 0 for rewards
    that are only recorded.
    """
    credit_rule: str | None = None
    """How rewards are spread over actions; None: the gateway's default."""
    expert: str | None = None
    """`FILE.py:FUNCTION` that answers in the place of the model."""
    mode: Mode = Mode.train
    model: str = "policy"
    served_by: str | None = None
    """What answers the calls for `model`, where that is another alias or a version."""
    prompt_version: str | None = None
    """Version of the prompt of `model` that calls are served with; None: the one in force."""
    deadline_s: float = 300.0
    max_attempts: int = 3
    epochs: int | None = None
    """Passes over the tasks; None: one, or as many as the updates need."""
    limit: int | None = None
    """Largest number of groups."""
    max_ahead: int | None = None
    """Groups that may wait for the learner; None: what its batch asks for in mode `train`, else no
    limit."""
    updates: int | None = None
    until_version: Version | None = None
    give_up_after: int = DEFAULT_GIVE_UP_AFTER
    """The run ends after this many useless groups in a row; 0: never."""
    preload: tuple[str, ...] = ()
    pass_environment: tuple[str, ...] = ()
    seed: int = 0
    cwd: Path = Path()

    @property
    def waits_for_learner(self) -> bool:
        """Whether the run ends when a version is served."""
        return self.updates is not None or self.until_version is not None


def read_tasks(path: Path) -> list[Task]:
    """Read JSON objects, one per line. Raises BadTasks."""
    try:
        # Not `splitlines`: a JSON string may hold U+2028 and other ends of lines as they are.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadTasks(f"the tasks file {path} cannot be read: {error}") from error
    tasks: list[Task] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            task: Any = msgspec.json.decode(line)
        except msgspec.DecodeError as error:
            raise BadTasks(
                f"{path}, line {number}: not JSON ({error}). Give one JSON object per line."
            ) from error
        if not isinstance(task, dict):
            raise BadTasks(
                f"{path}, line {number}: {line[:40]!r} is not a JSON object. A task is an object, "
                'for example {"question": "2 + 2?", "reference": "4"}.'
            )
        tasks.append(cast(Task, task))
    if not tasks:
        raise BadTasks(f"{path} has no tasks. Give one JSON object per line.")
    return tasks


def tasks_to_run(options: RunOptions) -> list[Task]:
    """Read the tasks of a run, without those that are held out. Raises BadTasks."""
    tasks = read_tasks(options.tasks)
    if options.held_out is None:
        return tasks
    held_out = set(map(question_of, read_tasks(options.held_out)))
    left = [task for task in tasks if question_of(task) not in held_out]
    if not left:
        raise BadTasks(
            f"every task of {options.tasks} is held out by {options.held_out}: nothing is left to "
            "run"
        )
    return left


def task_id(task: Task) -> str:
    """The task's JSON, in the one way in which tasks are compared."""
    return msgspec.json.encode(task, order="sorted").decode()


def question_of(task: Task) -> str:
    """The task's JSON without the hidden field: what an agent gets to see."""
    return task_id({name: value for name, value in task.items() if name != HIDDEN_FIELD})


_NAMED = re.compile(r"([A-Za-z_][\w.-]*)=(.+)")


def read_rewards(given: Sequence[str], unnamed: str = REWARD_NAME) -> dict[str, str]:
    """Parse `[NAME=]REFERENCE` into references by name. Raises ValueError.

    A reference without a name gets the name `unnamed`.
    """
    rewards: dict[str, str] = {}
    for one in given:
        named = _NAMED.fullmatch(one)
        name, reference = named.groups() if named else (unnamed, one)
        if name in rewards:
            raise ValueError(
                f"{rewards[name]!r} and {reference!r} are both named {name!r}: name one, "
                f"NAME={reference}"
            )
        rewards[name] = reference
    return rewards


def read_weights(pairs: Sequence[str]) -> dict[str, float]:
    """Parse `NAME=NUMBER` into weights by name. Raises ValueError."""
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
    """Yield the tasks of a run in order, one for each group.

    In mode `train` each pass after the first is shuffled, with the run's seed.
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
    """How many rollouts a run has; None for a run that ends when a version is served."""
    if options.waits_for_learner and options.epochs is None:
        return None
    groups = tasks * (options.epochs or 1)
    return options.n * (groups if options.limit is None else min(groups, options.limit))


def for_agent(task: Task) -> str:
    """The task as the agent gets it: JSON without the hidden field."""
    return msgspec.json.encode(
        {name: value for name, value in task.items() if name != HIDDEN_FIELD}
    ).decode()


_INHERITED = ("PATH", "HOME", "LANG", "TMPDIR", "TZ")
_INHERITED_PREFIXES = ("LC_", "PYTHON")


def clean_environment(
    environment: Mapping[str, str], passed: tuple[str, ...] = ()
) -> dict[str, str]:
    """Keep the variables that an agent inherits: PATH, HOME, TMPDIR, the locale and time zone,
    Python's own variables, and those in `passed`.
    """
    return {
        name: value
        for name, value in environment.items()
        if name in _INHERITED or name.startswith(_INHERITED_PREFIXES) or name in passed
    }


def own_environment(options: RunOptions) -> dict[str, str]:
    """The variables of this process that an agent inherits."""
    return clean_environment(os.environ, options.pass_environment)
