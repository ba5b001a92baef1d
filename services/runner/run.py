"""A run: tasks → groups → agent processes → rewards, at the pace of the learner.

Declares groups at the gateway, starts at most `concurrency` agents, and learns from the log (`episodes`, `agent.rewards`,
`training.ledger`, `policy.applied`) what became of them. It writes nothing to Kafka itself; its reward worker does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Coroutine, Generator
from pathlib import Path
from typing import Any, Protocol

import msgspec

from fulgurite.codec import Codec
from fulgurite.events import AgentReward, Episode, Event, LedgerEntry, PolicyApplied
from fulgurite.kinds import ApplyOutcome
from fulgurite.topics import AGENT_REWARDS, EPISODES, POLICY_APPLIED, TRAINING_LEDGER
from fulgurite.versions import Version, parse_version
from services import logs
from services.clock import now_ms
from services.kafka import KafkaSettings, read_all
from services.process_secrets import without_keys
from services.runner.errors import RunnerError
from services.runner.feed import Feed
from services.runner.gateway_client import GatewayClient, Group
from services.runner.intervals import Estimate
from services.runner.options import JUDGE, RunOptions, Task, for_agent, in_order, own_environment, planned_rollouts, read_tasks
from services.runner.pace import Pace
from services.runner.processes import Processes, Program, find_program
from services.runner.rollout import Attempt, RolloutRunner
from services.runner.scoreboard import CurvePoint, Scoreboard
from services.runner.settings import RunnerSettings

REWARD_GRACE_S = 60.0
"""After the last rollout's deadline: time for aggregator, reward worker and rewards to come."""

_TICK_S = 0.05

_log = logs.get()


class Summary(msgspec.Struct, frozen=True):
    """What came of a run."""

    run_id: str
    mode: str
    groups: int
    counts: dict[str, int]
    reward: Estimate | None
    components: dict[str, float]
    """Means of the other named rewards: what the reward is made of, or is compared with."""
    curve: list[CurvePoint]
    updates: int
    version: str
    seconds: float
    first_rollout_to_last_update_s: float | None
    updated_at_s: list[float]
    """Seconds from the first rollout to each update."""
    rollouts: list[dict[str, Any]]


class Watcher(Protocol):
    """Is told how a run goes."""

    def on_change(self, run: Run) -> None:
        """Something happened; called often."""
        ...

    def on_attempt(self, attempt: Attempt) -> None:
        """An agent process ended."""
        ...

    def on_update(self, version: Version, point: CurvePoint | None) -> None:
        """A new version is served; with the rewards under the one before."""
        ...


