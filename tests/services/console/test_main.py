"""The console ends with what ended it, and never as if it had been asked to."""

from __future__ import annotations

import asyncio
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from services.common.kafka.settings import KafkaSettings
from services.console import main
from services.console.index.settings import IndexSettings
from services.console.main import ConsoleEnded, until_one_ends
from services.console.pages.settings import PageSettings


class QuietIndex:
    """Has nothing to read."""

    reader = None
    failure: BaseException | None = None

    def __init__(self, *_given: Any) -> None:
        self._closed = threading.Event()

    def start(self) -> None:
        """See IndexService."""

    def wait(self) -> None:
        """See IndexService."""
        self._closed.wait()

    def close(self) -> None:
        """See IndexService."""
        self._closed.set()


def nothing(*_given: Any, **_more: Any) -> None:
    """Stands for what needs a broker or NiceGUI."""


async def test_serving_that_ends_by_itself_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def serve(_app: Any, listening: socket.socket, _stop: asyncio.Event) -> None:
        """Ends at once, as a web server does that cannot start."""
        listening.close()

    monkeypatch.setattr(main, "IndexService", QuietIndex)
    monkeypatch.setattr(main, "check_topics", nothing)
    monkeypatch.setattr(main, "create_app", nothing)
    monkeypatch.setattr(main, "serve", serve)
    settings = IndexSettings(index=tmp_path / "index.duckdb")
    with pytest.raises(ConsoleEnded, match="stopped serving"):
        await main.run(settings, PageSettings(console_port=0), KafkaSettings())


async def test_who_cancels_it_gets_no_error_and_both_have_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    is_serving, has_ended = asyncio.Event(), asyncio.Event()

    async def serve(_app: Any, listening: socket.socket, stop: asyncio.Event) -> None:
        is_serving.set()
        await stop.wait()
        listening.close()
        has_ended.set()

    monkeypatch.setattr(main, "IndexService", QuietIndex)
    monkeypatch.setattr(main, "check_topics", nothing)
    monkeypatch.setattr(main, "create_app", nothing)
    monkeypatch.setattr(main, "serve", serve)
    settings = IndexSettings(index=tmp_path / "index.duckdb")
    running = asyncio.create_task(main.run(settings, PageSettings(console_port=0), KafkaSettings()))
    await is_serving.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert has_ended.is_set()


async def test_reading_that_ends_stops_the_serving() -> None:
    stop = asyncio.Event()

    async def serving() -> None:
        await stop.wait()
        raise OSError("the socket is gone")

    async def reading() -> None:
        """Ends at once."""

    with pytest.raises(OSError, match="the socket is gone"):
        await until_one_ends(serving(), reading(), stop)
    assert stop.is_set()
