"""The clusters that are harmed; and one that is not. `FULGURITE_CHAOS_BROKERS` says how many
brokers the harmed one has.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.local_stack.kafka_local import LocalKafka

BROKERS = int(os.environ.get("FULGURITE_CHAOS_BROKERS", "1"))


@pytest.fixture(scope="session")
def chaos_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and logs."""
    return tmp_path_factory.mktemp("chaos")


@pytest.fixture(scope="session")
def harmed(chaos_folder: Path) -> Iterator[LocalKafka]:
    """The cluster on which everything is killed."""
    with LocalKafka(chaos_folder / "harmed", brokers=BROKERS, heap_mb=384) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def calm(chaos_folder: Path, harmed: LocalKafka) -> Iterator[LocalKafka]:
    """Where the undisturbed run writes: a broker of its own, unless the harmed cluster has one
    alone, which nobody kills.
    """
    if BROKERS == 1:
        yield harmed
        return
    with LocalKafka(chaos_folder / "calm", heap_mb=384) as cluster:
        yield cluster
