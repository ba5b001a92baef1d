"""Hands a run the groups that another thread asks for, and hands back what became of them.

For searches that decide what to run next by what they have seen. The results are futures, which end
with an error if the run ends before them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

import msgspec

from fulgurite.events import Episode
from services.runner.errors import RunnerError
from services.runner.options import Task
from services.runner.scoreboard import Score


class GroupResult(msgspec.Struct, frozen=True):
    """What became of a group."""

    group_id: str
    scores: tuple[Score, ...]
    episodes: tuple[Episode, ...]
    """The last attempt of each rollout that has ended."""


class Job(msgspec.Struct, frozen=True, eq=False):
    """A group to run."""

    task: Task
    prompt_version: str | None
    """The version of the prompt that its rollouts are served with; None: the one in force."""
    result: Future[GroupResult] = msgspec.field(default_factory=Future[GroupResult])


class _Running(msgspec.Struct):
    job: Job
    due_ms: int
    episodes: dict[str, Episode] = {}


class JobQueue:
    """The groups of one run. `submit` and `close` may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[Job] = deque()
        self._taken: list[Job] = []
        """Those whose group is not declared yet."""
        self._running: dict[str, _Running] = {}
        self._closed = False
        self._ended: str | None = None

    @property
    def is_closed(self) -> bool:
        """Whether there is no more to run."""
        return self._closed and not self._waiting

    def submit(self, task: Task, prompt_version: str | None) -> Future[GroupResult]:
        """Ask for a group. The future may end with RunnerError."""
        job = Job(task, prompt_version)
        with self._lock:
            if self._ended is None:
                self._waiting.append(job)
                return job.result
        job.result.set_exception(RunnerError(self._ended))
        return job.result

    def close(self) -> None:
        """Ask for no more: the run ends once it is done with what was asked."""
        self._closed = True

    def take(self) -> Job | None:
        """The next group to run; None while there is none."""
        with self._lock:
            if not self._waiting:
                return None
            job = self._waiting.popleft()
            self._taken.append(job)
            return job

    def start(self, job: Job, group_id: str, due_ms: int) -> None:
        """The group is declared, and is given up at this time, Unix milliseconds."""
        self._taken.remove(job)
        self._running[group_id] = _Running(job, due_ms)

    def note(self, episode: Episode) -> None:
        """An attempt has ended."""
        running = self._running.get(episode.group_id)
        if running is not None and not episode.will_retry:
            running.episodes[episode.rollout_id] = episode

    def overdue(self, now_ms: int) -> list[str]:
        """The groups that run and whose time is over."""
        return [group for group, running in self._running.items() if running.due_ms <= now_ms]

    def finish(self, group_id: str, scores: Sequence[Score]) -> None:
        """Every rollout of the group has its rewards, or the time for them is over."""
        running = self._running.pop(group_id, None)
        if running is not None:
            running.job.result.set_result(
                GroupResult(group_id, tuple(scores), tuple(running.episodes.values()))
            )

    def end(self, reason: str) -> None:
        """The run has ended: what was asked for and is not done ends with an error."""
        with self._lock:
            self._ended = reason
            running = (one.job for one in self._running.values())
            left = [*self._waiting, *self._taken, *running]
            self._waiting.clear()
        self._taken.clear()
        self._running.clear()
        for job in left:
            job.result.set_exception(RunnerError(reason))
