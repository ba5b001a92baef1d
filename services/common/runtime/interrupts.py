"""SIGINT and SIGTERM as KeyboardInterrupt, whatever they did before."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupts_noted() -> Generator[threading.Event]:
    """Yield what SIGINT and SIGTERM set, besides raising KeyboardInterrupt.

    Python drops an exception that is raised while an object is finalized, or in a callback of a
    library; the event stays.
    """
    stopped = threading.Event()

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        stopped.set()
        raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
