"""Aggregator and rewarder beside a Faust worker that does nothing, and what they keep; figures and
their reading: `benchmarks/streams.md`.

`python -m benchmarks.streams throughput|disk|state`: real workers, one after the other, each on the
first core of its own, with a real broker on the others. CPU seconds are those of a worker's process
from the moment it owns its partitions to the last acknowledged offset.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from confluent_kafka import TopicPartition

from benchmarks.gateway_parts import Served, bench_folder, kafka
from benchmarks.streams_traffic import Agents, Gateway
from benchmarks.tables import table
from fulgurite.topics import (
    AGENT_REWARDS,
    AGENT_STATUS,
    EPISODES,
    LLM_CALLS,
    TRAINING_LEDGER,
    TRAJECTORIES,
    Topic,
)
from services.common.kafka.consumer import make_consumer
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import create_topics, records_in
from services.common.processes.process import ChildProcess
from services.local_stack.kafka_local import LocalKafka

_PATIENCE_S = 300.0
_SIZE = 8
"""Rollouts of a group."""
_PROBES = 64
"""Groups whose end tells that a worker is at the end of its inputs: with so many, every partition
has some.
"""

INPUTS: dict[str, tuple[Topic, ...]] = {
    "aggregator": (LLM_CALLS, AGENT_STATUS),
    "rewarder": (EPISODES, AGENT_REWARDS),
}


class Bench:
    """A broker and a deployment on it."""

    def __init__(self, cluster: LocalKafka, folder: Path, prefix: str = "bench.") -> None:
        self.settings = KafkaSettings(
            bootstrap_servers=cluster.bootstrap_servers, topic_prefix=prefix
        )
        self.folder = folder
        self.environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("FULGURITE_", "KAFKA_"))
            },
            "KAFKA_BOOTSTRAP_SERVERS": cluster.bootstrap_servers,
            "FULGURITE_TOPIC_PREFIX": prefix,
            "FULGURITE_AGGREGATOR_SILENCE_S": "86400",
            # Who sleeps is not dead.
            "FULGURITE_AGGREGATOR_SESSION_TIMEOUT_S": "80",
            "FULGURITE_REWARDER_SESSION_TIMEOUT_S": "80",
        }
        create_topics(self.settings)

    @contextmanager
    def worker(self, name: str, *argv: str) -> Generator[Served]:
        """A stream worker that owns its partitions; its log is a file of the folder."""
        log = self.folder / f"{name}-{time.monotonic_ns()}.log"
        running = ChildProcess([sys.executable, "-m", *argv], log, env=self.environment)
        os.sched_setaffinity(running.pid, sorted(os.sched_getaffinity(0))[:1])
        try:
            wait_until(
                lambda: '"ready"' in log.read_text() or _ended(running, log),
                f"{name} is ready",
                every_s=0.01,
            )
            yield Served(name, "", running.pid)
        finally:
            running.end()

    def real(self, name: str) -> Any:
        """The aggregator or the rewarder."""
        return self.worker(name, f"services.{name}.main")

    def idle(self, name: str, kind: str = "noop") -> Any:
        """What does nothing, on the same topics."""
        return self.worker(
            f"{kind}-{name}",
            "benchmarks.streams_noop",
            kind,
            name,
            *(topic.name for topic in INPUTS[name]),
        )

    def fed(self, name: str) -> Any:
        """What does nothing with records that come as ours do."""
        return self.idle(name, "fed")

    def behind(self, group: str, topics: Sequence[Topic]) -> int:
        """Records that a group has not acknowledged."""
        places = [
            TopicPartition(self.settings.topic(topic), number)
            for topic in topics
            for number in range(topic.partitions)
        ]
        consumer = make_consumer(self.settings, f"{self.settings.topic_prefix}{group}")
        try:
            ends = [consumer.get_watermark_offsets(place, timeout=30)[1] for place in places]
            return sum(
                end - max(0, at.offset)
                for end, at in zip(ends, consumer.committed(places, timeout=30), strict=True)
            )
        finally:
            consumer.close()

    def drained(self, group: str, topics: Sequence[Topic]) -> None:
        """Return when a group has acknowledged everything."""
        wait_until(lambda: not self.behind(group, topics), f"{group} has read everything")

    def bytes_of(self, topic: Topic) -> int:
        """What a topic takes on the broker's disk, without indices."""
        name = self.settings.topic(topic)
        return sum(
            path.stat().st_size
            for path in self.folder.rglob("*.log")
            if re.fullmatch(re.escape(name) + r"-\d+", path.parent.name)
        )


