"""The console's index: how fast it reads, how large it is, how long each view takes.

`python -m benchmarks.console --calls 100000`: a real broker on this machine; the same records are
read by a bare consumer, which decodes nothing, then by one that decodes, then into the index. Views
are the pages' own, without the drawing in the browser.

A large log takes long: with `--folder DIR` log and index stay there, and the same command goes on
where the last one ended, also one that `--minutes` stopped.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import msgspec
from confluent_kafka import Producer, TopicPartition

from benchmarks.console_traffic import CALLS, ENDED_MS, traffic
from benchmarks.gateway_parts import bench_folder, kafka
from benchmarks.tables import table
from fulgurite.avro.codec import Codec
from fulgurite.topics import TOPICS, partition_of
from services.common.kafka.consumer import make_consumer, read_until, watermarks
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import create_topics
from services.common.runtime.clock import now_ms
from services.console.index.follower import IndexFollower
from services.console.index.reader import IndexReader
from services.console.index.retention import bytes_of_payloads, used_bytes
from services.console.index.settings import IndexSettings
from services.console.index.writer import IndexWriter
from services.console.pages.address import Address
from services.console.pages.reading import Asked, LiveIndex
from services.console.pages.view import View
from services.console.pages.views import VIEWS

_CHUNK = 500
"""Groups that are written before it is noted that they are."""
_PROGRESS_S = 15.0


class Progress(msgspec.Struct):
    """What was done so far; kept in the folder."""

    groups: int = 0
    """Groups in the log."""
    records: int = 0
    size: int = 0
    """Bytes of the records' values."""
    seconds: dict[str, float] = {}
    """Wall seconds of each reader that has read the log, or of the index so far."""
    cpu_s: dict[str, float] = {}
    is_indexed: bool = False


class _OutOfTime(Exception):
    """The time that was given has passed."""


class _Run:
    """One run of the benchmark, and what earlier ones did."""

    def __init__(self, folder: Path, calls: int, minutes: float) -> None:
        self.folder = folder
        self.calls = calls
        self.index = folder / "index.duckdb"
        self.codec = Codec()
        self._deadline = time.monotonic() + minutes * 60
        self._state = folder / "progress.json"
        self.done = (
            msgspec.json.decode(self._state.read_bytes(), type=Progress)
            if self._state.exists()
            else Progress()
        )

    def save(self) -> None:
        """Keep what was done."""
        self._state.write_bytes(msgspec.json.encode(self.done))

    @property
    def is_out_of_time(self) -> bool:
        """Whether the time that was given has passed."""
        return time.monotonic() > self._deadline

    def log(self, settings: KafkaSettings) -> None:
        """Write what the log lacks."""
        groups = self.calls // CALLS
        while self.done.groups < groups:
            end = min(groups, self.done.groups + _CHUNK)
            records, size = _publish(settings, self.calls, self.done.groups, end)
            self.done.groups = end
            self.done.records += records
            self.done.size += size
            self.save()
            _say(f"{end * CALLS:,} of {self.calls:,} calls are in the log")
            self._check_time()

    def measure(self, name: str, work: Callable[[], None]) -> None:
        """Measure a reader that has not read the log yet."""
        if name in self.done.seconds:
            return
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        self.done.seconds[name] = time.perf_counter() - wall
        self.done.cpu_s[name] = time.process_time() - cpu
        self.save()
        _say(f"the {name} took {self.done.seconds[name]:.0f} s")
        self._check_time()

    def fill_index(self, settings: KafkaSettings) -> None:
        """Index what the index lacks."""
        if self.done.is_indexed:
            return
        wall, cpu = time.perf_counter(), time.process_time()
        before = self.done.seconds.get("index", 0.0), self.done.cpu_s.get("index", 0.0)
        try:
            self.done.is_indexed = self._follow(settings)
        finally:
            self.done.seconds["index"] = before[0] + time.perf_counter() - wall
            self.done.cpu_s["index"] = before[1] + time.process_time() - cpu
            self.save()
        if not self.done.is_indexed:
            raise _OutOfTime

    def _follow(self, settings: KafkaSettings) -> bool:
        """Follow the log to its end; returns whether there was time for it."""
        writer = IndexWriter(self.index, self.codec, settings.topic_prefix, now_ms)
        reader = IndexReader(self.index)
        keep = IndexSettings(retention_days=36_500)
        stop = Event()
        follower = IndexFollower(settings, self.codec, writer, keep, now_ms, stop)
        thread = Thread(target=follower.run)
        thread.start()
        began = time.monotonic()
        while not follower.caught_up.wait(_PROGRESS_S) and not self.is_out_of_time:
            (row,) = reader.rows("SELECT count(*) AS calls FROM calls")
            _say(f"{row['calls']:,} calls indexed, after {time.monotonic() - began:.0f} s")
        stop.set()
        thread.join()
        writer.execute("CHECKPOINT")
        ((indexed,),) = writer.execute("SELECT count(*) FROM calls")
        writer.close()
        if follower.caught_up.is_set() and indexed != self.calls:
            raise SystemExit(
                f"{indexed:,} of {self.calls:,} calls are in the index: another version of the "
                "schemas wrote the log; use an empty --folder"
            )
        return follower.caught_up.is_set()

    def print_readers(self) -> None:
        """Print how fast the log was read."""
        bare = "bare consumer"
        table(
            "Reading the log",
            ["reader", "records / s", "calls / s", "share of bare", "µs of CPU a call"],
            [
                [
                    name,
                    self.done.records / seconds,
                    self.calls / seconds,
                    self.done.seconds[bare] / seconds,
                    self.done.cpu_s[name] * 1e6 / self.calls,
                ]
                for name, seconds in self.done.seconds.items()
            ],
        )

    def print_sizes(self) -> None:
        """Print how large the index is."""
        writer = IndexWriter(self.index, self.codec, "bench.", now_ms)
        used = used_bytes(writer)
        texts = bytes_of_payloads(writer)
        writer.close()
        calls = self.calls
        table(
            "Size, bytes per call",
            ["what", "bytes"],
            [
                ["all topics, before compression", self.done.size / calls],
                ["index", used / calls],
                ["of it texts and tokens in full", texts / calls],
                ["of it tables", (used - texts) / calls],
                ["file", self.index.stat().st_size / calls],
            ],
        )

    def print_views(self, rounds: int) -> None:
        """Print how long each view takes while the index is open, as it is in the console."""
        writer = IndexWriter(self.index, self.codec, "bench.", now_ms)
        reader = IndexReader(self.index)
        rows: list[list[Any]] = []
        for name, view, query in _addresses(reader):
            address = Address(view.path, query)
            asked = Asked(LiveIndex(reader), address, ENDED_MS, self.codec)

            def show(view: View = view, asked: Asked = asked) -> None:
                view.content(asked)

            rows.append([name, *_times(show, rounds)])
            _say(f"{name}: p95 {rows[-1][2]:.0f} ms")
        writer.close()
        table("Views, milliseconds", ["view", "p50", "p95", "CPU"], rows)

    def _check_time(self) -> None:
        if self.is_out_of_time:
            raise _OutOfTime


