"""Joins a tuning to the runner, the log and the recorded rollouts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import msgspec

from fulgurite.errors import BadClaim, BrokenDelta
from fulgurite.events import Episode, Event
from fulgurite.ids import derive_id
from fulgurite.prompts.examples import Example
from fulgurite.topics import PROMPT_UPDATES
from fulgurite.untrusted_json import mapping
from services.common.blobs.blob_store import redeemed_episode
from services.common.kafka.codec import make_codec
from services.common.kafka.consumer import read_all
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.replay.errors import BadArgument
from services.replay.groups import Group, read_groups
from services.replay.log_source import LogSource
from services.replay.scoring import scores
from services.runner.errors import BadTasks
from services.runner.jobs import GroupResult, JobQueue
from services.runner.options import RunOptions, Task, question_of, read_tasks, task_id
from services.runner.scoreboard import Score
from services.tuner.plan import Plan
from services.tuner.rollouts import GroupOutcome, RolloutResult, TuningTask, example_of


class QueuedRunner:
    """Runs groups through a run of `fulgurite run` that waits for jobs."""

    def __init__(self, jobs: JobQueue) -> None:
        self._jobs = jobs

    def submit(self, task: TuningTask, prompt_version: str) -> Future[GroupOutcome]:
        """Run a group of rollouts."""
        outcome: Future[GroupOutcome] = Future()

        def pass_on(done: Future[GroupResult]) -> None:
            try:
                outcome.set_result(_outcome(done.result()))
            except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
                outcome.set_exception(error)

        self._jobs.submit(task.task, prompt_version).add_done_callback(pass_on)
        return outcome


class LoggedRollouts:
    """Reads the rollouts of an alias from the log."""

    def __init__(
        self,
        kafka: KafkaSettings,
        alias: str,
        role: str | None,
        train: Sequence[TuningTask],
        since_ms: int | None,
        *,
        wants_examples: bool,
    ) -> None:
        """`since_ms`: examples are not older; None: any. `train`: only of these tasks."""
        self._kafka = kafka
        self._alias = alias
        self._role = role
        self._train = {task.key for task in train}
        self._since_ms = since_ms
        self._wants_examples = wants_examples

    def groups(self, ids: set[str]) -> dict[str, GroupOutcome]:
        """These groups, as far as the log has them."""
        return {group.group_id: _recorded(group) for group in self._read(None, ids)}

    def examples(self) -> list[Example]:
        """What rollouts of the alias on training tasks said and earned."""
        if not self._wants_examples:
            return []
        found: list[Example] = []
        for group in self._read(self._since_ms, None):
            key = _key_of_group(group)
            if key in self._train:
                made = (
                    example_of(one, key, self._alias, self._role)
                    for one in _recorded(group).rollouts
                )
                found += [one for one in made if one is not None]
        return found

    def _read(self, since_ms: int | None, ids: set[str] | None) -> Iterator[Group]:
        codec = make_codec()
        return read_groups(LogSource(self._kafka, codec), codec, since_ms=since_ms, keys=ids)


class PromptTopic:
    """Reads and writes `prompt.updates`. Use it as a context manager."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._codec = make_codec()

    def __enter__(self) -> PromptTopic:
        self._producer = EventProducer(self._kafka, self._codec, "fulgurite-tuner")
        return self

    def __exit__(self, *_: object) -> None:
        self._producer.close()

    def read(self) -> Iterable[Event | None]:
        """Every event of the topic. Raises LogUnavailable."""
        return (record.event for record in read_all(self._kafka, PROMPT_UPDATES, self._codec))

    def publish(self, key: str, event: Event) -> None:
        """Write an event, and return once the log has it. Raises LogUnavailable."""
        self._producer.publish_sync(PROMPT_UPDATES, key, event)


def read_tuning_tasks(path: Path) -> tuple[TuningTask, ...]:
    """Read a file of tasks, each once. Raises BadArgument."""
    try:
        tasks = read_tasks(path)
    except BadTasks as error:
        raise BadArgument(str(error)) from error
    return tuple({key_of(task): TuningTask(key_of(task), task) for task in tasks}.values())


def key_of(task: Task) -> str:
    """The hash of what an agent gets of a task."""
    return hashlib.sha256(question_of(task).encode()).hexdigest()[:32]


def require_apart(**files: Sequence[TuningTask]) -> None:
    """Raise BadArgument for a task that is in two files."""
    names = list(files)
    for place, name in enumerate(names):
        for other in names[place + 1 :]:
            keys = {task.key for task in files[name]}
            shared = [task for task in files[other] if task.key in keys]
            if shared:
                raise BadArgument(
                    f"{len(shared)} tasks stand in --{name} and in --{other}, for example "
                    f"{question_of(shared[0].task)[:200]}: take them out of one, as a prompt that "
                    "was made from a task cannot be tested by it"
                )


def tuning_id(
    plan: Plan, options: RunOptions, role: str | None, reflection_model: str | None
) -> str:
    """The id of a tuning: the same for the same command on the same files."""
    # A task's `reference` counts: rewards that were computed from another one are not valid.
    parts = (
        options.model, role, plan.method, plan.n, plan.seed, plan.slots, plan.pool,
        plan.least_reward, plan.minibatch, plan.start or "",
        [task_id(one.task) for one in plan.train], [task_id(one.task) for one in plan.validation],
        list(options.command), options.rewards, options.weights, reflection_model,
    )  # fmt: skip
    files = [path.read_text(encoding="utf-8") for path in reward_files(options.rewards.values())]
    return f"tune-{derive_id('tuning', *map(str, parts), *files)[:12]}"


def reward_files(references: Iterable[str]) -> list[Path]:
    """The files of a user's own reward functions."""
    paths = [Path(reference.rpartition(":")[0]) for reference in references]
    return sorted(path for path in paths if path.suffix == ".py" and path.is_file())


def _key_of_group(group: Group) -> str:
    """The hash of a declared group's task; empty if it has none that is an object."""
    declaration = group.declaration
    task = mapping(msgspec.json.decode(declaration.task)) if declaration is not None else {}
    return key_of(task) if task else ""


def _outcome(result: GroupResult) -> GroupOutcome:
    episodes = {episode.rollout_id: episode for episode in result.episodes}
    return GroupOutcome(
        result.group_id,
        tuple(_rollout(score, episodes.get(score.rollout_id)) for score in result.scores),
    )


def _rollout(score: Score, episode: Episode | None) -> RolloutResult:
    return _result(score.rollout_id, score.reward, episode)


def _recorded(group: Group) -> GroupOutcome:
    return GroupOutcome(
        group.group_id,
        tuple(
            _result(score.episode.rollout_id, score.reward, score.episode)
            for score in scores(group)
        ),
    )


def _result(rollout_id: str, reward: float | None, episode: Episode | None) -> RolloutResult:
    """The same for a rollout that has just ended and for one that is read from the log: what is
    asked of a reflection model depends on it.
    """
    complete, problem = _complete(episode)
    if episode is not None and episode.failure is not None:
        problem = f"It failed: {episode.failure}."
    return RolloutResult(rollout_id, reward, problem, complete)


def _complete(episode: Episode | None) -> tuple[Episode | None, str | None]:
    """The episode with all payloads, or why it cannot be read."""
    try:
        return None if episode is None else redeemed_episode(episode), None
    except (BadClaim, BrokenDelta) as error:
        return None, str(error)