def _ended(running: ChildProcess, log: Path) -> bool:
    if not running.is_running:
        raise RuntimeError(
            f"{log.name}: ended with exit code {running.returncode}:\n{log.read_text()}"
        )
    return False


def wait_until(condition: Callable[[], bool], what: str, every_s: float = 0.2) -> None:
    """Raises TimeoutError."""
    end = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {_PATIENCE_S:.0f} s until {what}")
        time.sleep(every_s)


def throughput(given: argparse.Namespace) -> None:
    """Calls per CPU second of each worker and of nothing; a fresh deployment each round."""
    agents = Agents(turns=given.turns, new_tokens=given.new_tokens, answer=given.answer)
    spent: dict[str, list[float]] = {}
    calls = given.groups * _SIZE * given.turns
    for number in range(given.rounds):
        with bench_folder() as folder, kafka(folder) as cluster, ExitStack() as stack:
            bench = Bench(cluster, folder, f"round{number}.")
            workers = [
                stack.enter_context(side(name))
                for name in INPUTS
                for side in (bench.idle, bench.fed, bench.real)
            ]
            with asleep(workers):
                fill(bench, agents, given.groups)
                for worker in workers:
                    spent.setdefault(worker.name, []).append(calls / cpu_to_the_end(bench, worker))
            assert records_in(bench.settings, TRAJECTORIES) == given.groups * (_SIZE + 1)
    ratios = {
        name: [real / idle for real, idle in zip(spent[name], spent[f"noop-{name}"], strict=True)]
        for name in INPUTS
    }
    rows = [
        [
            name,
            statistics.median(spent[f"noop-{name}"]),
            statistics.median(spent[f"fed-{name}"]),
            statistics.median(spent[name]),
            statistics.median(ratios[name]),
            " ".join(f"{ratio:.2f}" for ratio in ratios[name]),
        ]
        for name in INPUTS
    ]
    title = (
        f"{calls:,} calls, {given.turns} turns of {given.new_tokens} new tokens, {given.answer} of "
        "them generated"
    )
    table(
        title,
        ["", "no-op, calls / CPU s", "no-op, our feed", "calls / CPU s", "ratio", "rounds"],
        rows,
    )


def fill(bench: Bench, agents: Agents, groups: int) -> None:
    """Finished groups, ten side by side."""
    gateway = Gateway(bench.settings, agents)
    for start in range(0, groups, 10):
        gateway.write(range(start, min(start + 10, groups)), _SIZE)
    gateway.close()


@contextmanager
def asleep(workers: Sequence[Served]) -> Generator[None]:
    """Workers that own their partitions and do nothing until woken, so that all there is to read
    waits for them.
    """
    for worker in workers:
        worker.process.suspend()
    try:
        yield
    finally:
        for worker in workers:
            worker.process.resume()


def cpu_to_the_end(bench: Bench, worker: Served) -> float:
    """CPU seconds that a sleeping worker needs to read everything; it sleeps again afterwards."""
    before = worker.cpu_s()
    worker.process.resume()
    bench.drained(worker.name, INPUTS[worker.name.rpartition("-")[2]])
    worker.process.suspend()
    return worker.cpu_s() - before


def disk(given: argparse.Namespace) -> None:
    """Bytes on the broker's disk per token that no earlier call had, topic by topic."""
    topics = (LLM_CALLS, EPISODES, TRAJECTORIES, TRAINING_LEDGER, AGENT_STATUS, AGENT_REWARDS)
    agents = Agents(turns=given.turns, new_tokens=given.new_tokens, answer=given.answer)
    with bench_folder() as folder, kafka(folder) as cluster:
        bench = Bench(cluster, folder)
        gateway = Gateway(bench.settings, agents)
        gateway.write(range(given.groups), given.size, one_by_one=True)
        gateway.close()
        with bench.real("aggregator"), bench.real("rewarder"):
            for name, inputs in INPUTS.items():
                bench.drained(name, inputs)
        assert records_in(bench.settings, TRAJECTORIES) == given.groups * (given.size + 1)
        used = {topic.name: bench.bytes_of(topic) for topic in topics}
    rows: list[list[Any]] = [
        [name, f"{size:,}", size / gateway.tokens] for name, size in used.items()
    ]
    rows.append(["all", f"{sum(used.values()):,}", sum(used.values()) / gateway.tokens])
    title = (
        f"{gateway.calls} calls, {given.turns} turns of {given.new_tokens} new tokens, "
        f"{given.answer} generated, {gateway.tokens:,} in all"
    )
    table(title, ["topic", "bytes", "bytes / new token"], rows)


