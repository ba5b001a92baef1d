"""One deployment's processes under a hand that kills them: each is started again, whoever ended it,
until the hand is told to stop.
"""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

from services.local_stack.kafka_local import LocalKafka
from tests.integration.test_processors import Deployment, wait_until

PROCESSORS = ("aggregator", "rewarder")
VICTIMS = (*PROCESSORS, "worker")

PATIENCE = {
    "FULGURITE_REWARDER_GRACE_S": "2",
    "FULGURITE_REWARDER_LIVE_WAIT_S": "5",
    "FULGURITE_REWARDER_AMEND_WAIT_S": "0.5",
    "FULGURITE_REWARDER_AMEND_EVERY_S": "1",
    "FULGURITE_AGGREGATOR_SILENCE_S": "3",
}
"""Minutes of the defaults as seconds."""

FORGETFUL = {
    "FULGURITE_REWARDER_KEEP_S": "2",
    "FULGURITE_REWARDER_HISTORY_S": "2",
    "FULGURITE_AGGREGATOR_KEEP_S": "2",
    "FULGURITE_AGGREGATOR_HISTORY_S": "2",
}
"""What comes late is then found in the log, or not at all."""


class Processes(Deployment):
    """Aggregator, rewarder and a reward worker."""

    def __init__(self, bootstrap: str, prefix: str, folder: Path, reward: str) -> None:
        folder.mkdir()
        super().__init__(bootstrap, prefix, folder)
        self._worker = ("--reward", reward, "--run-id", "chaos")
        self.environment["FULGURITE_REWARD_WORKER_SESSION_TIMEOUT_S"] = "6"
        # One that is ended by a fault of its own says where it was.
        self.environment["PYTHONFAULTHANDLER"] = "1"

    def spawn(self, name: str, *, forgetful: bool = False) -> Path:
        """Start a process by its name and go on: `aggregator`, or `aggregator.second` for another
        of the group.
        """
        service, _, instance = name.partition(".")
        environment = PATIENCE | (FORGETFUL if forgetful else {})
        if service == "worker":
            return self._spawn(name, "services.rewards.worker", self._worker, environment)
        return self._spawn(
            name,
            f"services.{service}.main",
            (),
            environment | {f"FULGURITE_{service.upper()}_INSTANCE": instance or "0"},
        )

    def start_all(self) -> None:
        """Start what there is of each, and wait until all are ready."""
        for name, log in {name: self.spawn(name) for name in VICTIMS}.items():
            self.await_ready(name, log)

    def await_ready(self, name: str, log: Path) -> None:
        """Wait until a process owns its partitions. Raises AssertionError if it ended."""
        self._await_ready(name, log)


class Hand(threading.Thread):
    """Kills at random until told to stop; then everything that should run does. Prints what it
    does, and when.
    """

    def __init__(self, processes: Processes, kafka: LocalKafka, seed: int, pause_s: float) -> None:
        super().__init__(name="hand", daemon=True)
        self._processes = processes
        self._kafka = kafka
        self._chance = random.Random(seed)
        self._pause_s = pause_s
        self._halt = threading.Event()
        self._began = time.monotonic()
        self._wanted: dict[str, float] = dict.fromkeys(VICTIMS, 0.0)
        """When each is to be started again, if it does not run."""
        self.killed: dict[str, int] = {}
        self.ended: dict[str, int] = {}
        """Processes that gave up by themselves, as they do when Kafka is away, for a supervisor to
        start again.
        """
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            self._rounds()
        except BaseException as error:  # noqa: BLE001 - the edge of the thread: the test tells of it
            self.failure = error

    def stop(self) -> None:
        """The plan is finished, then everything is brought up. Raises what went wrong."""
        self._halt.set()
        self.join()
        if self.failure is not None:
            raise self.failure
        for name in self._wanted:
            self._revive(name, at_once=True)

    def kill_processors(self) -> None:
        """Once more, when it is stopped."""
        self._kill_both()
        self.supervise()

    def supervise(self) -> None:
        """Start again whatever gave up since."""
        for name in self._wanted:
            self._revive(name, at_once=True)

    def _rounds(self) -> None:
        """Each kind of fault once, in this order; then whatever chance says."""
        brokers = len(self._kafka.brokers)
        faults = (
            [self._kill_one] * 6
            + [self._kill_both, self._rebalance]
            + ([self._kill_broker] if brokers > 1 else [])
        )
        plan = [
            self._kill_one,
            self._rebalance,
            *([self._kill_broker] if brokers > 1 else []),
            self._kill_both,
            self._kill_worker,
        ]
        while plan or not self._halt.is_set():
            (plan.pop(0) if plan else self._chance.choice(faults))()
            self._wait(self._chance.uniform(0.2, 2.0) * self._pause_s)

    def _kill_one(self) -> None:
        self._kill(self._chance.choice(VICTIMS))

    def _kill_worker(self) -> None:
        self._kill("worker")

    def _kill_both(self) -> None:
        for name in PROCESSORS:
            self._kill(name)

    def _rebalance(self) -> None:
        """A second of each comes; then one of the two dies, and the other goes on with all."""
        for service in PROCESSORS:
            second = f"{service}.second"
            if second not in self._wanted:
                self._say(f"start {second}")
                self._wanted[second] = 0.0
                log = self._processes.spawn(second, forgetful=self._chance.random() < 0.5)
                wait_until(
                    lambda log=log, name=second: self._is_up(name, log), f"{second} is ready"
                )
        self._wait(self._pause_s)
        for service in PROCESSORS:
            name = self._chance.choice((service, f"{service}.second"))
            self._kill(name)
            del self._wanted[name]
        # The one that stays has the first's name in the plan, so that both are never gone for good.
        for service in PROCESSORS:
            if service not in self._wanted:
                self._wanted[service] = time.monotonic() + self._chance.uniform(5, 15)

    def _is_up(self, name: str, log: Path) -> bool:
        """Whether it is ready, or gave up before it was."""
        return (
            '"event": "ready"' in log.read_text() or not self._processes.processes[name].is_running
        )

    def _kill_broker(self) -> None:
        node = self._chance.randrange(len(self._kafka.brokers))
        self._say(f"kill -9 broker {node}")
        self._count(self.killed, "broker")
        self._kafka.kill(node)
        self._wait(self._chance.uniform(1, 6))
        self._kafka.restart(node)
        self._say(f"broker {node} is back")

    def _kill(self, name: str) -> None:
        process = self._processes.processes.get(name)
        if process is None or not process.is_running:
            return
        self._say(f"kill -9 {name}")
        self._count(self.killed, name)
        self._processes.kill(name)
        self._wanted[name] = time.monotonic() + self._chance.uniform(0, 2)

    def _wait(self, seconds: float) -> None:
        """Start again what is due meanwhile."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for name in self._wanted:
                self._revive(name)
            time.sleep(0.05)

    def _revive(self, name: str, *, at_once: bool = False) -> None:
        process = self._processes.processes.get(name)
        if process is not None and process.is_running:
            return
        if process is not None:
            self._say(f"{name} gave up with exit code {process.returncode}")
            self._count(self.ended, name)
            del self._processes.processes[name]
            self._wanted[name] = time.monotonic() + 0.5
        if at_once or time.monotonic() >= self._wanted[name]:
            self._processes.spawn(name, forgetful=self._chance.random() < 0.5)

    def _count(self, kinds: dict[str, int], name: str) -> None:
        service = name.partition(".")[0]
        kinds[service] = kinds.get(service, 0) + 1

    def _say(self, what: str) -> None:
        print(f"{time.monotonic() - self._began:7.1f} s  {what}", flush=True)  # noqa: T201
