"""The whole system on this machine: broker, Valkey, vLLM and every service, started in parallel, supervised, stopped together.

`make demo`, `make up` and the end-to-end tests use it. Everything lies in one data folder: topics, weights, checkpoints, logs, and the
secrets made at the first start. KAFKA_BOOTSTRAP_SERVERS, VLLM_BASE_URL and REDIS_URL, where set, replace the local engine.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from services.backends import parse_backends
from services.cli import doctor
from services.kafka import KafkaSettings
from services.process_secrets import without_keys
from services.stack.errors import StackError
from services.stack.kafka_local import LocalKafka
from services.stack.model import model_folder
from services.stack.ports import LOCALHOST, answers, free_ports
from services.stack.supervise import Process, ProcessSpec, Restart, Supervisor
from services.stack.valkey_local import LocalValkey
from services.stack.vllm_local import LocalVllm
from services.topic_admin import check_topics, create_topics

OnReady = Callable[[str, float], None]
"""Called with a part's name and the seconds since the start, when the part is ready."""


class StackOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a local stack is made of."""

    data: Path
    """Topics, weights, checkpoints, logs, secrets."""
    brokers: int = 1
    """Three give replication."""
    gateway_port: int | None = None
    """None: a free one."""
    model: Path | None = None
    """A Hugging Face folder; None: SmolLM2-135M-Instruct from its package."""
    policy: str = "policy"
    """The policy's name, which is also the alias agents ask for."""
    environment: Mapping[str, str] = {}
    """Settings of the services, on top of what the stack sets."""
    restart: Restart = Restart.always
    """What to do when a service falls."""


class Secrets(msgspec.Struct, frozen=True):
    """Made at the first start, kept in the data folder, readable by its owner alone."""

    signing_keys: str
    admin_key: str
    api_key: str


