"""Runs a selector: `python -m services.selector.main [--alias A,B] [--mode MODE] ...`.

Options replace the settings `FULGURITE_SELECTOR_*` of the same name. SIGTERM stops it. See
README.md.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys
import uuid
from collections.abc import Sequence

from fulgurite.enums import SelectionMode
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import check_topics
from services.common.runtime import logs
from services.common.runtime.ending import run_service
from services.common.streaming.episode_readers import serve
from services.selector.alias_selector import AliasSelector
from services.selector.bandit import chances
from services.selector.errors import Superseded
from services.selector.selector import Selector
from services.selector.settings import SelectorSettings

_OPTIONS = {
    "alias": "aliases, comma-separated (FULGURITE_SELECTOR_ALIASES)",
    "mode": "shadow, proposal or automatic",
    "objective": "earn or verdict",
    "prices": "price file",
    "price-weight": "reward that a unit of the price file's currency costs",
    "latency-weight": "reward that a second costs",
}


def make_selector(settings: SelectorSettings, kafka: KafkaSettings) -> Selector:
    """Make a selector. Raises ValueError for settings that cannot be used."""
    names, prices, rules = settings.names(), settings.read_prices(), settings.rules()
    selector_id = f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
    mode = SelectionMode(settings.mode)
    selectors = [
        AliasSelector(alias, selector_id, mode, rules, chances, prices, settings.remembered)
        for alias in names
    ]
    return Selector(selectors, kafka, settings.lookback_days)


async def run(arguments: Sequence[str]) -> int:
    """Run until stopped; returns the exit code of `serve`, 1 if another selector took over."""
    parser = argparse.ArgumentParser(
        prog="python -m services.selector.main", description="Select the variants of aliases."
    )
    for name, text in _OPTIONS.items():
        parser.add_argument(f"--{name}", default=None, help=text)
    given = {
        "aliases" if name == "alias" else name: value
        for name, value in vars(parser.parse_args(arguments)).items()
        if value is not None
    }

    def make() -> Selector:
        settings, kafka = SelectorSettings(**given), KafkaSettings()
        logs.configure("selector", settings.log_level)
        selector = make_selector(settings, kafka)
        check_topics(kafka)
        return selector

    try:
        return await serve("selector", make)
    except Superseded as error:
        logs.get(__name__).error("stopped", error=str(error))
        return 1


if __name__ == "__main__":
    sys.exit(run_service("selector", lambda: asyncio.run(run(sys.argv[1:]))))