class Run:
    """One run. `execute` runs it once."""

    def __init__(self, options: RunOptions, settings: RunnerSettings, kafka: KafkaSettings, watcher: Watcher) -> None:
        self.options = options
        self._settings = settings
        self._kafka = kafka
        self._watcher = watcher
        self._codec = Codec()
        self.board = Scoreboard(options.rewards, options.weights)
        self.pace = Pace(settings.policy, options.max_ahead)
        self.groups = 0
        self.ended = 0
        self.running = 0
        self.began = time.monotonic()
        self._planned: int | None = None
        self._last_deadline_ms = 0
        self._updated_at: list[float] = []
        self._changed = asyncio.Event()

    @property
    def updates(self) -> int:
        """New versions since the start."""
        return len(self.pace.updates)

    @property
    def share(self) -> float | None:
        """How much of the run is done, 0 to 1; None where nobody can know."""
        if self.options.updates is not None:
            return min(1.0, self.updates / self.options.updates)
        return self.ended / self._planned if self._planned else None

    @property
    def seconds(self) -> float:
        """Since the first rollout."""
        return time.monotonic() - self.began

    async def execute(self) -> Summary:
        """Run to the end. Raises RunnerError, LogUnavailable; cancelling stops every process."""
        tasks = read_tasks(self.options.tasks)
        self._planned = planned_rollouts(len(tasks), self.options)
        environment = own_environment(self.options)
        program = find_program(self.options.command, environment.get("PATH"), bool(self.options.preload))
        async with contextlib.AsyncExitStack() as stack:
            processes = await stack.enter_async_context(Processes(program.python or sys.executable, self.options.preload, environment))
            self.pace.begin_with(await asyncio.to_thread(self._served))
            topics = (EPISODES, AGENT_REWARDS, TRAINING_LEDGER, POLICY_APPLIED)
            await stack.enter_async_context(Feed(self._kafka, self._codec, topics, self.on_event))
            gateway = await stack.enter_async_context(
                GatewayClient(self._settings.gateway_url, self._settings.admin_key.get_secret_value())
            )
            judge = stack.enter_context(_cancelled_at_end(self._start_judges(processes))) if self.options.rewards else None
            rollouts = RolloutRunner(gateway, processes, program, environment, self.options)
            self.began = time.monotonic()
            await self._watching(judge, self._play(tasks, gateway, rollouts))
        return self._summary()

    def on_event(self, event: Event) -> None:
        """Take in what the log says."""
        match event:
            case Episode():
                self.board.on_episode(event)
            case AgentReward():
                self.board.on_reward(event)
            case LedgerEntry():
                self.pace.on_ledger(event)
            case PolicyApplied():
                self._on_applied(event)
            case _:
                return
        self._changed.set()
        self._watcher.on_change(self)

    def _on_applied(self, event: PolicyApplied) -> None:
        before, served = self.updates, self.pace.served
        self.pace.on_applied(event)
        if self.updates > before:
            self._updated_at.append(self.seconds)
            self._watcher.on_update(self.pace.served, self.board.reward_of(str(served)))

    def _served(self) -> Version:
        served = self.pace.served
        for record in read_all(self._kafka, POLICY_APPLIED, self._codec):
            event = record.event
            if isinstance(event, PolicyApplied) and event.policy == served.policy and event.outcome is ApplyOutcome.applied:
                served = max(served, parse_version(event.version))
        return served

    async def _play(self, tasks: list[Task], gateway: GatewayClient, rollouts: RolloutRunner) -> None:
        slots = asyncio.Semaphore(self.options.concurrency)
        try:
            async with asyncio.TaskGroup() as crew:
                for task in in_order(tasks, self.options):
                    if not await self._may_go_on(slots):
                        break
                    group = await self._declare(gateway, task)
                    for grant in group.rollouts:
                        crew.create_task(self._one(slots, rollouts, group, grant.index, for_agent(task)))
        except BaseExceptionGroup as errors:
            raise _first(errors) from errors
        while self.options.waits_for_learner and not self._is_satisfied() and not self.pace.is_idle(now_ms()):
            await self._something()
        await self._rewards()

    async def _may_go_on(self, slots: asyncio.Semaphore) -> bool:
        """Wait for a free slot and for the learner; False when the run has what it wanted."""
        while not self._is_satisfied():
            if self.pace.may_start(now_ms()) and not slots.locked():
                return True
            await self._something()
        return False

    def _is_satisfied(self) -> bool:
        options = self.options
        if options.updates is not None and self.updates >= options.updates:
            return True
        return options.until_version is not None and self.pace.served >= options.until_version

    async def _declare(self, gateway: GatewayClient, task: Task) -> Group:
        options = self.options
        group = await gateway.declare(
            task=task,
            n=options.n,
            mode=options.mode,
            model=options.model,
            deadline_s=options.deadline_s,
            run_id=options.run_id,
            max_attempts=options.max_attempts,
            rewards=tuple(options.rewards),
            weights=options.weights,
        )
        self.groups += 1
        self._last_deadline_ms = max(self._last_deadline_ms, group.deadline)
        self.pace.start(group.group_id, group.deadline)
        for grant in group.rollouts:
            self.board.expect(group.group_id, grant.rollout_id)
        self._watcher.on_change(self)
        return group

    async def _one(self, slots: asyncio.Semaphore, rollouts: RolloutRunner, group: Group, index: int, task: str) -> None:
        async with slots:
            self.running += 1
            try:
                attempt = await rollouts.run(group, group.rollouts[index], task)
            finally:
                self.running -= 1
                self._changed.set()
        self.ended += 1
        self._watcher.on_attempt(attempt)
        self._watcher.on_change(self)

    async def _rewards(self) -> None:
        """Wait until every rollout is paid, or nobody will pay any more."""
        give_up = self._last_deadline_ms / 1000 + REWARD_GRACE_S
        while self.board.open_groups() and time.time() < give_up:
            await self._something()
        missing = len(self.board.open_groups())
        if missing:
            _log.warning("groups without all episodes and rewards at their deadline", groups=missing, run_id=self.options.run_id)

    async def _something(self) -> None:
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TICK_S * 4):
                await self._changed.wait()

    async def _start_judges(self, processes: Processes) -> None:
        """A reward worker for each function, a judge for each model, until cancelled. Raises RunnerError when one ends by itself."""
        try:
            async with asyncio.TaskGroup() as judges:
                for name, reference in self.options.rewards.items():
                    judges.create_task(self._start_judge(processes, name, reference))
        except BaseExceptionGroup as errors:
            raise _first(errors) from errors

    async def _start_judge(self, processes: Processes, name: str, reference: str) -> None:
        folder = self._settings.data_dir / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"reward-{self.options.run_id}-{name}.log"
        # -P: in the working directory may lie another package `services`.
        argv = (sys.executable, "-P", "-m", *_worker(reference, self.options.rubric), "--name", name, "--run-id", self.options.run_id)
        # A function may ask a model of the gateway's; it mints no keys and declares no rollouts.
        environment = {**without_keys(os.environ, frozenset({"FULGURITE_API_KEYS"})), "FULGURITE_GATEWAY_URL": self._settings.gateway_url}
        with path.open("ab") as log:
            ended = await processes.run(Program(argv), environment=environment, cwd=Path.cwd(), output=log)
        tail = path.read_text(errors="replace").strip().splitlines()[-5:]
        raise RunnerError(f"the worker of the reward {name!r} ended with exit code {ended.exit_code}: " + "\n".join(tail) + f"\n({path})")

    async def _watching(self, judge: asyncio.Task[None] | None, play: Coroutine[Any, Any, None]) -> None:
        """Run the play; stop it when the reward worker dies."""
        playing = asyncio.create_task(play)
        waiting = {playing} if judge is None else {playing, judge}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if not playing.done() and judge is not None:
                judge.result()
            await playing
        finally:
            if not playing.done():
                playing.cancel()
                with contextlib.suppress(asyncio.CancelledError, RunnerError):
                    await playing

    def _summary(self) -> Summary:
        return Summary(
            run_id=self.options.run_id,
            mode=self.options.mode.value,
            groups=self.groups,
            counts=self.board.counts(),
            reward=self.board.mean(),
            components=self.board.components(),
            curve=self.board.curve(),
            updates=self.updates,
            version=str(self.pace.served),
            seconds=self.seconds,
            first_rollout_to_last_update_s=self._updated_at[-1] if self._updated_at else None,
            updated_at_s=self._updated_at,
            rollouts=self.board.rows(),
        )


def _worker(reference: str, rubric: Path | None) -> tuple[str, ...]:
    """The module that gives such a reward, and what it is told."""
    if not reference.startswith(JUDGE):
        return ("services.rewarder.worker", "--reward", reference)
    return ("services.rewarder.judge", "--model", reference.removeprefix(JUDGE), *(("--rubric", str(rubric)) if rubric else ()))


@contextlib.contextmanager
def _cancelled_at_end(coroutine: Coroutine[Any, Any, None]) -> Generator[asyncio.Task[None]]:
    task = asyncio.create_task(coroutine)
    try:
        yield task
    finally:
        task.cancel()


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that stopped the others."""
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error  # pyright: ignore[reportUnknownArgumentType]
