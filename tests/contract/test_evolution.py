"""Evolution is FULL_TRANSITIVE: every release reads every other's events, in both directions,
through their whole history.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, cast

import fastavro
import msgspec
import pytest
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
from avro.schema import Schema, parse

from fulgurite.avro.codec import Codec
from fulgurite.avro.schemas import schema_folder
from fulgurite.events import AgentReward

CURRENT = sorted(schema_folder().glob("*.avsc"))
RELEASED = sorted(schema_folder().glob("released/*/*.avsc"))


def test_there_is_a_release() -> None:
    assert {path.name for path in RELEASED} <= {path.name for path in CURRENT}, (
        "a released schema has vanished"
    )
    assert RELEASED


@pytest.mark.parametrize("released", RELEASED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_current_and_released_read_each_other(released: Path) -> None:
    history = [path for path in RELEASED if path.name == released.name] + [
        schema_folder() / released.name
    ]
    for other in history:
        _assert_reads(other, released)
        _assert_reads(released, other)


def test_the_checker_would_notice() -> None:
    schema = json.loads((schema_folder() / "agent_reward.avsc").read_text())
    schema["fields"].append({"name": "added", "type": "string", "doc": "Without a default."})
    assert not _reads(parse(json.dumps(schema)), _schema(schema_folder() / "agent_reward.avsc"))


@pytest.mark.parametrize("path", CURRENT, ids=lambda path: path.stem)
def test_the_namespace_names_the_major_version(path: Path) -> None:
    schema = json.loads(path.read_text())
    assert schema["namespace"] == "fulgurite.v1"


def test_an_event_of_an_older_release_is_read_with_its_own_schema() -> None:
    """A codec that gets an older writer's schema from a registry resolves it against ours."""
    writer = json.loads((schema_folder() / "agent_reward.avsc").read_text())
    writer["fields"] = [field for field in writer["fields"] if field["name"] != "metadata"]
    event = AgentReward(
        event_id="e",
        event_time=1,
        group_id="g",
        rollout_id="r",
        name="n",
        value=0.5,
        final=True,
        source="rest",
    )

    class Registry:
        """Knows the older schema as 7."""

        def id_of(self, event_type: type[Any]) -> int:
            return 7

        def schema_of(self, schema_id: int) -> dict[str, Any] | None:
            return writer if schema_id == 7 else None

    buffer = io.BytesIO(b"\x00" + (7).to_bytes(4, "big"))
    buffer.seek(5)
    cast(Any, fastavro).schemaless_writer(
        buffer, fastavro.parse_schema(writer), msgspec.to_builtins(event)
    )
    assert Codec(Registry()).decode(buffer.getvalue()) == event


def _assert_reads(reader: Path, writer: Path) -> None:
    assert _reads(_schema(reader), _schema(writer)), f"{reader} cannot read what {writer} wrote"


def _reads(reader: Schema, writer: Schema) -> bool:
    result = ReaderWriterCompatibilityChecker().get_compatibility(reader, writer)
    return result.compatibility is SchemaCompatibilityType.compatible


def _schema(path: Path) -> Schema:
    return parse(path.read_text())
