"""A small whole log, recorded: what agents said of a few groups, and all that the processors wrote
of it.

`golden/log.jsonl` has a record a line, in the order in which they were written, over all topics;
`said` numbers the moments at which somebody outside spoke, and processors came to rest after each.
There are failures, retries, a group that nobody declared, one that a reward worker pays, and what
comes late: calls, ends, rewards that are taken back and given again.

`python -m tests.contract.recorded_log` records it again. Do that only where what the processors
write is meant to change: logs of deployments that exist were written before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from fulgurite.avro.codec import Codec
from fulgurite.events import AgentReward, AgentStatus, Event, LlmCall
from tests.fulgurite.simulated.deployment import Deployment
from tests.fulgurite.simulated.world import topic_of

GOLDEN = Path(__file__).with_name("golden") / "log.jsonl"
CODEC = Codec()

Said = LlmCall | AgentStatus | AgentReward


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """A record of the log."""

    topic: str
    key: str
    timestamp: int
    """Of the record, not of the event: records are a second apart."""
    event_type: str
    event_id: str
    value: bytes
    said: int | None = None
    """The moment at which somebody outside wrote it; None for what a processor wrote."""


def said_in(records: Sequence[Recorded]) -> list[list[Said]]:
    """What was said from outside, moment by moment."""
    moments: dict[int, list[Said]] = {}
    for record in records:
        if record.said is not None:
            event = CODEC.decode(record.value)
            assert isinstance(event, LlmCall | AgentStatus | AgentReward)
            moments.setdefault(record.said, []).append(event)
    return [moments[number] for number in sorted(moments)]


def record(moments: Sequence[Sequence[Said]]) -> list[Recorded]:
    """Have the processors work through what is said; all records there are in the end."""
    deployment = Deployment((), {})
    records: list[Recorded] = []
    append = deployment.world.append
    speaking: int | None = None

    def recorded(topic: str, event: Event) -> None:
        append(topic, event)
        records.append(
            Recorded(
                topic=topic,
                key=str(getattr(event, "group_id", None) or getattr(event, "policy", "")),
                timestamp=1_000 * (len(records) + 1),
                event_type=type(event).__name__,
                event_id=event.event_id,
                value=CODEC.encode(event),
                said=speaking,
            )
        )

    deployment.world.append = recorded
    for number, moment in enumerate(moments):
        speaking = number
        for event in moment:
            deployment.world.append(topic_of(event), event)
        speaking = None
        deployment.settle()
    return records


def load() -> list[Recorded]:
    """The recorded log."""
    return [msgspec.json.decode(line, type=Recorded) for line in GOLDEN.read_bytes().splitlines()]


def _moments() -> Iterator[Sequence[Said]]:
    from tests.fulgurite.test_simulation import SOURCES, amending_events, judged_sources

    yield [event for source in (*SOURCES, *judged_sources()) for event in source]
    for event in amending_events():
        yield [event]


def main() -> None:
    """Write the file."""
    lines = [msgspec.json.encode(one) for one in record(list(_moments()))]
    GOLDEN.write_bytes(b"\n".join(lines) + b"\n")


if __name__ == "__main__":
    main()
