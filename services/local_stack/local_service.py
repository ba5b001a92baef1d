"""Define a local service: a context manager that starts it, waits for it, and stops it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class LocalService(ABC):
    """A service of the local stack: Kafka, Valkey or vLLM."""

    @abstractmethod
    def start(self) -> Self:
        """Start it without waiting."""

    @abstractmethod
    def wait_ready(self) -> Self:
        """Block until it accepts clients. Raises ServiceExited, ServiceNotReady."""

    @abstractmethod
    def stop(self) -> None:
        """Stop it and its children. Idempotent."""

    def __enter__(self) -> Self:
        try:
            return self.start().wait_ready()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