def main() -> int:
    """Run the benchmark and print its tables; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=100_000, help="number of calls")
    parser.add_argument("--rounds", type=int, default=20, help="how often each view is asked")
    parser.add_argument("--folder", type=Path, help="keeps log and index, to go on later")
    parser.add_argument(
        "--minutes", type=float, default=1e6, help="stop after so long; exit code 3"
    )
    chosen = parser.parse_args()
    with _folder(chosen.folder) as folder:
        run = _Run(folder, chosen.calls, chosen.minutes)
        try:
            if not run.done.is_indexed:
                _read_log(run)
        except _OutOfTime:
            _say("out of time: the same command goes on")
            return 3
        run.print_readers()
        run.print_sizes()
        run.print_views(chosen.rounds)
    return 0


@contextmanager
def _folder(kept: Path | None) -> Generator[Path]:
    if kept is None:
        with bench_folder() as folder:
            yield folder
    else:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept


def _read_log(run: _Run) -> None:
    with kafka(run.folder) as cluster:
        settings = KafkaSettings(bootstrap_servers=cluster.bootstrap_servers, topic_prefix="bench.")
        create_topics(settings)
        codec = run.codec
        run.log(settings)
        run.measure("bare consumer", lambda: _read(settings, lambda _: None))
        run.measure(
            "decoding consumer",
            lambda: _read(settings, lambda value: codec.decode(value, packed=True)),
        )
        run.fill_index(settings)


def _publish(settings: KafkaSettings, calls: int, first: int, end: int) -> tuple[int, int]:
    """Write groups to the log; returns their records and their bytes."""
    producer = Producer(
        settings.client_config()
        | {"compression.type": "zstd", "linger.ms": 50, "queue.buffering.max.kbytes": 262_144}
    )
    records = size = 0
    for topic, key, value in traffic(calls, first, end):
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


def _addresses(reader: IndexReader) -> list[tuple[str, View, Mapping[str, str]]]:
    """Every view as it opens first, and those that show one thing with one from the middle."""
    (some,) = reader.rows(
        "SELECT rollout_id, group_id, run_id, version FROM rollouts ORDER BY rollout_id LIMIT 1 "
        "OFFSET (SELECT count(*) // 2 FROM rollouts)"
    )
    given = {
        "timeline": {"rollout": some["rollout_id"]},
        "group": {"id": some["group_id"]},
    }
    closer = {
        "runs": {"run": some["run_id"]},
        "step": {"version": some["version"]},
        "funnel": {"run": some["run_id"]},
        "rollouts": {"version": some["version"], "below": "0.1"},
        "agents": {"run": some["run_id"]},
    }
    found: list[tuple[str, View, Mapping[str, str]]] = []
    for view in VIEWS:
        name = view.path.strip("/")
        found.append((view.title, view, given.get(name, {})))
        if name in closer:
            found.append((f"{view.title}, {' and '.join(closer[name])}", view, closer[name]))
        if name == "rollouts":
            found.append((f"{view.title}, search", view, {"q": "says why calls a tool"}))
    return found


def _times(show: Callable[[], None], rounds: int) -> tuple[float, float, float]:
    """Median and 95th percentile of the time, and mean CPU time of all threads."""
    cpu = time.process_time()
    times = sorted(_seconds(show) * 1000 for _ in range(rounds))
    cpu = (time.process_time() - cpu) * 1000 / rounds
    return statistics.median(times), times[min(len(times) - 1, round(0.95 * len(times)))], cpu


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
