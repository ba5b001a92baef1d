"""Real engines for the integration tests, started at first use, one of each kind per session,
stopped at its end.

`kafka` (one broker), `kafka3` (three, replication 3: tests that harm one heal it again),
`vllm_tiny` (tiny random model with tied embeddings), `valkey`. Topics are shared: give each test a
topic prefix of its own (`topic_prefix`). And `stub`, a model server that does as it is told, one
for each file.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from services.local_stack.kafka_local import LocalKafka
from services.local_stack.model import tiny_model
from services.local_stack.valkey_local import LocalValkey
from services.local_stack.vllm_local import LocalVllm
from tests.integration.stub_upstream import Stub, running_stub


@pytest.fixture(scope="session")
def engines_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and logs of this session's engines."""
    return tmp_path_factory.mktemp("engines")


@pytest.fixture
def topic_prefix() -> str:
    """For FULGURITE_TOPIC_PREFIX: nobody else's topics."""
    return f"t{uuid.uuid4().hex[:12]}."


@pytest.fixture(scope="session")
def kafka(engines_folder: Path) -> Iterator[LocalKafka]:
    """One broker."""
    with LocalKafka(engines_folder / "kafka", heap_mb=384) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def kafka3(engines_folder: Path) -> Iterator[LocalKafka]:
    """Three brokers."""
    with LocalKafka(engines_folder / "kafka3", brokers=3, heap_mb=320) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def valkey(engines_folder: Path) -> Iterator[LocalValkey]:
    """A Redis."""
    with LocalValkey(engines_folder / "valkey") as server:
        yield server


@pytest.fixture(scope="session")
def vllm_tiny(engines_folder: Path) -> Iterator[LocalVllm]:
    """vLLM with the tiny model, served as `policy`, with adapters. Tests that update its weights
    leave higher versions behind.
    """
    lora = ["--enable-lora", "--max-lora-rank", "8", "--max-loras", "2", "--max-cpu-loras", "8"]
    env = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    with LocalVllm(tiny_model(), engines_folder / "vllm", threads=1, extra=lora, env=env) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stub() -> AsyncGenerator[Stub]:
    """A model server that does as it is told."""
    async with running_stub() as running:
        yield running
