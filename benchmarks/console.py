"""The console's index: how fast it reads, how large it is, how long each view's queries take.

`python -m benchmarks.console --calls 100000`: a real broker on this machine; the same records are
read by a bare consumer, which decodes nothing, then by one that decodes, then into the index.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import Any

from confluent_kafka import Producer, TopicPartition

from benchmarks.console_traffic import traffic
from benchmarks.gateway_parts import bench_folder, kafka
from benchmarks.tables import table
from fulgurite.avro.codec import Codec
from fulgurite.topics import TOPICS, partition_of
from services.common.kafka.consumer import make_consumer, read_until, watermarks
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import create_topics
from services.common.runtime.clock import now_ms
from services.console.index.follower import LogFollower
from services.console.index.payloads import PayloadReader
from services.console.index.reader import IndexReader
from services.console.index.retention import used_bytes
from services.console.index.settings import IndexSettings
from services.console.index.writer import IndexWriter

QUERIES = {
    "Now": "SELECT * FROM lag; SELECT * FROM serving; SELECT count(*) FROM gaps; "
    "SELECT outcome, count(*) FROM calls WHERE started_at > "
    "(SELECT max(started_at) FROM calls) - INTERVAL 5 MINUTES GROUP BY ALL",
    "Runs": "SELECT * FROM runs ORDER BY last_at DESC; "
    "SELECT * FROM run_versions WHERE run_id = 'run-1' ORDER BY version",
    "Step": "SELECT metric, list(value ORDER BY step) FROM version_metrics GROUP BY metric",
    "Funnel": "SELECT mode, term, reason, sum(actions) FROM funnel GROUP BY ALL; "
    "SELECT agent, term, reason, sum(actions) FROM funnel WHERE run_id = 'run-1' GROUP BY ALL",
    "Funnel, action by action": "SELECT term, reason, count(*) FROM action_outcomes GROUP BY ALL",
    "Rollouts": "SELECT * FROM rollouts ORDER BY began_at DESC, rollout_id LIMIT 50; "
    "SELECT count(*) FROM rollouts WHERE version = 'policy@1.7' AND reward < 0.1",
    "Rollouts, text": "SELECT * FROM rollouts WHERE answer ILIKE '%table, calls%reads%' "
    "ORDER BY began_at DESC LIMIT 50",
    "Timeline": "SELECT * FROM calls WHERE rollout_id = $rollout ORDER BY started_at; "
    "SELECT * FROM rewards WHERE rollout_id = $rollout; "
    "SELECT * FROM action_advantages WHERE rollout_id = $rollout",
    "Group": "SELECT * FROM rollouts WHERE group_id = $group; "
    "SELECT * FROM group_summaries WHERE group_id = $group; "
    "SELECT * FROM counted_rewards WHERE group_id = $group",
    "Rewards": "SELECT name, source, count(*), count(error), avg(value), quantile_cont(value, "
    "[0.1, 0.5, 0.9]) FROM rewards GROUP BY ALL; SELECT version, histogram(round(reward, 1)) "
    "FROM rollouts GROUP BY version",
    "Versions": "SELECT * FROM versions ORDER BY epoch, step",
    "Routes": "SELECT * FROM current_routes; SELECT variant, count(*), avg(reward) FROM rollouts "
    "GROUP BY variant",
    "Agents": "SELECT * FROM agents",
    "Feedback": "SELECT date_trunc('hour', event_time) AS hour, name, avg(value), count(*) "
    "FROM rewards GROUP BY ALL ORDER BY hour",
    "Dead letters": "SELECT * FROM dead_letters ORDER BY event_time DESC LIMIT 100",
    "Ledger": "SELECT policy, term, reason, sum(actions) FROM ledger GROUP BY ALL",
    "Costs": "SELECT * FROM costs",
}
"""What each view of the page asks, as statements one after the other."""


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=100_000, help="number of calls")
    parser.add_argument("--rounds", type=int, default=20, help="how often each view is asked")
    chosen = parser.parse_args()
    with bench_folder() as folder, kafka(folder) as cluster:
        settings = KafkaSettings(bootstrap_servers=cluster.bootstrap_servers, topic_prefix="bench.")
        create_topics(settings)
        records, sent = _publish(settings, chosen.calls)
        codec = Codec()
        bare = _seconds(lambda: _read(settings, lambda _: None))
        decoded = _seconds(lambda: _read(settings, lambda value: codec.decode(value, packed=True)))
        path = folder / "index.duckdb"
        cpu = time.process_time()
        indexed = _seconds(lambda: _index(settings, codec, path))
        cpu = time.process_time() - cpu
        table(
            "Reading the log",
            ["reader", "records / s", "calls / s", "share of bare"],
            [
                [name, records / seconds, chosen.calls / seconds, bare / seconds]
                for name, seconds in (
                    ("bare consumer", bare), ("decoding consumer", decoded), ("index", indexed),
                )
            ],
        )  # fmt: skip
        print(f"\nindex: {cpu * 1e6 / chosen.calls:.0f} µs of CPU a call")
        _print_sizes(path, codec, settings, chosen.calls, sent)
        _print_views(path, codec, chosen.rounds)


def _publish(settings: KafkaSettings, calls: int) -> tuple[int, int]:
    """Write the log; returns its records and their bytes."""
    producer = Producer(
        settings.client_config()
        | {"compression.type": "zstd", "linger.ms": 50, "queue.buffering.max.kbytes": 262_144}
    )
    records = size = 0
    for topic, key, value in traffic(calls):
        partition = partition_of(key, topic.partitions) if topic.partitions > 1 else 0
        while True:
            try:
                producer.produce(settings.topic(topic), value, key, partition)
                break
            except BufferError:
                producer.poll(0.1)
        records, size = records + 1, size + len(value)
    if producer.flush(120):
        raise RuntimeError("the broker did not take all records within 120 s")
    return records, size


def _read(settings: KafkaSettings, use: Callable[[bytes], Any]) -> None:
    consumer = make_consumer(settings)
    ends: dict[tuple[str, int], int] = {}
    for topic in TOPICS:
        for partition in range(topic.partitions):
            name = settings.topic(topic)
            _, high = watermarks(consumer, TopicPartition(name, partition))
            if high:
                ends[name, partition] = high
    consumer.assign([TopicPartition(name, partition, 0) for name, partition in ends])
    for message in read_until(consumer, ends, 1_000):
        use(message.value() or b"")
    consumer.close()


def _index(settings: KafkaSettings, codec: Codec, path: Path) -> None:
    writer = IndexWriter(path, codec, settings.topic_prefix, now_ms)
    keep = IndexSettings(retention_days=36_500)
    stop = Event()
    follower = LogFollower(settings, codec, writer, keep, now_ms, stop)
    thread = Thread(target=follower.run)
    thread.start()
    follower.caught_up.wait()
    stop.set()
    thread.join()
    writer.execute("CHECKPOINT")
    writer.close()


def _print_sizes(path: Path, codec: Codec, settings: KafkaSettings, calls: int, sent: int) -> None:
    writer = IndexWriter(path, codec, settings.topic_prefix, now_ms)
    used = used_bytes(writer)
    ((texts,),) = writer.execute("SELECT sum(octet_length(data)) FROM payloads")
    writer.close()
    table(
        "Size, bytes per call",
        ["what", "bytes"],
        [
            ["all topics, before compression", sent / calls],
            ["index", used / calls],
            ["of it texts and tokens in full", texts / calls],
            ["of it tables", (used - texts) / calls],
            ["file", path.stat().st_size / calls],
        ],
    )


def _print_views(path: Path, codec: Codec, rounds: int) -> None:
    reader = IndexReader(path)
    (some,) = reader.rows("SELECT rollout_id, group_id FROM rollouts ORDER BY rollout_id LIMIT 1 "
                          "OFFSET (SELECT count(*) // 2 FROM rollouts)")  # fmt: skip
    names = {"$rollout": f"'{some['rollout_id']}'", "$group": f"'{some['group_id']}'"}
    rows: list[list[Any]] = []
    for view, queries in QUERIES.items():
        for sign, value in names.items():
            queries = queries.replace(sign, value)
        statements = queries.split("; ")

        def ask(statements: list[str] = statements) -> None:
            for statement in statements:
                reader.rows(statement)

        rows.append([view, *_times(ask, rounds)])

    def read_calls() -> None:
        payloads = PayloadReader(reader, codec)
        for row in reader.rows(
            'SELECT partition, "offset" FROM calls WHERE rollout_id = ?', [some["rollout_id"]]
        ):
            payloads.record("llm.calls", row["partition"], row["offset"])

    rows.append(["Timeline, texts of 5 calls", *_times(read_calls, rounds)])
    table("Views, milliseconds", ["view", "p50", "p95"], rows)


def _times(ask: Callable[[], None], rounds: int) -> tuple[float, float]:
    times = sorted(_seconds(ask) * 1000 for _ in range(rounds))
    return statistics.median(times), times[min(len(times) - 1, round(0.95 * len(times)))]


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
