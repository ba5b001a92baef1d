"""Runs agents on tasks: tasks → groups → agent processes → rewards, at the pace of the learner.

Declares groups at the gateway and starts at most `concurrency` agents. What happens to them is read
from `episodes`, `agent.rewards`, `training.ledger`, `policy.applied` and `policy.updates`. The run
writes nothing to Kafka itself; the reward workers that it starts do.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Generator
from typing import Any, Protocol

from fulgurite.diagnosis.facts import Facts, LearnerFacts
from fulgurite.diagnosis.findings import lines_of
from fulgurite.enums import ApplyOutcome, Mode
from fulgurite.events import AgentReward, Episode, Event, LedgerEntry, PolicyApplied, PolicyUpdate
from fulgurite.learning.learners import Learners
from fulgurite.topics import (
    AGENT_REWARDS,
    EPISODES,
    POLICY_APPLIED,
    POLICY_UPDATES,
    TRAINING_LEDGER,
)
from fulgurite.versions import Version, parse_version
from services.common.kafka.codec import make_codec
from services.common.kafka.consumer import read_all
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.settings import KafkaSettings
from services.common.processes.errors import ProcessError
from services.common.processes.fork_server import ForkServer
from services.common.runtime.clock import now_ms
from services.runner.agent_command import find_program
from services.runner.diagnosis import Diagnosis
from services.runner.errors import GaveUp, RunnerError, first_error
from services.runner.expert import Expert
from services.runner.feed import Feed
from services.runner.gateway_client import GatewayClient, Group
from services.runner.jobs import Job, JobQueue
from services.runner.options import (
    RunOptions,
    Task,
    in_order,
    own_environment,
    planned_rollouts,
    tasks_to_run,
)
from services.runner.outcomes import Outcomes
from services.runner.pace import Pace, usual_max_ahead
from services.runner.reward_workers import run_reward_workers
from services.runner.rollout import Attempt, RolloutRunner
from services.runner.run_warnings import Warnings
from services.runner.scoreboard import CurvePoint, Scoreboard
from services.runner.settings import RunnerSettings
from services.runner.summary import Summary

REWARD_GRACE_S = 60.0
"""How long to wait for rewards after the last rollout's deadline."""

_TICK_S = 0.05
_WATCH_S = 1.0
_WARN_EVERY_S = 15.0
_STALLED_S = 45.0
"""No warning of missing rewards before this. On a busy machine a reward worker needs 20 to 40 s to
load its function. With `_WARN_EVERY_S`, the first warning comes within a minute.
"""
_NO_LEARNER_S = 60.0
"""Until then a learner may still be loading its model."""


class Watcher(Protocol):
    """Shows how a run goes."""

    def on_change(self, run: Run) -> None:
        """The run has changed; called often."""
        ...

    def on_attempt(self, attempt: Attempt) -> None:
        """An agent process ended."""
        ...

    def on_update(self, version: Version, point: CurvePoint | None) -> None:
        """A new version is served. `point`: the rewards under the version before."""
        ...

    def on_warning(self, text: str) -> None:
        """Something is wrong, in words for people. Each warning comes once."""
        ...


