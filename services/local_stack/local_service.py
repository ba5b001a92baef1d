"""Define a local service: a context manager that starts its processes, waits until they are ready,
and stops them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

from services.common.processes.supervisor import ProcessSpec, SupervisedProcess, Supervisor


class LocalService(ABC):
    """A service of the local stack: Kafka, Valkey or vLLM."""

    def __init__(self, supervisor: Supervisor | None) -> None:
        """`supervisor` watches the processes; without it the service has one of its own."""
        self._owns_supervisor = supervisor is None
        self._supervisor = supervisor or Supervisor()
        self._processes: list[SupervisedProcess] = []

    @abstractmethod
    def specs(self) -> Sequence[ProcessSpec]:
        """Prepare the service's files and describe its processes."""

    @property
    def processes(self) -> list[SupervisedProcess]:
        """The supervised processes; starts nothing."""
        if not self._processes:
            self._processes = [self._supervisor.add(spec) for spec in self.specs()]
        return self._processes

    @property
    def process(self) -> SupervisedProcess:
        """The first of `processes`."""
        return self.processes[0]

    def start(self) -> Self:
        """Start it without waiting."""
        for process in self.processes:
            process.start()
        return self

    def wait_ready(self) -> Self:
        """Block until it accepts clients. Raises ProcessExited, ProcessNotReady."""
        for process in self.processes:
            process.wait_ready()
        return self

    def stop(self) -> None:
        """Stop it and its children. Idempotent."""
        # All at once: of Kafka brokers stopped one after the other, the last would wait for a
        # quorum that is gone.
        for process in self._processes:
            process.request_stop()
        for process in self._processes:
            process.stop()
        if self._owns_supervisor:
            self._supervisor.close()

    def __enter__(self) -> Self:
        try:
            return self.start().wait_ready()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()
