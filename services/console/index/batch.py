"""Collects records of the log as rows, by table, until they are written together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import msgspec

from fulgurite.events import (
    AgentReward,
    AgentStatus,
    DeadLetter,
    Episode,
    Event,
    GroupClosed,
    LedgerEntry,
    LlmCall,
    PolicyApplied,
    PolicyRoute,
    PolicyUpdate,
    PromptScore,
    PromptTuning,
    PromptUpdate,
    SelectionDecision,
    Tombstone,
    Trajectory,
)
from fulgurite.learning.offline import OFFLINE
from fulgurite.learning.policy_epochs import PolicyEpochs
from fulgurite.learning.relabel import learns_elsewhere
from fulgurite.ledger.balance import dead_actions
from services.console.index import rows
from services.console.index.payloads import TOPICS, Entry, make_blocks
from services.console.index.rows import Place, Row, shortened


class LogRecord(msgspec.Struct, frozen=True, gc=False):
    """A record as it was read. `event` is None if its bytes cannot be decoded; `error` says why."""

    topic: str
    """Without the deployment's prefix."""
    partition: int
    offset: int
    timestamp: int
    """Record time in Unix milliseconds."""
    value: bytes
    event: Event | None
    error: str | None = None


class Batch:
    """The rows of some records, in the order of the log. Repeated events are left to the writer."""

    def __init__(
        self,
        decode: Callable[[bytes], Event],
        epochs: dict[str, PolicyEpochs],
        prefix: str,
        characters: int,
        keeps_payloads: bool,
    ) -> None:
        """`epochs`: the fold of `policy.updates` by policy, which goes on with the batch.

        `characters`: most of each text. `decode` reads the bytes of dead letters.
        """
        self.rows: defaultdict[str, list[Row]] = defaultdict(list)
        """By table, in order."""
        self.actions: dict[str, list[Row]] = {}
        """Rows of `actions` by trajectory."""
        self.outcomes: dict[str, list[Row]] = {}
        """Rows of `outcomes` by ledger entry."""
        self.groups: set[str] = set()
        """Groups whose rollouts or funnel change."""
        self.positions: dict[tuple[str, int], tuple[int, int]] = {}
        """Next offset and last record time, by topic and partition."""
        self._decode = decode
        self._epochs = epochs
        self._prefix = prefix
        self._characters = characters
        self._keeps_payloads = keeps_payloads
        self._payloads: defaultdict[tuple[str, int], list[Entry]] = defaultdict(list)

    def add(self, record: LogRecord) -> None:
        """Add the next record."""
        place = (record.topic, record.partition)
        self.positions[place] = (record.offset + 1, record.timestamp)
        if self._keeps_payloads and record.topic in TOPICS:
            self._payloads[place].append((record.offset, record.timestamp, record.value))
        if record.event is None:
            self.rows["unreadable"].append(
                {
                    "topic": record.topic,
                    "partition": record.partition,
                    "offset": record.offset,
                    "written_at": record.timestamp,
                    "error": shortened(record.error or "", rows.LONGEST_ERROR),
                }
            )
        else:
            self._add_event(record.event, (record.partition, record.offset), record.timestamp)

    def blocks(self) -> Iterable[Row]:
        """Make the rows of `payloads`."""
        for (topic, partition), entries in self._payloads.items():
            yield from make_blocks(topic, partition, entries)

    def _add_event(self, event: Event, place: Place, written_at: int) -> None:
        match event:
            case LlmCall():
                self._add("calls", rows.call_row(event, place, self._characters))
                self.groups.add(event.group_id)
            case AgentStatus():
                self._add_status(event, place)
            case AgentReward():
                self._add("rewards", rows.reward_row(event, place, self._characters))
                self.groups.add(event.group_id)
            case Episode():
                self._add("episodes", rows.episode_row(event, place))
                self.groups.add(event.group_id)
            case Trajectory():
                self._add("trajectories", rows.trajectory_row(event, place))
                self.actions[event.trajectory_id] = list(rows.action_rows(event, place))
            case Tombstone():
                self._add("tombstones", rows.tombstone_row(event, place))
            case GroupClosed():
                self._add("closings", rows.closing_row(event, place, written_at))
                self.groups.add(event.group_id)
            case LedgerEntry():
                self._add("ledger", rows.ledger_row(event, place))
                self.groups.add(event.group_id)
                if event.source != OFFLINE:
                    self.outcomes[event.event_id] = list(rows.outcome_rows(event, place))
            case PolicyUpdate():
                self._add_update(event, place)
            case PolicyRoute():
                self._add("routes", rows.route_row(event, place))
            case PolicyApplied():
                self._add("applied", rows.applied_row(event, place))
            case PromptUpdate():
                self._add("prompts", rows.prompt_row(event, place))
            case PromptTuning():
                self._add("prompt_tunings", rows.prompt_tuning_row(event, place))
            case PromptScore():
                self._add("prompt_scores", rows.prompt_score_row(event, place))
            case SelectionDecision():
                self._add("selections", rows.selection_row(event, place))
            case DeadLetter():
                self._add_dead_letter(event, place)
            case _:
                raise TypeError(f"{type(event).__name__} has no table")

    def _add(self, table: str, row: Row) -> None:
        self.rows[table].append(row)

    def _add_status(self, status: AgentStatus, place: Place) -> None:
        row = rows.status_row(status, place)
        if row is None:
            return
        self._add("statuses", row)
        self.groups.add(status.group_id)
        if status.declaration is not None:
            self._add("groups", rows.group_row(status, status.declaration, place))

    def _add_update(self, update: PolicyUpdate, place: Place) -> None:
        counts = self._epochs.setdefault(update.policy, PolicyEpochs()).apply(update)
        elsewhere = learns_elsewhere(update)
        self._add("updates", rows.update_row(update, place, counts=counts, elsewhere=elsewhere))

    def _add_dead_letter(self, letter: DeadLetter, place: Place) -> None:
        lost = sorted(dead_actions(letter, self._decode))
        topic = letter.topic.removeprefix(self._prefix)
        self._add("dead_letters", rows.dead_letter_row(letter, place, topic, len(lost)))
        for action in lost:
            call_id, choice = rows.split_action(action)
            self._add(
                "dead_actions",
                {"call_id": call_id, "choice": choice, "event_id": letter.event_id},
            )
