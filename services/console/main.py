"""Runs the console: `python -m services.console.main`.

SIGTERM stops it. See README.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys

from services.common.kafka.codec import make_codec
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import TopicLayoutError, check_topics
from services.common.runtime import logs
from services.common.runtime.ending import run_service
from services.console.index.errors import IndexFailed
from services.console.index.service import IndexService
from services.console.index.settings import IndexSettings


async def run(settings: IndexSettings, kafka: KafkaSettings) -> None:
    """Run until cancelled. Raises IndexFailed, LogUnavailable or TopicLayoutError at the start, and
    later what ended the reading of the log.
    """
    await asyncio.to_thread(check_topics, kafka)
    index = await asyncio.to_thread(IndexService, settings, kafka, make_codec())
    index.start()
    try:
        await asyncio.to_thread(index.wait)
    finally:
        await asyncio.to_thread(index.close)
    if index.failure is not None:
        raise index.failure


async def main() -> int:
    """Run until a signal; returns the exit code."""
    settings, kafka = IndexSettings(), KafkaSettings()
    logs.configure("console", settings.log_level)
    task = asyncio.create_task(run(settings, kafka))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await task
    except (IndexFailed, LogUnavailable, TopicLayoutError) as error:
        logs.get(__name__).error("the console cannot run", error=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run_service("console", lambda: asyncio.run(main())))
