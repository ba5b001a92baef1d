"""Run the whole system on this machine: Kafka, Valkey, vLLM and every service, started in parallel,
supervised and stopped together.

`make demo`, `make up` and the end-to-end tests use it. Everything lies in one data folder: topics,
weights, checkpoints, logs, the secrets made at the first start, and the exports for a shell.
KAFKA_BOOTSTRAP_SERVERS, VLLM_BASE_URL and REDIS_URL, where set, replace the local service; what an
earlier start on the same folder exported counts as not set.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import msgspec

from services.cli import doctor
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import check_topics, create_topics
from services.common.processes.supervisor import ProcessSpec, SupervisedProcess, Supervisor
from services.common.runtime.backends import parse_backends
from services.common.runtime.process_secrets import without_keys
from services.learner.config_file import load_all, variable
from services.learner.errors import ConfigInvalid
from services.local_stack.batch_scheduling import batch_command
from services.local_stack.errors import PortTaken, RequirementMissing, SettingsInvalid, StackError
from services.local_stack.exports import ADDRESSES, StackLock, exporting_stack, write_exports
from services.local_stack.gpus import Devices
from services.local_stack.kafka_local import LocalKafka, addresses, last_ports
from services.local_stack.local_service import LocalService
from services.local_stack.model import SMALL_MODEL, find_model
from services.local_stack.ports import LOCALHOST, answers, free_port, free_ports, is_free
from services.local_stack.serving import Serving, plan_serving
from services.local_stack.valkey_local import LocalValkey
from services.local_stack.vllm_local import LocalVllm
from services.local_stack.vllm_settings import VllmSettings

READY_TIMEOUT_S = 300.0
"""For a service: the learner imports torch and reads the model while vLLM wants the same cores."""

CONSOLE_PORT = 8090
"""Where the console is, if it can be there."""

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
    run: Path | None = None
    """The file that describes the training run; None: that of FULGURITE_RUN, or the defaults."""
    model: Path | None = None
    """A Hugging Face folder, or an id on its hub; None: the run's, or SmolLM2-135M-Instruct from
    its package."""
    policy: str | None = None
    """The policy's name; None: the run's. It is also the alias agents ask for."""
    aliases: Sequence[str] = ()
    """`alias=policy` or `alias`, on top of FULGURITE_ALIASES and of the policies' own names."""
    vllm: VllmSettings | None = None
    """None: those of the environment."""
    own_kafka: bool = False
    """Start a Kafka whatever KAFKA_BOOTSTRAP_SERVERS says."""
    environment: Mapping[str, str] = {}
    """Settings of the services, on top of what the stack sets."""
    trains: bool = True
    """Start the learners. Without them the stack serves and records."""
    restart: bool = True
    """Start a service again when it ends by itself."""
    console: bool = False
    """Start the console, where its packages are installed."""


class Secrets(msgspec.Struct, frozen=True):
    """Made at the first start, kept in the data folder, readable by its owner alone."""

    signing_keys: str
    admin_key: str
    api_key: str


