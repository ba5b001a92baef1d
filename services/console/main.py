"""Runs the console: `python -m services.console.main`.

SIGTERM stops it. See README.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Coroutine
from typing import Any

from services.common.kafka.codec import make_codec
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import TopicLayoutError, check_topics
from services.common.runtime import logs
from services.common.runtime.ending import run_service
from services.common.runtime.process_secrets import hide_from_other_processes
from services.console.index.errors import IndexFailed
from services.console.index.service import IndexService
from services.console.index.settings import IndexSettings
from services.console.operator import operator_actions
from services.console.pages.reading import LiveIndex
from services.console.pages.server import ConsoleAddressTaken, create_app, listen, serve
from services.console.pages.settings import PageSettings


async def run(settings: IndexSettings, pages: PageSettings, kafka: KafkaSettings) -> None:
    """Run until cancelled. Raises IndexFailed, LogUnavailable, TopicLayoutError or
    ConsoleAddressTaken at the start, and later what ended the reading of the log, or ConsoleEnded.
    """
    listening = listen(pages)
    await asyncio.to_thread(check_topics, kafka)
    codec = make_codec()
    index = await asyncio.to_thread(IndexService, settings, kafka, codec)
    app = create_app(LiveIndex(index.reader), pages, codec, actions=operator_actions(kafka))
    stop = asyncio.Event()
    index.start()
    logs.get(__name__).info("ready", index=str(settings.index), port=listening.getsockname()[1])
    try:
        await until_one_ends(serve(app, listening, stop), asyncio.to_thread(index.wait), stop)
    finally:
        await asyncio.to_thread(index.close)
    if index.failure is not None:
        raise index.failure
    raise ConsoleEnded("it stopped serving or reading the log, and nobody asked it to")


async def until_one_ends(
    serving: Coroutine[Any, Any, None], reading: Coroutine[Any, Any, None], stop: asyncio.Event
) -> None:
    """Serve and read the log until one of both ends, then stop serving. Raises what ended the
    serving.
    """
    served = asyncio.create_task(serving)
    read = asyncio.create_task(reading)
    try:
        await asyncio.wait((served, read), return_when=asyncio.FIRST_COMPLETED)
    finally:
        stop.set()
        await served


class ConsoleEnded(Exception):
    """The console ended although it should run."""


async def main() -> int:
    """Run until a signal; returns the exit code."""
    # It has the admin key.
    hide_from_other_processes()
    # The index holds what agents and users wrote: its files are for their owner alone.
    os.umask(0o077)
    settings, pages, kafka = IndexSettings(), PageSettings(), KafkaSettings()
    logs.configure("console", settings.log_level)
    task = asyncio.create_task(run(settings, pages, kafka))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await task
    except (
        IndexFailed,
        LogUnavailable,
        TopicLayoutError,
        ConsoleAddressTaken,
        ConsoleEnded,
    ) as error:
        logs.get(__name__).error("the console cannot run", error=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run_service("console", lambda: asyncio.run(main())))
