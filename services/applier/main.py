"""Runs the policy applier of one vLLM backend: `python -m services.applier.main`.

SIGTERM stops it. See README.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys

from services.applier.adapters import AdapterKeeper
from services.applier.announcer import Announcer
from services.applier.applier import PolicyApplier
from services.applier.engine import Engine
from services.applier.log_watch import LogWatch
from services.applier.settings import ApplierSettings
from services.common.kafka.codec import make_codec
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import TopicLayoutError, check_topics
from services.common.runtime import logs
from services.common.runtime.ending import run_service


async def run(settings: ApplierSettings, kafka: KafkaSettings) -> None:
    """Run until cancelled. Raises LogUnavailable or TopicLayoutError at the start."""
    await asyncio.to_thread(check_topics, kafka)
    codec = make_codec()
    producer = EventProducer(kafka, codec, f"applier-{settings.backend}")
    policies = {settings.policy, *settings.adapters()}
    announcer = Announcer(settings.backend, producer, policies)
    watch = LogWatch(kafka, codec, policies)
    key = settings.vllm_api_key.get_secret_value() if settings.vllm_api_key else None
    watch.start()
    try:
        async with Engine(settings.vllm_base_url, key, settings.engine_timeout_s) as engine:
            await watch.caught_up.wait()
            await _serve(settings, engine, watch, announcer)
    finally:
        await asyncio.to_thread(watch.close)
        await asyncio.to_thread(producer.close)


async def _serve(
    settings: ApplierSettings, engine: Engine, watch: LogWatch, announcer: Announcer
) -> None:
    """Keep the full weights and each policy's adapters, at the same time.

    Where the engine's own policy is an adapter, its base weights stay as they were started.
    """
    follow = watch.policies
    parts: list[Announcer | PolicyApplier | AdapterKeeper] = [announcer]
    settled = asyncio.Event()
    if settings.policy in settings.adapters():
        settled.set()
    else:
        full = PolicyApplier(settings, engine, follow[settings.policy], announcer)
        settled = full.settled
        parts.append(full)
    parts += [
        AdapterKeeper(name, settings, engine, follow[name], announcer, settled)
        for name in settings.adapters()
    ]
    async with asyncio.TaskGroup() as group:
        for part in parts:
            group.create_task(part.run())


async def main() -> int:
    """Run until a signal; returns the exit code."""
    settings = ApplierSettings()  # pyright: ignore[reportCallIssue] - pydantic reads the environment
    kafka = KafkaSettings()
    logs.configure("applier", settings.log_level)
    task = asyncio.create_task(run(settings, kafka))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await task
    except (LogUnavailable, TopicLayoutError) as error:
        logs.get(__name__).error("the applier cannot start", error=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run_service("applier", lambda: asyncio.run(main())))