def state(given: argparse.Namespace) -> None:
    """Memory per open episode, and the time after a kill -9 until everything that is open is known
    again.
    """
    agents = Agents(turns=given.turns, new_tokens=given.new_tokens, answer=given.answer)
    groups = range(given.open // _SIZE)
    last, next_to_last = groups[-_PROBES:], groups[-2 * _PROBES : -_PROBES]
    rows: list[list[Any]] = []
    with bench_folder() as folder, kafka(folder) as cluster:
        bench = Bench(cluster, folder)
        gateway = Gateway(bench.settings, agents)
        with ExitStack() as stack:
            workers = {name: stack.enter_context(bench.real(name)) for name in INPUTS}
            before = {name: settled_rss(worker) for name, worker in workers.items()}
            for start in range(0, len(groups), 10):
                gateway.write(groups[start : start + 10], _SIZE, finish=False)
            held = {"aggregator": settled_rss(workers["aggregator"]) - before["aggregator"]}
            workers["aggregator"].process.kill()
            rows.append(
                restarted(
                    stack,
                    bench,
                    gateway,
                    "aggregator",
                    lambda: gateway.finish(last, _SIZE),
                    EPISODES,
                )
            )
            gateway.finish(groups[:-_PROBES], _SIZE)
            wait_until(
                lambda: records_in(bench.settings, EPISODES) >= given.open,
                "every episode is written",
            )
            held["rewarder"] = settled_rss(workers["rewarder"]) - before["rewarder"]
            workers["rewarder"].process.kill()
            rows.append(
                restarted(
                    stack,
                    bench,
                    gateway,
                    "rewarder",
                    lambda: gateway.pay(next_to_last, _SIZE),
                    TRAJECTORIES,
                )
            )
        gateway.close()
    for row in rows:
        row.insert(1, held[row[0]] * 2**20 / given.open / 1000)
    title = (
        f"{given.open:,} open episodes of {given.turns} calls, {given.new_tokens} new tokens each"
    )
    table(title, ["", "kB / open episode", "ready after s", "all known after s", "CPU s"], rows)


def restarted(
    stack: ExitStack,
    bench: Bench,
    gateway: Gateway,
    name: str,
    end: Callable[[], None],
    topic: Topic,
) -> list[Any]:
    """Start a killed worker and end some groups of every partition: what comes of them tells that
    all before them has been read.
    """
    # Of a group, a record for each rollout; in `trajectories` one more, which closes it.
    expected = records_in(bench.settings, topic) + _PROBES * (_SIZE + (topic is TRAJECTORIES))
    end()
    began = time.monotonic()
    worker = stack.enter_context(bench.real(name))
    ready = time.monotonic() - began
    wait_until(
        lambda: records_in(bench.settings, topic) >= expected, f"{name} has read everything again"
    )
    return [name, ready, time.monotonic() - began, worker.cpu_s()]


def settled_rss(worker: Served) -> float:
    """Resident MiB once a worker has nothing to do."""
    while True:
        before = worker.cpu_s()
        time.sleep(1)
        if worker.cpu_s() - before < 0.1:
            return worker.rss_mib()


_COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "throughput": throughput,
    "disk": disk,
    "state": state,
}


def main() -> None:
    """One sub-command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=_COMMANDS)
    parser.add_argument("--groups", type=int, default=150)
    parser.add_argument("--open", type=int, default=10_000, help="state: episodes")
    parser.add_argument("--size", type=int, default=4, help="disk: rollouts of a group")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--new-tokens", type=int, default=500)
    parser.add_argument("--answer", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    if given.command == "state" and given.open < 2 * _PROBES * _SIZE:
        parser.error(
            f"--open {given.open}: {2 * _PROBES * _SIZE} at least, for the last groups of "
            "every partition tell when all is known"
        )
    _COMMANDS[given.command](given)


if __name__ == "__main__":
    main()
