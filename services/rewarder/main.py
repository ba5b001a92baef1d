"""The rewarder: reads `episodes` and `agent.rewards`, writes `trajectories` and `training.ledger`.

`python -m services.rewarder.main`; SIGTERM stops it. See README.md for what it promises.
"""

from __future__ import annotations

import asyncio
import sys

from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import check_topics
from services.common.runtime import logs
from services.common.runtime.ending import run_service
from services.common.streaming.worker import quieten
from services.rewarder.app import Rewarder
from services.rewarder.settings import RewarderSettings


async def run() -> int:
    """Until told to stop; the exit code."""
    settings = RewarderSettings()
    logs.configure("rewarder", settings.log_level)
    quieten()
    kafka = KafkaSettings()
    check_topics(kafka)
    return await Rewarder(kafka, settings).run()


if __name__ == "__main__":
    sys.exit(run_service("rewarder", lambda: asyncio.run(run())))