class Run:
    """One run; `execute` runs it."""

    def __init__(
        self,
        options: RunOptions,
        settings: RunnerSettings,
        kafka: KafkaSettings,
        watcher: Watcher,
        jobs: JobQueue | None = None,
    ) -> None:
        """`jobs`: run these groups, and not the tasks of the file."""
        self.options = options
        self._jobs = jobs
        self._settings = settings
        self._kafka = kafka
        self._watcher = watcher
        self._codec = make_codec()
        self.board = Scoreboard(options.rewards, options.weights, settings.policy)
        self.pace = Pace(settings.policy, options.max_ahead)
        self.learners = Learners()
        self._outcomes = Outcomes(self.learners, rewarded=bool(options.rewards))
        self.diagnosis = Diagnosis(
            options, settings.policy, self.board, self._outcomes, self.learners
        )
        self._gave_up: str | None = None
        self._warnings = Warnings(watcher.on_warning)
        self.groups = 0
        self.ended = 0
        self.running = 0
        self.began = time.monotonic()
        self._planned: int | None = None
        self._last_deadline_ms = 0
        self._updated_at: list[float] = []
        self._settled = (0, 0.0)
        self._changed = asyncio.Event()

    @property
    def updates(self) -> int:
        """How many new versions were served since the start."""
        return len(self.pace.updates)

    @property
    def share(self) -> float | None:
        """How much of the run is done, from 0 to 1; None if that is not known."""
        if self.options.updates is not None:
            return min(1.0, self.updates / self.options.updates)
        return self.ended / self._planned if self._planned else None

    @property
    def seconds(self) -> float:
        """Seconds since the first rollout."""
        return time.monotonic() - self.began

    async def execute(self) -> Summary:
        """Run to the end, or until the run is useless. Cancelling stops every process.

        Raises RunnerError, ProcessError, LogUnavailable.
        """
        reason = "the run was stopped"
        try:
            summary = await self._execute()
            reason = self._gave_up or "the run has ended"
            return summary
        except (RunnerError, ProcessError, LogUnavailable) as error:
            reason = str(error)
            raise
        finally:
            if self._jobs is not None:
                self._jobs.end(reason)

    async def _execute(self) -> Summary:
        tasks: list[Task] = []
        if self._jobs is None:
            tasks = tasks_to_run(self.options)
            self._planned = planned_rollouts(len(tasks), self.options)
        environment = own_environment(self.options)
        program = find_program(
            self.options.command, environment.get("PATH"), bool(self.options.preload)
        )
        async with contextlib.AsyncExitStack() as stack:
            fork_server = await stack.enter_async_context(
                ForkServer(program.python or sys.executable, self.options.preload, environment)
            )
            self.pace.begin_with(await asyncio.to_thread(self._served))
            await asyncio.to_thread(self._read_learners)
            self._set_max_ahead()
            self._warnings.of_options(self.options, self._settings.policy, self.learners)
            topics = (EPISODES, AGENT_REWARDS, TRAINING_LEDGER, POLICY_APPLIED, POLICY_UPDATES)
            await stack.enter_async_context(Feed(self._kafka, self._codec, topics, self.on_event))
            gateway = await stack.enter_async_context(
                GatewayClient(
                    self._settings.gateway_url, self._settings.admin_key.get_secret_value()
                )
            )
            judge = (
                stack.enter_context(
                    _cancelled_at_end(run_reward_workers(fork_server, self.options, self._settings))
                )
                if self.options.rewards
                else None
            )
            expert = (
                await stack.enter_async_context(
                    Expert(
                        self.options.expert,
                        self._watcher.on_warning,
                        concurrency=self.options.concurrency,
                        timeout_s=self.options.deadline_s,
                    )
                )
                if self.options.expert is not None
                else None
            )
            rollouts = RolloutRunner(
                gateway, fork_server, program, environment, self.options, expert
            )
            self.began = time.monotonic()
            stack.enter_context(_cancelled_at_end(self._watch()))
            try:
                await self._watching(judge, self._play(tasks, gateway, rollouts))
            except GaveUp as reason:
                self._gave_up = str(reason)
        return self.summary()

    def on_event(self, event: Event) -> None:
        """Apply an event from Kafka."""
        match event:
            case Episode() if event.rollout_id in self.board:
                self.board.on_episode(event)
                self._outcomes.on_episode(event)
                self.diagnosis.note(event.group_id)
                self._pass_over_foreign(event.group_id)
                if self._jobs is not None:
                    self._jobs.note(event)
                self._finish_if_done(event.group_id)
            case AgentReward() if event.rollout_id in self.board:
                self.board.on_reward(event)
                self.diagnosis.note(event.group_id)
                self._warnings.of_reward(event)
                self._finish_if_done(event.group_id)
            case LedgerEntry() if self.board.scores(event.group_id):
                self.pace.on_ledger(event)
                self._outcomes.on_ledger(event)
                self._warnings.of_entry(event)
            case PolicyApplied():
                self._on_applied(event)
            case PolicyUpdate():
                self.learners.on_update(event)
                self._set_max_ahead()
            case _:
                return
        self._changed.set()
        self._watcher.on_change(self)

    def _finish_if_done(self, group_id: str) -> None:
        if self._jobs is not None and self.board.is_done(group_id):
            self._jobs.finish(group_id, self.board.scores(group_id))

    def _pass_over_foreign(self, group_id: str) -> None:
        """Do not wait for the policy's learner in a group that only other policies answered."""
        answered = self._outcomes.policies(group_id)
        if answered and self._settings.policy not in answered and self.board.has_ended(group_id):
            self.pace.pass_over(group_id)

    def _on_applied(self, event: PolicyApplied) -> None:
        before, served = self.updates, self.pace.served
        self.pace.on_applied(event)
        if self.updates > before:
            self._updated_at.append(self.seconds)
            self._watcher.on_update(self.pace.served, self.board.reward_of(str(served)))

    def _read_learners(self) -> None:
        for record in read_all(self._kafka, POLICY_UPDATES, self._codec):
            if isinstance(record.event, PolicyUpdate):
                self.learners.on_update(record.event)

    def _set_max_ahead(self) -> None:
        """Let as many groups wait as the learner's batch asks for, if the options do not say."""
        options = self.options
        if options.max_ahead is None and options.mode is Mode.train and options.expert is None:
            batch = self.learners.config(self._settings.policy).groups
            self.pace.max_ahead = usual_max_ahead(batch)

    async def _watch(self) -> None:
        """Update the display every second and warn of problems, until cancelled."""
        next_warning = time.monotonic() + _WARN_EVERY_S
        while True:
            await asyncio.sleep(_WATCH_S)
            self._watcher.on_change(self)
            if self._jobs is not None:
                for group_id in self._jobs.overdue(now_ms()):
                    self._jobs.finish(group_id, self.board.scores(group_id))
            if time.monotonic() >= next_warning:
                next_warning = time.monotonic() + _WARN_EVERY_S
                self._warnings.of_state(self._what_is_wrong())

    def _what_is_wrong(self) -> list[str]:
        """What is wrong now."""
        ended = self.ended if self.seconds > _STALLED_S else 0
        return [*self.diagnosis.warnings(ended), *self._waits_for_learner()]

    def _waits_for_learner(self) -> list[str]:
        """Warn if no group was settled for long, and no more can be started."""
        if (
            self._settled[0] != self.pace.settled
            or self.pace.may_start(now_ms())
            or self.diagnosis.done < self.groups
        ):
            self._settled = (self.pace.settled, self.seconds)
        return lines_of(
            Facts(
                learners=(
                    LearnerFacts(
                        policy=self._settings.policy,
                        waiting_groups=self.pace.ahead,
                        waited_s=self.seconds - self._settled[1],
                    ),
                )
            )
        )

    def _give_up_if_useless(self) -> None:
        """Raise GaveUp if the last groups were useless, or awaited versions cannot come."""
        limit = self.options.give_up_after
        useless = len(self.diagnosis.useless()) if limit else 0
        if limit and useless >= limit:
            raise GaveUp(f"gave up after {useless} useless groups in a row (--give-up-after)")
        waits = (
            self.options.waits_for_learner
            and not self.pace.may_start(now_ms())
            and self.diagnosis.done >= self.groups
        )
        if (
            limit
            and waits
            and self.seconds > _NO_LEARNER_S
            and (reason := self.diagnosis.waits_in_vain())
        ):
            raise GaveUp(f"gave up: {reason}")

    def _served(self) -> Version:
        served = self.pace.served
        for record in read_all(self._kafka, POLICY_APPLIED, self._codec):
            event = record.event
            if (
                isinstance(event, PolicyApplied)
                and event.policy == served.policy
                and event.outcome is ApplyOutcome.applied
            ):
                served = max(served, parse_version(event.version))
        return served

    async def _play(
        self, tasks: list[Task], gateway: GatewayClient, rollouts: RolloutRunner
    ) -> None:
        slots = asyncio.Semaphore(self.options.concurrency)
        try:
            async with asyncio.TaskGroup() as crew:
                async for job in self._jobs_of(tasks):
                    if not await self._may_go_on(slots):
                        break
                    group = await self._declare(gateway, job)
                    for grant in group.rollouts:
                        crew.create_task(self._one(slots, rollouts, group, grant.index, job.task))
        except BaseExceptionGroup as errors:
            raise first_error(errors) from errors
        while (
            self.options.waits_for_learner
            and not self._is_satisfied()
            and not self.pace.is_idle(now_ms())
        ):
            self._give_up_if_useless()
            await self._something()
        await self._rewards()

    async def _jobs_of(self, tasks: list[Task]) -> AsyncIterator[Job]:
        """The groups to run: those of the tasks, or those that are asked for."""
        if self._jobs is None:
            for task in in_order(tasks, self.options):
                yield Job(task, self.options.prompt_version)
            return
        while not self._jobs.is_closed:
            job = self._jobs.take()
            if job is not None:
                yield job
                continue
            self._give_up_if_useless()
            await self._something()

    async def _may_go_on(self, slots: asyncio.Semaphore) -> bool:
        """Wait for a free slot and for the learner; False if the run has reached its goal."""
        while not self._is_satisfied():
            self._give_up_if_useless()
            if self.pace.may_start(now_ms()) and not slots.locked():
                return True
            await self._something()
        return False

    def _is_satisfied(self) -> bool:
        options = self.options
        if options.updates is not None and self.updates >= options.updates:
            return True
        return options.until_version is not None and self.pace.served >= options.until_version

    async def _declare(self, gateway: GatewayClient, job: Job) -> Group:
        options = self.options
        group = await gateway.declare(
            task=job.task,
            n=options.n,
            mode=options.mode,
            model=options.model,
            deadline_s=options.deadline_s,
            run_id=options.run_id,
            max_attempts=options.max_attempts,
            rewards=tuple(options.rewards),
            weights=options.weights,
            credit_rule=options.credit_rule,
            served_by=options.served_by,
            prompt_version=job.prompt_version,
        )
        if self._jobs is not None:
            due_ms = group.deadline + int(REWARD_GRACE_S * 1000)
            self._jobs.start(job, group.group_id, due_ms)
        self.groups += 1
        self._last_deadline_ms = max(self._last_deadline_ms, group.deadline)
        self.pace.start(group.group_id, group.deadline)
        for grant in group.rollouts:
            self.board.expect(group.group_id, grant.rollout_id)
        self._watcher.on_change(self)
        return group

    async def _one(
        self,
        slots: asyncio.Semaphore,
        rollouts: RolloutRunner,
        group: Group,
        index: int,
        task: Task,
    ) -> None:
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
        """Wait until every rollout has its rewards, or the time for them is over."""
        give_up = self._last_deadline_ms / 1000 + REWARD_GRACE_S
        while self.board.open_groups() and time.time() < give_up:
            await self._something()
        missing = len(self.board.open_groups())
        if missing:
            self._watcher.on_warning(
                f"{missing} groups lack episodes or rewards {REWARD_GRACE_S:.0f} s after their "
                "deadline: see `fulgurite status` and the reward workers' logs in "
                f"{self._settings.data_dir / 'logs'}"
            )

    async def _something(self) -> None:
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TICK_S * 4):
                await self._changed.wait()

    async def _watching(
        self, judge: asyncio.Task[None] | None, play: Coroutine[Any, Any, None]
    ) -> None:
        """Await `play`; stop it if a reward worker ends."""
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
                with contextlib.suppress(asyncio.CancelledError, RunnerError, ProcessError):
                    await playing

    def _problem(self) -> str | None:
        """Why the run was useless; None if it was not, or if it is too early to know."""
        groups = self.board.groups()
        useless = self.diagnosis.useless()
        in_vain = bool(groups) and (len(useless) == len(groups) or self.diagnosis.all_unscored())
        if self._gave_up is None and not in_vain:
            return None
        return "\n".join(
            [
                *([self._gave_up] if self._gave_up else []),
                *self.diagnosis.explain(useless or groups),
            ]
        )

    def summary(self, *, interrupted: bool = False, error: str | None = None) -> Summary:
        """Return the result so far. `error`: why the run cannot continue."""
        return Summary(
            actions=dict(self.diagnosis.actions()) if self.options.mode is Mode.train else {},
            problem=None if interrupted or error is not None else self._problem(),
            interrupted=interrupted,
            warnings=self._what_is_wrong(),
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
            error=error,
        )


@contextlib.contextmanager
def _cancelled_at_end(coroutine: Coroutine[Any, Any, None]) -> Generator[asyncio.Task[None]]:
    task = asyncio.create_task(coroutine)
    try:
        yield task
    finally:
        task.cancel()