class LocalStack:
    """A context manager: entering starts everything and waits until it is ready; leaving stops
    everything.
    """

    def __init__(
        self,
        options: StackOptions,
        on_ready: OnReady | None = None,
        on_exit: Callable[[SupervisedProcess, int], None] | None = None,
        on_note: Callable[[str], None] | None = None,
    ) -> None:
        """`on_note` is called with each sentence that a user should read."""
        self.options = options
        self.data = options.data.resolve()
        self.data.mkdir(parents=True, exist_ok=True)
        self.secrets = load_secrets(self.data / "secrets.json")
        self._on_ready = on_ready or _ignore
        self._on_exit = on_exit
        self._on_note = on_note or _ignore
        self._started = 0.0
        self._lock = StackLock(self.data)
        self._supervisor: Supervisor | None = None
        ports = free_ports(2)
        self._gateway_port = options.gateway_port or ports[0]
        self._vllm_port = ports[1]
        self._console_port = console_port() if options.console and has_console() else None
        self._gateway_prefix: list[str] = []
        """SCHED_BATCH beside a vLLM on the same cores, so that the gateway does not preempt it."""
        self._devices = Devices(on_gpu=False)
        self.environment: dict[str, str] = {}
        self._serving: Serving | None = None

    @property
    def serving(self) -> Serving:
        """Which policies are served and trained. Raises StackError."""
        if self._serving is None:
            self._serving = self._plan()
        return self._serving

    @property
    def gateway_url(self) -> str:
        """Without `/v1`."""
        return f"http://{LOCALHOST}:{self._gateway_port}"

    @property
    def console_url(self) -> str | None:
        """Where a browser finds the console; None if there is none."""
        return f"http://{LOCALHOST}:{self._console_port}" if self._console_port else None

    @property
    def kafka(self) -> KafkaSettings:
        """How this stack's services reach Kafka."""
        return KafkaSettings(
            bootstrap_servers=self.environment["KAFKA_BOOTSTRAP_SERVERS"],
            topic_prefix=self.environment["FULGURITE_TOPIC_PREFIX"],
            replication=int(self.environment["FULGURITE_REPLICATION"]),
        )

    def process(self, name: str) -> SupervisedProcess:
        """A part by name: `gateway`, `learner`, ... Raises StackError."""
        for process in self._running_supervisor().processes:
            if process.name == name:
                return process
        raise StackError(
            f"no part of the stack is called {name!r}; there are "
            f"{[p.name for p in self._running_supervisor().processes]}"
        )

    def start(self) -> Self:
        """Start everything; return when all of it is ready. Raises StackError or ProcessError; what
        was started is stopped then.
        """
        self._lock.acquire()
        try:
            self._check()
        except BaseException:
            self._lock.release()
            raise
        self._started = time.monotonic()
        self._supervisor = Supervisor(self._on_exit)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop everything: our services first, then Kafka, Valkey and vLLM. Idempotent."""
        if self._supervisor is not None:
            self._supervisor.close()
            self._supervisor = None
        self._lock.release()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _running_supervisor(self) -> Supervisor:
        if self._supervisor is None:
            raise StackError("the stack is not running")
        return self._supervisor

    @property
    def exports(self) -> dict[str, str]:
        """What a shell needs for agents, operators and every other command."""
        return {
            "OPENAI_BASE_URL": f"{self.gateway_url}/v1",
            "OPENAI_API_KEY": self.secrets.api_key,
            "FULGURITE_GATEWAY_URL": self.gateway_url,
            "FULGURITE_ADMIN_KEY": self.secrets.admin_key,
            "FULGURITE_API_KEYS": self.secrets.api_key,
            **{
                name: self.environment[name]
                for name in (
                    "KAFKA_BOOTSTRAP_SERVERS",
                    "FULGURITE_TOPIC_PREFIX",
                    "FULGURITE_DATA_DIR",
                    "FULGURITE_POLICY",
                    "FULGURITE_CONSOLE_INDEX",
                )
            },
        }

    def _check(self) -> None:
        """Check what would otherwise fail late, or be wrong without an error. Raises StackError."""
        other = exporting_stack(os.environ)
        if (
            other is not None
            and other.resolve() != self.data
            and self._external_address("KAFKA_BOOTSTRAP_SERVERS")
        ):
            raise StackError(
                f"KAFKA_BOOTSTRAP_SERVERS is that of the stack on {other}, whose exports this "
                "shell has: two stacks on one Kafka would "
                "train one policy twice. Unset KAFKA_BOOTSTRAP_SERVERS, or use a fresh shell"
            )
        lacking = doctor.lacking(local_vllm=not self._external_address("VLLM_BASE_URL"))
        lacking += doctor.given_addresses(
            [name for name in ADDRESSES if self._external_address(name)]
        )
        if lacking:
            raise StackError(
                "the stack cannot be started:"
                + "".join(f"\n  {c.name}: {c.finding}\n    -> {c.remedy}" for c in lacking)
            )
        if not is_free(self._gateway_port):
            who = (
                "a Fulgurite gateway"
                if answers(self._gateway_port, "/healthz")
                else "another program"
            )
            raise PortTaken(
                f"port {self._gateway_port} on {LOCALHOST} is taken by {who}, and the gateway "
                "is to listen there: "
                f"stop it, or choose another port with --port {self._gateway_port + 1}"
            )
        self._serving = self._plan()

    def _plan(self) -> Serving:
        """Read the run, find its model, and decide how it is served. Raises StackError."""
        options = self.options
        VllmSettings.read()
        environment = {
            name: value
            for name, value in {**os.environ, **options.environment}.items()
            if name != "FULGURITE_POLICY"
        }
        environment["FULGURITE_MODEL"] = environment.get("FULGURITE_MODEL") or SMALL_MODEL
        if options.model is not None:
            environment[variable("policy.model")] = str(options.model)
        try:
            runs = load_all(self._run, environment, options.policy)
        except ConfigInvalid as error:
            raise SettingsInvalid(str(error)) from error
        serving = plan_serving(runs)
        try:
            return msgspec.structs.replace(serving, model=find_model(serving.model))
        except RequirementMissing as error:
            where = "policy.model =" if options.model is None else "--model"
            raise RequirementMissing(f"{where} {error}") from error

    @property
    def _run(self) -> Path | None:
        named = self.options.run or os.environ.get("FULGURITE_RUN")
        return Path(named).resolve() if named else None

    def _external_address(self, name: str) -> str | None:
        """The address in the environment that replaces a local service; None to start our own."""
        value = os.environ.get(name)
        own = addresses(last_ports(self.data / "kafka"))
        ignored = name == "KAFKA_BOOTSTRAP_SERVERS" and (self.options.own_kafka or value == own)
        return None if ignored else value or None

    def _start(self) -> None:
        supervisor = self._running_supervisor()
        serving = self.serving
        # vLLM is the slowest by far, so it starts first; everything else comes up beside it.
        vllm = None
        if not self._external_address("VLLM_BASE_URL"):
            vllm = LocalVllm(
                serving.model,
                self.data / "logs",
                served_model=serving.policy,
                policy=serving.policy,
                port=self._vllm_port,
                settings=self.options.vllm or VllmSettings.read(),
                restart=self.options.restart,
                extra=serving.arguments(),
                env=serving.vllm_environment(),
                supervisor=supervisor,
            )
            self._devices = vllm.devices
            vllm.start()
            if not vllm.devices.on_gpu:
                self._gateway_prefix = batch_command()
        kafka_servers, redis_url = (
            self._external_address("KAFKA_BOOTSTRAP_SERVERS"),
            self._external_address("REDIS_URL"),
        )
        kafka = (
            None
            if kafka_servers
            else LocalKafka(
                self.data / "kafka", brokers=self.options.brokers, supervisor=supervisor
            ).start()
        )
        if kafka is not None and kafka.moved_from:
            before = ", ".join(map(str, kafka.moved_from))
            self._on_note(
                f"Kafka's port {before} is taken by another program; it is now "
                f"{kafka.bootstrap_servers}: export it anew"
            )
        valkey = (
            None if redis_url else LocalValkey(self.data / "valkey", supervisor=supervisor).start()
        )
        self.environment = self._environment(
            bootstrap_servers=kafka.bootstrap_servers if kafka else kafka_servers or "",
            redis_url=valkey.url if valkey else redis_url or "",
            vllm_url=vllm.base_url if vllm else self._external_address("VLLM_BASE_URL") or "",
        )
        if kafka:
            self._wait_ready("kafka", kafka)
        if valkey:
            self._wait_ready("valkey", valkey)
        create_topics(self.kafka)
        check_topics(self.kafka)
        services = [supervisor.start(spec) for spec in with_metrics_ports(self._services())]
        # An applier's work is on vLLM, so it is ready after that.
        early = [service for service in services if not service.name.startswith("applier")]
        for service in early:
            self._wait_ready(service.name, service)
        if vllm:
            self._wait_ready("vllm", vllm)
        for service in services[len(early) :]:
            self._wait_ready(service.name, service)
        write_exports(self.data, self.exports)

    def _wait_ready(self, name: str, part: LocalService | SupervisedProcess) -> None:
        part.wait_ready()
        self._on_ready(name, time.monotonic() - self._started)

    def _environment(
        self, *, bootstrap_servers: str, redis_url: str, vllm_url: str
    ) -> dict[str, str]:
        serving = self.serving
        return {
            "KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers,
            "REDIS_URL": redis_url,
            "VLLM_BASE_URL": vllm_url,
            "FULGURITE_TOPIC_PREFIX": os.environ.get("FULGURITE_TOPIC_PREFIX", "fulgurite."),
            "FULGURITE_REPLICATION": os.environ.get(
                "FULGURITE_REPLICATION", str(min(self.options.brokers, 3))
            ),
            "FULGURITE_SIGNING_KEYS": self.secrets.signing_keys,
            "FULGURITE_ADMIN_KEY": self.secrets.admin_key,
            "FULGURITE_API_KEYS": self.secrets.api_key,
            **serving.environment(),
            "FULGURITE_ALIASES": all_aliases(
                (serving.policy, *serving.policies),
                os.environ.get("FULGURITE_ALIASES", "").split(","),
                self.options.aliases,
            ),
            "FULGURITE_DATA_DIR": str(self.data),
            "FULGURITE_CONSOLE_INDEX": str(self.data / "console.duckdb"),
            "FULGURITE_GATEWAY_PORT": str(self._gateway_port),
            "FULGURITE_GATEWAY_URL": self.gateway_url,
            **self.options.environment,
        }

    def _services(self) -> list[ProcessSpec]:
        return [
            *(self._learners() if self.options.trains else ()),
            self._service("aggregator", "services.aggregator.main"),
            self._service("rewarder", "services.rewarder.main"),
            self._service(
                "gateway",
                "services.gateway.main",
                ready=self._own_gateway_answers,
                env=self.environment,
                prefix=self._gateway_prefix,
            ),
            *self._appliers(),
            *self._console(),
        ]

    def _own_gateway_answers(self) -> bool:
        """Ask with this stack's key, which another program on the port would refuse."""
        return answers(
            self._gateway_port, "/v1/models", {"Authorization": f"Bearer {self.secrets.api_key}"}
        )

    def _learners(self) -> list[ProcessSpec]:
        """One for each policy that is trained."""
        serving = self.serving
        return [
            self._service(
                "learner" if len(serving.policies) == 1 else f"learner-{policy}",
                "services.learner.main",
                env={
                    **({"FULGURITE_RUN": str(self._run)} if self._run else {}),
                    **self._devices.learner,
                    "FULGURITE_POLICY": policy,
                    variable("policy.name"): policy,
                    variable("policy.model"): str(serving.model),
                },
            )
            for policy in serving.trained
        ]

    def _appliers(self) -> list[ProcessSpec]:
        """One for each backend of VLLM_BASE_URL."""
        backends = list(parse_backends(self.environment["VLLM_BASE_URL"], "vllm"))
        if len(backends) == 1:
            return [self._service("applier", "services.applier.main")]
        return [
            self._service(
                f"applier-{name}", "services.applier.main", env={"FULGURITE_BACKEND": name}
            )
            for name in backends
        ]

    def _console(self) -> list[ProcessSpec]:
        """The page of what happens. It has the lowest priority: agents and learners come first."""
        port = self._console_port
        if port is None:
            return []
        return [
            self._service(
                "console",
                "services.console.main",
                ready=lambda: answers(port, "/healthz"),
                env={
                    "FULGURITE_ADMIN_KEY": self.secrets.admin_key,
                    "FULGURITE_CONSOLE_HOST": LOCALHOST,
                    "FULGURITE_CONSOLE_PORT": str(port),
                    "FULGURITE_CONSOLE_TOKENIZER": str(self.serving.model),
                },
                prefix=("nice", "-n", "10") if shutil.which("nice") else (),
            )
        ]

    def _service(
        self,
        name: str,
        module: str,
        ready: Callable[[], bool] | None = None,
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> ProcessSpec:
        return ProcessSpec(
            name=name,
            argv=[*prefix, sys.executable, "-P", "-m", module],
            log=self.data / "logs" / f"{name}.log",
            env={**without_keys(self.environment), **(env or {})},
            ready=ready,
            pulse=None if ready else self.data / "run" / f"{name}.pulse",
            ready_timeout_s=READY_TIMEOUT_S,
            restart=self.options.restart,
        )


def has_console() -> bool:
    """Whether the packages of the extra `console` are installed."""
    return all(find_spec(name) is not None for name in ("duckdb", "nicegui"))


def console_port() -> int:
    """FULGURITE_CONSOLE_PORT; if it is not set, its default, or a free one if that is taken."""
    named = os.environ.get("FULGURITE_CONSOLE_PORT")
    if named:
        return int(named)
    return CONSOLE_PORT if is_free(CONSOLE_PORT) else free_port()


def with_metrics_ports(specs: Iterable[ProcessSpec]) -> list[ProcessSpec]:
    """Give each service a port for its metrics, from FULGURITE_METRICS_PORT on, if that is set."""
    first = int(os.environ.get("FULGURITE_METRICS_PORT") or 0)
    return [
        msgspec.structs.replace(
            spec, env={**(spec.env or {}), "FULGURITE_METRICS_PORT": str(first + place)}
        )
        if first
        else spec
        for place, spec in enumerate(specs)
    ]


def all_aliases(policies: Sequence[str], given: Iterable[str], added: Iterable[str]) -> str:
    """For FULGURITE_ALIASES: the policies' own names, what the user set, what was added; the last
    target of an alias counts. An alias without one is of the policy of that name or, where there is
    none, of the first.
    """
    found = {policy: policy for policy in policies}
    for text in (part.strip() for part in (*given, *added)):
        if text:
            alias, _, target = text.partition("=")
            found[alias.strip()] = target.strip() or found.get(alias.strip(), policies[0])
    return ",".join(f"{alias}={target}" for alias, target in found.items())


def _ignore(*_: object) -> None:
    """The default of `on_ready` and `on_note`."""


def load_secrets(path: Path) -> Secrets:
    """Load the secrets of a data folder; make them at the first call."""
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
