"""A user's reward function, loaded by file: `rewards.py:fn`.

`fn(episode)` gets a `fulgurite.episode_view.EpisodeView` and returns a number, numbers by name, or None for no reward; it may be async.
It runs in this process: async functions on the event loop, others in a thread. What it raises, returns wrongly or takes too long for is
an error of the function, told in the reward event, never a crash of the worker.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, cast

from fulgurite.episode_view import EpisodeView
from fulgurite.events import AgentReward, Episode
from fulgurite.ids import derive_id


class PluginError(Exception):
    """The reward function could not be loaded; the message says why and what is expected."""


class RewardFailed(Exception):
    """The reward function gave no usable value for an episode."""


class RewardPlugin:
    """A loaded function. `source` names it with its file's content hash, so that a verdict tells which code gave it."""

    def __init__(self, reference: str, name: str) -> None:
        """Raises PluginError."""
        file, _, function = reference.rpartition(":")
        path = Path(file).resolve()
        if not file or not path.is_file():
            raise PluginError(f"{reference!r}: expected FILE.py:FUNCTION with an existing file")
        self.name = name
        self.source = f"{path.name}:{function}#{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
        self._function = _load(path, function)
        self._is_async = inspect.iscoroutinefunction(self._function)

    async def judge(self, episode: Episode, pool: Executor, timeout_s: float) -> dict[str, float]:
        """Rewards by name; empty for none. Raises RewardFailed."""
        view = EpisodeView(episode)
        try:
            if self._is_async:
                given = await asyncio.wait_for(self._function(view), timeout_s)
            else:
                given = await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(pool, self._function, view), timeout_s)
        except TimeoutError as error:
            raise RewardFailed(f"no value within {timeout_s:g} s") from error
        except Exception as error:
            raise RewardFailed(f"{type(error).__name__}: {error}") from error
        return self._named(given)

    def verdicts(self, episode: Episode, values: Mapping[str, float | None], error: str | None = None) -> list[AgentReward]:
        """What the log is told; `error` says why there is no value.

        Expected names come last: a group may close with the last of them, and the others should be in it.
        """
        expected = episode.declaration.expected_rewards if episode.declaration else ()
        return [
            AgentReward(
                event_id=verdict_id(name, self.source, episode),
                event_time=episode.event_time,
                group_id=episode.group_id,
                rollout_id=episode.rollout_id,
                attempt=episode.attempt,
                name=name,
                value=value,
                final=True,
                source=self.source,
                error=error,
            )
            for name, value in sorted(values.items(), key=lambda item: (item[0] in expected, item[0]))
        ]

    def _named(self, given: object) -> dict[str, float]:
        if given is None:
            return {}
        values = cast("dict[object, object]", given) if isinstance(given, dict) else {self.name: given}
        rewards: dict[str, float] = {}
        for name, value in values.items():
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise RewardFailed(f"{name!r} is {value!r}: expected a finite number")
            rewards[str(name)] = float(value)
        return rewards


def verdict_id(name: str, source: str, episode: Episode) -> str:
    """The same function's verdict on the same revision is the same event, whoever asks for it."""
    return derive_id("reward", name, source, episode.event_id)


def _load(path: Path, function: str) -> Callable[[EpisodeView], Any]:
    spec = importlib.util.spec_from_file_location(f"fulgurite_reward_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise PluginError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    # Beside the file lies what it imports.
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise PluginError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise PluginError(f"{path} has no function {function!r}")
    return cast("Callable[[EpisodeView], Any]", found)
