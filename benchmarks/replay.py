"""`fulgurite replay` against the least that any reader of the same events has to do: consume and
decode them.

`python -m benchmarks.replay` starts a broker, writes groups as the gateway does, and prints records
per second, of the wall and of CPU, of both, interleaved. The replay stitches, closes, encodes, and
writes to a topic, acknowledged. Results: replay.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from fulgurite.avro.codec import Codec
from fulgurite.events import AgentReward, AgentStatus, LlmCall
from fulgurite.topics import AGENT_REWARDS, AGENT_STATUS, LLM_CALLS, Topic
from services.common.kafka.consumer import read_all
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import create_topics
from services.local_stack.kafka_local import LocalKafka
from services.replay.closings import Changes
from services.replay.groups import INPUTS, read_groups
from services.replay.log_source import LogSource
from services.replay.replay import run
from services.replay.sinks import TopicSink
from services.rewarder.closing_settings import ClosingSettings
from tests.synthetic import make_group

PLACES: dict[type, Topic] = {
    LlmCall: LLM_CALLS,
    AgentStatus: AGENT_STATUS,
    AgentReward: AGENT_REWARDS,
}


def fill(settings: KafkaSettings, codec: Codec, groups: int) -> None:
    """Groups of 8 rollouts with 10 calls each."""
    producer = EventProducer(settings, codec, "benchmark")
    for number in range(groups):
        futures = [
            producer.submit(PLACES[type(event)], event.group_id, event)
            for event in make_group(number, size=8, turns=10)
        ]
        for future in futures:
            future.result()
    producer.close()


def bare(settings: KafkaSettings, codec: Codec) -> int:
    """Consume and decode; records."""
    return sum(
        record.event is not None for topic in INPUTS for record in read_all(settings, topic, codec)
    )


def replayed(settings: KafkaSettings, codec: Codec, name: str) -> int:
    """A whole replay into a new topic; rows."""
    source = LogSource(settings, codec)
    sink = TopicSink(name, append=False, settings=settings, codec=codec)
    report = run(
        read_groups(source, codec),
        sink,
        source=source,
        codec=codec,
        changes=Changes(),
        settings=ClosingSettings(),
    )
    sink.close()
    return report.rows


def main() -> None:
    """Print both rates and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    codec = Codec()
    with tempfile.TemporaryDirectory() as folder, LocalKafka(Path(folder), heap_mb=384) as kafka:
        settings = KafkaSettings(bootstrap_servers=kafka.bootstrap_servers, topic_prefix="bench.")
        create_topics(settings)
        fill(settings, codec, chosen.groups)
        ratios: list[tuple[float, float]] = []
        for number in range(chosen.rounds):
            began = time.perf_counter(), time.process_time()
            records = bare(settings, codec)
            between = time.perf_counter(), time.process_time()
            rows = replayed(settings, codec, f"again.{number}")
            ended = time.perf_counter(), time.process_time()
            print(f"{records:,} records, {rows:,} rows", end="")
            first, second = [
                [b - a for a, b in zip(*pair, strict=True)]
                for pair in ((began, between), (between, ended))
            ]
            ratios.append((first[0] / second[0], first[1] / second[1]))
            for place, unit in enumerate(("s", "CPU s")):
                rates = (
                    f"{records / first[place]:,.0f} and {records / second[place]:,.0f} records / "
                    f"{unit}"
                )
                print(f"; bare and replay {rates}, ratio {ratios[-1][place]:.2f}", end="")
            print(flush=True)
        print(
            "median ratios "
            f"{', '.join(f'{statistics.median(ratio):.2f}' for ratio in zip(*ratios, strict=True))}"
        )


if __name__ == "__main__":
    main()
