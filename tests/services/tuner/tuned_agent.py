"""An agent and its model as one function, and a log in memory: what a tuning runs on in tests.

It writes the calls that a gateway would log. What it earns depends on the prompt that the version
makes of its request.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import msgspec

from fulgurite.enums import EpisodeOutcome, Mode
from fulgurite.events import Episode, Event, LlmCall
from fulgurite.prompts.editing import served_call
from fulgurite.prompts.examples import Example
from fulgurite.prompts.history import AS_SENT
from services.tuner.rollouts import GroupOutcome, RolloutResult, TuningTask
from services.tuner.tuning_log import TuningLog
from tests.synthetic import group_id, make_call, rollout_id

SYSTEM = "Answer."

Judge = Callable[[list[dict[str, Any]]], float]
"""The reward of what the model is served."""


class Killed(BaseException):
    """The process ends here."""


class Topic:
    """`prompt.updates` in memory."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.limit: int | None = None
        """After so many events the next one kills the process."""

    def read(self) -> list[Event]:
        return list(self.events)

    def publish(self, key: str, event: Event) -> None:
        assert key == "policy"
        if self.limit is not None and len(self.events) >= self.limit:
            raise Killed
        self.events.append(event)

    def log(self, tuning: str = "t") -> TuningLog:
        return TuningLog("policy", None, tuning, "me", self.read, self.publish)


class Agent:
    """Runs rollouts, and remembers them as the log would."""

    def __init__(self, topic: Topic, judge: Judge, n: int = 1) -> None:
        self._topic = topic
        self._judge = judge
        self._n = n
        self._recorded: dict[str, GroupOutcome] = {}
        self.ran: list[tuple[str, str]] = []
        """Question and version of each group."""
        self.earlier: list[Example] = []

    def submit(self, task: TuningTask, prompt_version: str) -> Future[GroupOutcome]:
        self.ran.append((task.task["question"], prompt_version))
        number = len(self._recorded)
        rollouts = tuple(self._rollout(task, prompt_version, number, i) for i in range(self._n))
        outcome = GroupOutcome(group_id(number), rollouts)
        self._recorded[outcome.group_id] = outcome
        done: Future[GroupOutcome] = Future()
        done.set_result(outcome)
        return done

    def groups(self, ids: set[str]) -> dict[str, GroupOutcome]:
        return {one: self._recorded[one] for one in ids if one in self._recorded}

    def examples(self) -> list[Example]:
        return list(self.earlier)

    def sent(self, question: str) -> list[dict[str, object]]:
        """The messages that it sends."""
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]

    def _rollout(
        self, task: TuningTask, prompt_version: str, group: int, index: int
    ) -> RolloutResult:
        sent = make_call(
            group,
            index,
            messages=self.sent(task.task["question"]),
            replies=[{"role": "assistant", "content": f"reply to {task.task['question']}"}],
            mode=Mode.val,
        )
        version = None if prompt_version == AS_SENT else prompt_version
        call = msgspec.structs.replace(
            sent, prompt_version=version, prompt_tokens=10, completion_tokens=2
        )
        served = served_call(call, self._topic.log().state.history)
        reward = self._judge(json.loads(served.request or "")["messages"])
        episode = make_episode(group, index, calls=(call,))
        return RolloutResult(call.rollout_id, reward, None, episode)


def make_episode(
    group: int = 0,
    index: int = 0,
    *,
    attempt: int = 0,
    will_retry: bool = False,
    calls: tuple[LlmCall, ...] = (),
) -> Episode:
    """An attempt that has finished."""
    rollout = rollout_id(group, index)
    return Episode(
        event_id=f"{rollout}/{attempt}",
        event_time=1,
        episode_id=f"{rollout}/{attempt}",
        revision="r",
        group_id=group_id(group),
        rollout_id=rollout,
        attempt=attempt,
        mode=Mode.val,
        rule="1",
        outcome=EpisodeOutcome.finished,
        will_retry=will_retry,
        started_at=1,
        ended_at=2,
        calls=calls,
    )


def tasks(name: str, count: int, **more: Any) -> tuple[TuningTask, ...]:
    return tuple(
        TuningTask(f"{name}{number}", {"question": f"{name} question number {number}", **more})
        for number in range(count)
    )
