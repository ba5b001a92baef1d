"""What every engine on this machine is: a context manager. Entering starts it and waits until it is
ready, leaving stops it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class LocalEngine(ABC):
    """Started, waited for and stopped in one way, whatever it is made of."""

    @abstractmethod
    def start(self) -> Self:
        """Start it without waiting."""

    @abstractmethod
    def wait_ready(self) -> Self:
        """Block until it accepts clients. Raises EngineExited, EngineNotReady."""

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
