"""The aggregator: reads `llm.calls` and `agent.status`, writes `episodes` (and its timeouts to
`agent.status`).

`python -m services.aggregator.main`; SIGTERM stops it. See README.md for what it promises.
"""

from __future__ import annotations

import asyncio
import sys

from services.aggregator.app import Aggregator
from services.aggregator.settings import AggregatorSettings
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import check_topics
from services.common.runtime import logs
from services.common.runtime.ending import run_service
from services.common.streaming.worker import quieten


async def run() -> int:
    """Until told to stop; the exit code."""
    settings = AggregatorSettings()
    logs.configure("aggregator", settings.log_level)
    quieten()
    kafka = KafkaSettings()
    check_topics(kafka)
    return await Aggregator(kafka, settings).run()


if __name__ == "__main__":
    sys.exit(run_service("aggregator", lambda: asyncio.run(run())))
