"""What the gateway's benchmark runs, each in a process of its own: stub, pass-through, gateway,
load; and how they are measured.

The gateway (or what stands in its place) has the first core to itself, everything else shares the
others, unless `PIN=0`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast
from urllib.error import URLError
from urllib.request import Request, urlopen

import psutil

from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import create_topics
from services.local_stack.kafka_local import LocalKafka
from services.local_stack.ports import free_port

KEY = "a-plain-key"
_ADMIN = "the-admin-key"
_READY_S = 90.0


class Served:
    """A process under test."""

    def __init__(self, name: str, url: str, pid: int, key: str = KEY) -> None:
        self.name = name
        self.url = url
        self.key = key
        self.process = psutil.Process(pid)

    def cpu_s(self) -> float:
        """CPU seconds so far, all threads, user and system."""
        times = cast(Any, self.process).cpu_times()
        return float(times.user + times.system)

    def rss_mib(self) -> float:
        """Resident memory."""
        return self.process.memory_info().rss / 2**20


@contextmanager
def kafka(folder: Path) -> Generator[LocalKafka]:
    """A real broker, on the cores that are not under test."""
    with LocalKafka(folder / "kafka") as cluster:
        for child in psutil.Process().children(recursive=True):
            _pin(child.pid, rest=True)
        yield cluster


@contextmanager
def stub(*arguments: str) -> Generator[str]:
    """The stub's address."""
    with process(
        [sys.executable, "-m", "benchmarks.gateway_stub", *arguments], rest=True
    ) as running:
        assert running.stdout is not None
        yield f"http://127.0.0.1:{int(running.stdout.readline())}"


@contextmanager
def passthrough(upstream: str) -> Generator[Served]:
    """The baseline."""
    port = free_port()
    with process(
        [sys.executable, "-m", "benchmarks.gateway_passthrough", upstream, str(port)]
    ) as running:
        wait(url := f"http://127.0.0.1:{port}")
        yield Served("pass-through", url, running.pid)


@contextmanager
def gateway(
    upstream: str, cluster: LocalKafka, prefix: Sequence[str] = (), **env: str
) -> Generator[Served]:
    """Ours, as it is deployed: one process, topics of its own, acks=all."""
    port, prefix = free_port(), f"b{uuid.uuid4().hex[:8]}."
    create_topics(
        KafkaSettings(
            bootstrap_servers=cluster.bootstrap_servers, topic_prefix=prefix, replication=1
        )
    )
    environment = {
        **{
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("FULGURITE_", "KAFKA_", "REDIS_", "OTEL_"))
        },
        "KAFKA_BOOTSTRAP_SERVERS": cluster.bootstrap_servers,
        "FULGURITE_TOPIC_PREFIX": prefix,
        "VLLM_BASE_URL": upstream,
        "FULGURITE_SIGNING_KEYS": "k1:0123456789abcdef0123456789abcdef",
        "FULGURITE_API_KEYS": KEY,
        "FULGURITE_ADMIN_KEY": _ADMIN,
        "FULGURITE_GATEWAY_PORT": str(port),
        "FULGURITE_LOG_LEVEL": "WARNING",
        **env,
    }
    argv = [*prefix, sys.executable, "-m", "services.gateway.main"]
    with process(argv, environment) as running:
        wait(url := f"http://127.0.0.1:{port}")
        yield Served("gateway", url, running.pid, _rollout_keys(url))


def _rollout_keys(url: str) -> str:
    """The keys of 256 rollouts, as agents in training have them."""
    headers = {"content-type": "application/json", "authorization": f"Bearer {_ADMIN}"}
    with urlopen(
        Request(f"{url}/v1/rollouts", b'{"n": 256, "deadline_s": 86400}', headers), timeout=30
    ) as reply:
        return ",".join(rollout["api_key"] for rollout in json.load(reply)["rollouts"])


def load(target: Served | str, *arguments: str) -> dict[str, Any]:
    """Run the load to its end."""
    url, key = (target, KEY) if isinstance(target, str) else (target.url, target.key)
    argv = [
        sys.executable,
        "-m",
        "benchmarks.gateway_load",
        f"{url}/v1/chat/completions",
        *arguments,
    ]
    with process(argv, {**os.environ, "KEYS": key}, rest=True) as running:
        out, _ = running.communicate(timeout=600)
    return cast("dict[str, Any]", json.loads(out))


def measured(served: Served, *arguments: str) -> dict[str, Any]:
    """Load, with the CPU seconds that the process under test spent on it."""
    before = served.cpu_s()
    told = load(served, *arguments)
    told["cpu_s"] = served.cpu_s() - before
    return told


@contextmanager
def bench_folder() -> Generator[Path]:
    """Data and logs of one run."""
    with tempfile.TemporaryDirectory(prefix="fulgurite-bench-") as folder:
        yield Path(folder)


@contextmanager
def process(
    argv: list[str],
    env: Mapping[str, str] | None = None,
    *,
    rest: bool = False,
    quiet: bool = False,
) -> Generator[subprocess.Popen[bytes]]:
    """A process on its side of the cores; stopped when left."""
    output = subprocess.DEVNULL if quiet else None
    started = subprocess.Popen(argv, env=env, stdout=output or subprocess.PIPE, stderr=output)
    _pin(started.pid, rest=rest)
    try:
        yield started
    finally:
        with ExitStack() as stack:
            stack.callback(started.wait)
            started.terminate()


def _pin(pid: int, *, rest: bool) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if os.environ.get("PIN") != "0" and len(cores) > 1:
        os.sched_setaffinity(pid, cores[1:] if rest else cores[:1])


def wait(url: str) -> None:
    """Until it answers. Raises TimeoutError."""
    end = time.monotonic() + _READY_S
    while time.monotonic() < end:
        try:
            with urlopen(f"{url}/healthz", timeout=2):
                return
        except (URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise TimeoutError(f"{url} does not answer")
