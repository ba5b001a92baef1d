"""A small log of everything that a deployment does, made by the core's own functions, and the same
log as `fulgurite ledger` and `fulgurite rollouts list` read it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path

import msgspec

from fulgurite.avro.codec import Codec
from fulgurite.enums import (
    ApplyOutcome,
    ArtifactFormat,
    CallOutcome,
    LedgerTerm,
    Mode,
    PromptKind,
    SelectionKind,
    SelectionMode,
    StatusKind,
    TuningStage,
    UpdateKind,
)
from fulgurite.episodes.stitching import Input, stitch
from fulgurite.events import (
    AgentReward,
    AgentStatus,
    Artifact,
    DeadLetter,
    Event,
    LedgerEntry,
    LlmCall,
    PolicyApplied,
    PolicyRoute,
    PolicyUpdate,
    PromptCost,
    PromptScore,
    PromptTuning,
    PromptUpdate,
    RouteTarget,
    SelectionDecision,
    Trajectory,
)
from fulgurite.failures import FailureKind
from fulgurite.groups.group_revisions import revision_of
from fulgurite.groups.group_state import GroupState
from fulgurite.ids import action_id, derive_id
from fulgurite.ledger.balance import balance
from fulgurite.ledger.model import Balance, Sources
from fulgurite.topics import TOPICS, partition_of
from services.console.index.batch import LogRecord
from services.console.index.writer import IndexWriter
from services.replay.groups import Group
from services.rewarder.closing_settings import ClosingSettings
from tests.services.replay.memory_log import PLACES, MemoryLog
from tests.synthetic import make_call, make_declared, make_reward, make_status

CODEC = Codec()
PREFIX = "fulgurite."
TOPIC_OF = {kind: topic for topic in TOPICS for kind in topic.carries}
NOW_MS = 1_700_000_000_000


class RecordedLog:
    """Topics in memory; a group's partition is that of its key."""

    def __init__(self) -> None:
        self.records: list[LogRecord] = []
        self._memory = MemoryLog(one_clock=True)
        self._ends: defaultdict[tuple[str, int], Iterator[int]] = defaultdict(count)

    def append(self, *events: Event) -> None:
        """Write events to the ends of their topics."""
        for event in events:
            topic = TOPIC_OF[type(event)]
            key = str(getattr(event, "group_id", "")).encode()
            partition = partition_of(key, topic.partitions) if topic.partitions > 1 else 0
            self.records.append(
                LogRecord(
                    topic.name,
                    partition,
                    next(self._ends[topic.name, partition]),
                    event.event_time,
                    CODEC.encode(event),
                    event,
                )
            )
            if type(event) in PLACES:
                self._memory.append(event)

    def append_bytes(self, topic: str, value: bytes, error: str) -> None:
        """Write bytes that cannot be decoded to partition 0."""
        offset = next(self._ends[topic, 0])
        self.records.append(LogRecord(topic, 0, offset, NOW_MS, value, None, error))

    def groups(self) -> list[Group]:
        """The groups, as `fulgurite rollouts list` reads them."""
        return self._memory.groups()

    def balance(self) -> Balance:
        """The books, as `fulgurite ledger` has them."""

        def of(topic: str) -> Iterable[LogRecord]:
            return [record for record in self.records if record.topic == topic]

        return balance(
            Sources(
                updates=of("policy.updates"),
                dead_letters=of("dead.letters"),
                ledger=of("training.ledger"),
                trajectories=of("trajectories"),
                episodes=of("episodes"),
                statuses=of("agent.status"),
                calls=of("llm.calls"),
            ),
            CODEC.decode,
            NOW_MS,
        )