class LocalStack:
    """A context manager: entering starts everything and waits until it is ready; leaving stops it, however it came."""

    def __init__(
        self, options: StackOptions, on_ready: OnReady | None = None, on_exit: Callable[[Process, int], None] | None = None
    ) -> None:
        self.options = options
        self.data = options.data.resolve()
        self.data.mkdir(parents=True, exist_ok=True)
        self.secrets = load_secrets(self.data / "secrets.json")
        self._on_ready = on_ready or _say_nothing
        self._on_exit = on_exit
        self._started = 0.0
        self._supervisor: Supervisor | None = None
        ports = free_ports(2)
        self._gateway_port = options.gateway_port or ports[0]
        self._vllm_port = ports[1]
        self.environment: dict[str, str] = {}

    @property
    def gateway_url(self) -> str:
        """Without `/v1`."""
        return f"http://{LOCALHOST}:{self._gateway_port}"

    @property
    def kafka(self) -> KafkaSettings:
        """How this stack's services reach Kafka."""
        return KafkaSettings(
            bootstrap_servers=self.environment["KAFKA_BOOTSTRAP_SERVERS"],
            topic_prefix=self.environment["FULGURITE_TOPIC_PREFIX"],
            replication=int(self.environment["FULGURITE_REPLICATION"]),
        )

    def process(self, name: str) -> Process:
        """A part by name: `gateway`, `learner`, ... Raises StackError."""
        for process in self._parts().processes:
            if process.name == name:
                return process
        raise StackError(f"no part of the stack is called {name!r}; there are {[p.name for p in self._parts().processes]}")

    def start(self) -> Self:
        """Start everything; return when all of it is ready. Raises StackError; what was started is stopped then."""
        lacking = doctor.lacking()
        if lacking:
            raise StackError("this machine cannot run the stack: " + "; ".join(f"{c.name}: {c.finding} ({c.remedy})" for c in lacking))
        self._started = time.monotonic()
        self._supervisor = Supervisor(self._on_exit)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop everything: services first, then engines. Idempotent."""
        if self._supervisor is not None:
            self._supervisor.close()
            self._supervisor = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _parts(self) -> Supervisor:
        if self._supervisor is None:
            raise StackError("the stack is not running")
        return self._supervisor

    def _start(self) -> None:
        supervisor = self._parts()
        model = self.options.model or model_folder()
        # vLLM is the slowest by far, so it starts first; everything else comes up beside it.
        vllm = None
        if not os.environ.get("VLLM_BASE_URL"):
            vllm = LocalVllm(
                model,
                self.data / "logs",
                served_model=self.options.policy,
                policy=self.options.policy,
                port=self._vllm_port,
                restart=self.options.restart,
                supervisor=supervisor,
            ).start()
        kafka = None
        if not os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
            kafka = LocalKafka(self.data / "kafka", brokers=self.options.brokers, supervisor=supervisor).start()
        valkey = None if os.environ.get("REDIS_URL") else LocalValkey(self.data / "valkey", supervisor=supervisor).start()
        self.environment = self._environment(
            bootstrap_servers=kafka.bootstrap_servers if kafka else os.environ["KAFKA_BOOTSTRAP_SERVERS"],
            redis_url=valkey.url if valkey else os.environ["REDIS_URL"],
            vllm_url=vllm.base_url if vllm else os.environ["VLLM_BASE_URL"],
            model=model,
            yield_cpu=vllm is not None,
        )
        if kafka:
            kafka.wait_ready()
            self._tell("kafka")
        if valkey:
            valkey.wait_ready()
            self._tell("valkey")
        create_topics(self.kafka)
        check_topics(self.kafka)
        services = [supervisor.start(spec) for spec in self._services()]
        for service in services:
            service.wait_ready()
            self._tell(service.name)
        if vllm:
            vllm.wait_ready()
            self._tell("vllm")

    def _tell(self, name: str) -> None:
        self._on_ready(name, time.monotonic() - self._started)

    def _environment(self, *, bootstrap_servers: str, redis_url: str, vllm_url: str, model: Path, yield_cpu: bool) -> dict[str, str]:
        policy = self.options.policy
        return {
            "KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers,
            "REDIS_URL": redis_url,
            "VLLM_BASE_URL": vllm_url,
            "FULGURITE_TOPIC_PREFIX": os.environ.get("FULGURITE_TOPIC_PREFIX", "fulgurite."),
            "FULGURITE_REPLICATION": os.environ.get("FULGURITE_REPLICATION", str(min(self.options.brokers, 3))),
            "FULGURITE_SIGNING_KEYS": self.secrets.signing_keys,
            "FULGURITE_ADMIN_KEY": self.secrets.admin_key,
            "FULGURITE_API_KEYS": self.secrets.api_key,
            "FULGURITE_POLICY": policy,
            "FULGURITE_ALIASES": f"{policy}={policy}",
            "FULGURITE_DATA_DIR": str(self.data),
            "FULGURITE_GATEWAY_PORT": str(self._gateway_port),
            "FULGURITE_GATEWAY_URL": self.gateway_url,
            "FULGURITE_MODEL": str(model),
            "FULGURITE_YIELD_CPU": os.environ.get("FULGURITE_YIELD_CPU", str(yield_cpu)),
            **self.options.environment,
        }

    def _services(self) -> list[ProcessSpec]:
        port = self._gateway_port
        return [
            self._service("learner", "services.learner.main"),
            self._service("aggregator", "services.aggregator.main"),
            self._service("rewarder", "services.rewarder.main"),
            *self._appliers(),
            self._service("gateway", "services.gateway.main", env=self.environment, ready=lambda: answers(port, "/healthz")),
        ]

    def _appliers(self) -> list[ProcessSpec]:
        """One for each backend of VLLM_BASE_URL."""
        backends = list(parse_backends(self.environment["VLLM_BASE_URL"], "vllm"))
        if len(backends) == 1:
            return [self._service("applier", "services.applier.main")]
        return [self._service(f"applier-{name}", "services.applier.main", env={"FULGURITE_BACKEND": name}) for name in backends]

    def _service(
        self, name: str, module: str, ready: Callable[[], bool] | None = None, env: Mapping[str, str] | None = None
    ) -> ProcessSpec:
        return ProcessSpec(
            name=name,
            argv=[sys.executable, "-P", "-m", module],
            log=self.data / "logs" / f"{name}.log",
            env={**without_keys(self.environment), **(env or {})},
            ready=ready,
            restart=self.options.restart,
        )


def _say_nothing(_name: str, _seconds: float) -> None:
    """The default of `on_ready`."""


def load_secrets(path: Path) -> Secrets:
    """The secrets of a data folder, made at the first call."""
    if path.is_file():
        return msgspec.json.decode(path.read_bytes(), type=Secrets)
    made = Secrets(
        signing_keys=f"local:{secrets.token_urlsafe(32)}",
        admin_key=f"sk-admin-{secrets.token_urlsafe(24)}",
        api_key=f"sk-local-{secrets.token_urlsafe(24)}",
    )
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(made))
    return made
