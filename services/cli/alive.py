"""Tells which services of a deployment are running, as far as that can be seen from outside.

Stream processors, reward workers and judges are members of consumer groups. Learner and appliers
are not. Under the local stack they touch a file in FULGURITE_DATA_DIR; elsewhere only the time of
their last event is known.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from fulgurite.enums import UpdateKind
from fulgurite.events import PolicyApplied, PolicyUpdate
from fulgurite.learning.policy_epochs import PolicyEpochs
from services.common.runtime.clock import now_ms
from services.local_stack.exports import is_running

PROCESSORS = ("aggregator", "rewarder")
WORKERS = {"reward-worker.": "reward workers", "judge.": "judges"}

_AT_WORK = frozenset(
    {"stable", "preparing_rebalancing", "completing_rebalancing", "assigning", "reconciling"}
)
_BEAT_S = 20.0
_STEP_S = 900.0
"""The learner touches its file between steps, and a step may take long."""


class ServiceState(msgspec.Struct, frozen=True):
    """The state of one service; `alive` is None if it is not known."""

    service: str
    alive: bool | None
    said: str


class Progress(msgspec.Struct, frozen=True):
    """What the learner of a policy last wrote."""

    policy: str
    version: str
    updated_at: int | None
    """Unix milliseconds of the newest update; None before the first."""
    claimed_at: int
    """Unix milliseconds of the last start of a learner."""
    reward_mean: float | None
    groups: int | None
    groups_with_signal: int | None
    """The groups of them whose rewards differed; only these give a training signal."""


def processors(prefix: str, groups: Mapping[str, str]) -> list[ServiceState]:
    """The states of processors, reward workers and judges. `groups`: consumer group → state."""
    found = [_processor(name, groups.get(prefix + name)) for name in PROCESSORS]
    for start, title in WORKERS.items():
        at_work = sum(
            name.startswith(prefix + start) and state in _AT_WORK for name, state in groups.items()
        )
        found.append(ServiceState(title, None, f"{at_work} running" if at_work else "none running"))
    return found


def _processor(name: str, state: str | None) -> ServiceState:
    alive = state in _AT_WORK
    return ServiceState(
        name, alive, "running" if alive else "not running: its consumer group has no member"
    )


def finished(prefix: str, group: str, state: str) -> bool:
    """Whether the consumer group was left behind by a finished run."""
    return state not in _AT_WORK and any(
        group.startswith(f"{prefix}{start}run-") for start in WORKERS
    )


def progress(updates: Iterable[PolicyUpdate]) -> list[Progress]:
    """What each policy's learner last wrote. `updates`: the events of the topic, in log order."""
    claimed: dict[str, PolicyUpdate] = {}
    newest: dict[str, PolicyUpdate] = {}
    epochs: defaultdict[str, PolicyEpochs] = defaultdict(PolicyEpochs)
    for event in updates:
        if epochs[event.policy].apply(event):
            newest[event.policy] = event
        elif event.kind is UpdateKind.claim:
            claimed[event.policy] = event
    return [
        _progress(policy, claim, newest.get(policy)) for policy, claim in sorted(claimed.items())
    ]


def _progress(policy: str, claim: PolicyUpdate, update: PolicyUpdate | None) -> Progress:
    metrics = update.metrics if update is not None else {}
    groups, with_signal = (
        int(metrics[name]) if name in metrics else None for name in ("groups", "groups_with_signal")
    )
    return Progress(
        policy=policy,
        version=(update.version if update is not None else None) or f"{policy}@0.0",
        updated_at=update.event_time if update is not None else None,
        claimed_at=claim.event_time,
        reward_mean=metrics.get("reward_mean"),
        groups=groups,
        groups_with_signal=with_signal,
    )


def learners(found: Iterable[Progress]) -> list[ServiceState]:
    """The state of a learner for each policy that one was ever started for."""
    states: list[ServiceState] = []
    for one in found:
        own = f"learner-{one.policy}"
        pulse = _pulse(own if _pulse_file(own).is_file() else "learner", _STEP_S)
        states.append(
            ServiceState(f"learner of {one.policy}", pulse.alive, f"{pulse.said}; {_learned(one)}")
        )
    if not states:
        pulse = _pulse("learner", _STEP_S)
        states.append(
            ServiceState("learner", pulse.alive, f"{pulse.said}; never started on this Kafka")
        )
    return states


def _learned(one: Progress) -> str:
    if one.updated_at is None:
        return f"started {ago(one.claimed_at)}, no update yet"
    signal = (
        f", {one.groups_with_signal} of {one.groups} groups with a training signal"
        if one.groups is not None
        else ""
    )
    reward = f", mean reward {one.reward_mean:.3f}" if one.reward_mean is not None else ""
    return f"{one.version} {ago(one.updated_at)}{reward}{signal}"


def appliers(applied: Iterable[PolicyApplied]) -> list[ServiceState]:
    """The state of an applier for each backend. `applied`: the topic's events in log order."""
    last = {event.backend: event.event_time for event in applied}
    if not last:
        pulse = _pulse("applier", _BEAT_S)
        return [ServiceState("applier", pulse.alive, f"{pulse.said}; it has reported nothing yet")]
    states: list[ServiceState] = []
    for backend, at in sorted(last.items()):
        pulse = _pulse("applier" if len(last) == 1 else f"applier-{backend}", _BEAT_S)
        states.append(
            ServiceState(
                f"applier of {backend}", pulse.alive, f"{pulse.said}; last report {ago(at)}"
            )
        )
    return states


def _pulse(name: str, within_s: float) -> ServiceState:
    data = _data_dir()
    try:
        silent_s = time.time() - _pulse_file(name).stat().st_mtime
    except OSError:
        return ServiceState(name, None, "cannot be seen from here")
    if not is_running(data):
        return ServiceState(name, False, "not running: the local stack is down")
    if silent_s > within_s:
        return ServiceState(
            name, False, f"silent for {silent_s:.0f} s: see {data / 'logs' / f'{name}.log'}"
        )
    return ServiceState(name, True, "running")


def _data_dir() -> Path:
    return Path(os.environ.get("FULGURITE_DATA_DIR", ""))


def _pulse_file(name: str) -> Path:
    return _data_dir() / "run" / f"{name}.pulse"


def ago(at_ms: int) -> str:
    """Write a time as an age: `5 s ago`, `3 min ago`, `2.0 h ago`, `4 days ago`."""
    seconds = max(0, now_ms() - at_ms) / 1000
    if seconds < 120:
        return f"{seconds:.0f} s ago"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min ago"
    return (
        f"{seconds / 3600:.1f} h ago" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days ago"
    )