class Processors:
    """Aggregator, rewarder and learner of one group, run when told."""

    def __init__(self, log: RecordedLog) -> None:
        self._log = log
        self._inputs: defaultdict[tuple[str, int], list[Input]] = defaultdict(list)
        self._declared: list[Input] = []
        self._state = GroupState()
        self._revision: str | None = None
        self.rows: list[Trajectory] = []

    def take(self, *events: LlmCall | AgentStatus | AgentReward) -> None:
        """Log inputs."""
        self._log.append(*events)
        for event in events:
            if isinstance(event, AgentReward):
                self._state.add(event)
            elif event.rollout_id is None:
                self._declared.append(event)
            else:
                self._inputs[event.rollout_id, event.attempt].append(event)

    def stitch(self) -> None:
        """Log the episodes of ended attempts."""
        for inputs in self._inputs.values():
            episode = stitch([*inputs, *self._declared])
            if episode is not None and self._state.add(episode):
                self._log.append(episode)

    def close(self) -> None:
        """Log a closing."""
        first = next(iter(self._state.episodes.values()))
        outputs = self._state.close(first.group_id, ClosingSettings().rules())
        closed = self._state.closed(outputs, self._revision)
        assert closed is not None
        entries = [one for one in outputs if isinstance(one, LedgerEntry)]
        rows = [one for one in outputs if not isinstance(one, LedgerEntry)]
        self._log.append(*entries, *rows, closed)
        self._revision = revision_of(outputs)
        self.rows = [row for row in rows if isinstance(row, Trajectory)]

    def train(self, version: str, term: LedgerTerm = LedgerTerm.trained) -> None:
        """Log that a learner accounted for the rows of the last closing."""
        row = self.rows[0]
        self._log.append(
            LedgerEntry(
                event_id=derive_id("learner", row.group_revision, term, version),
                event_time=6_000,
                policy="policy",
                group_id=row.group_id,
                group_revision=row.group_revision,
                term=term,
                actions=tuple(
                    action_id(action.call_id, action.choice)
                    for one in self.rows
                    for action in one.actions
                    if action.loss
                ),
                version=version,
                source="learner",
            )
        )


def make_update(step: int, kind: UpdateKind = UpdateKind.update, epoch: int = 1) -> PolicyUpdate:
    """A claim, or a version with metrics."""
    is_update = kind is UpdateKind.update
    return PolicyUpdate(
        event_id=derive_id("update", epoch, step, kind),
        event_time=5_000 + step,
        policy="policy",
        kind=kind,
        epoch=epoch,
        step=step,
        version=f"policy@{epoch}.{step}" if is_update else None,
        learner_id=f"learner {epoch}",
        artifact=Artifact(
            uri="file:///weights", sha256="0" * 64, size=7, format=ArtifactFormat.full
        )
        if is_update
        else None,
        trained_actions=4 if is_update else 0,
        metrics={"loss": 0.5, "grad_norm": float("nan")} if is_update else {},
        config=None if is_update else '{"optimizer": {"lr": 1e-5}}',
    )


def record_everything() -> RecordedLog:
    """Groups in every state, and an event of every kind."""
    log = RecordedLog()
    log.append(make_update(0, UpdateKind.claim), make_update(1))
    _groups(log)
    log.append(
        PolicyRoute(
            event_id="route 1",
            event_time=5_100,
            alias="policy",
            targets=(
                RouteTarget(
                    policy="policy", version="policy@1.1", weight=3, parameters={"top_p": 0.9}
                ),
                RouteTarget(policy="", upstream="gpt", weight=1),
            ),
            reason="canary",
            author="a person",
        ),
        PolicyApplied(
            event_id="applied 1",
            event_time=5_200,
            policy="policy",
            backend="local",
            engine_id="e1",
            version="policy@1.1",
            outcome=ApplyOutcome.applied,
            probe_error=0.01,
            seconds=1.5,
        ),
        PromptUpdate(
            event_id="prompt 1",
            event_time=5_300,
            alias="policy",
            kind=PromptKind.set,
            version="prompt@1",
            system="Be brief.",
            sections={"rules": "none"},
            reason="shorter",
            author="a person",
        ),
        PromptTuning(
            event_id="tuning 1",
            event_time=5_310,
            alias="policy",
            tuning="t1",
            method="demonstrations",
            train_tasks=2,
            validation_tasks=1,
            seed=0,
            author="a person",
        ),
        PromptScore(
            event_id="score 1",
            event_time=5_320,
            alias="policy",
            tuning="t1",
            version="prompt@1",
            stage=TuningStage.validation,
            task="a hash",
            group_id="group",
            rewards=(1.0, 0.0),
            unscored=1,
            cost=PromptCost(calls=3, prompt_tokens=30, completion_tokens=12),
        ),
        SelectionDecision(
            event_id="selection 1",
            event_time=5_330,
            alias="policy",
            kind=SelectionKind.shares,
            mode=SelectionMode.shadow,
            epoch=1,
            selector_id="s1",
            targets=(RouteTarget(policy="policy", version="policy@1.1", weight=1),),
            reason="it earns more",
        ),
        DeadLetter(
            event_id="dead 1",
            event_time=5_400,
            stage="aggregator",
            error_type="BadClaim",
            error="Authorization: Bearer abcdefghijklmnop was refused",
            topic=f"{PREFIX}llm.calls",
            partition=0,
            offset=3,
            key=b"\xff",
            value=CODEC.encode(make_call(9, 0)),
        ),
        # A learner that was superseded, and its update, which does not count.
        make_update(1, UpdateKind.claim, epoch=2),
        make_update(2, epoch=1),
        make_update(2, epoch=2),
    )
    log.append_bytes("llm.calls", b"\x07nonsense", "MalformedFrame: no header")
    return log


def _groups(log: RecordedLog) -> None:
    # 1: closed, trained; a reward that came late closed it again, and amended it.
    one = Processors(log)
    _play(one, 1, run_id="run-1")
    one.take(make_reward(1, 0, 1.0), make_reward(1, 1, 0.0))
    one.close()
    one.train("policy@1.1")
    one.take(make_reward(1, 1, 0.5, at=7_000))
    one.close()
    one.train("policy@1.1", LedgerTerm.amended)
    # 2: closed without rewards; then they came, and its rows wait for the learner.
    two = Processors(log)
    _play(two, 2, run_id="run-1", at=2_000)
    two.close()
    two.take(make_reward(2, 0, 1.0), make_reward(2, 1, 0.0), make_reward(2, 1, 0.0, name="style"))
    two.close()
    # 3: one member failed twice, and a reward function gave no value.
    three = Processors(log)
    three.take(make_declared(3, 2, max_attempts=2, run_id="run-2", at=1_500))
    for attempt in range(2):
        three.take(
            make_call(3, 0, attempt, attempt=attempt, at=1_600 + attempt),
            make_call(3, 0, 9, attempt=attempt, outcome=CallOutcome.upstream_error, at=1_650),
            make_status(
                3,
                0,
                StatusKind.failed,
                attempt=attempt,
                failure=FailureKind.agent_exception,
                will_retry=attempt == 0,
                message="sk-0123456789abcdef0123 is no key",
            ),
        )
    three.take(make_call(3, 1, at=1_700), make_status(3, 1), make_reward(3, 1, None))
    three.take(make_reward(3, 0, 0.25))
    three.stitch()
    three.close()
    # 4: ended, not closed. 5: called, not ended. 6: declared only.
    _play(Processors(log), 4, at=4_000)
    five = Processors(log)
    five.take(make_declared(5, 1), make_call(5, 0, answers=((7, 9), (8, 8, 8))))
    log.append(make_declared(6, 2))
    # 7: held out, with a reward of an action and a provisional one. 8: live, of its own.
    seven = Processors(log)
    _play(seven, 7, mode=Mode.val, run_id="run-1", weights={"reward": 2.0})
    call = make_call(7, 0, 0, mode=Mode.val)
    seven.take(
        make_reward(7, 0, 0.5, call_id=call.call_id, choice=0),
        make_reward(7, 0, 1.0, final=False, at=9_000),
        make_reward(7, 0, 0.75),
        make_reward(7, 1, 1.0, call_id="another"),
    )
    live = make_call(8, 0, mode=Mode.live, messages=[{"role": "user", "content": "hello?"}])
    log.append(msgspec.structs.replace(live, error="api key sk-0123456789abcdef0123 refused"))
    # 9: its call went to dead.letters.
    log.append(make_call(9, 0))


def _play(
    processors: Processors,
    number: int,
    *,
    at: int = 1_000,
    mode: Mode = Mode.train,
    run_id: str | None = None,
    weights: dict[str, float] | None = None,
) -> None:
    processors.take(
        make_declared(number, 2, at=at - 100, mode=mode, run_id=run_id, weights=weights)
    )
    for index in range(2):
        processors.take(make_status(number, index, StatusKind.started, at=at, mode=mode))
        for turn in range(2):
            processors.take(
                make_call(
                    number, index, turn, at=at + 10 * turn + index, mode=mode, agent="writer",
                    prompt=[1, 2, 3, *range(turn)], version=f"policy@1.{turn}",
                )
            )  # fmt: skip
        processors.take(make_status(number, index, at=at + 100 + index, mode=mode))
    processors.stitch()


def open_writer(path: Path, *, characters: int = 1_000) -> IndexWriter:
    """Open an index of this log."""
    return IndexWriter(path, CODEC, PREFIX, lambda: NOW_MS, characters=characters)
