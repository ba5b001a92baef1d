"""Framing, schema ids, and errors that say what is wrong. Round trips of every event type:
tests/contract.
"""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any, cast

import fastavro
import msgspec
import pytest

from fulgurite.avro import schemas as schemas_module
from fulgurite.avro.codec import Codec
from fulgurite.avro.schemas import (
    JsonSchema,
    ReleasedSchemas,
    derived_id,
    schema_fingerprint,
    schema_folder,
    schema_name,
)
from fulgurite.errors import CodecError, FulguriteError, InvalidEvent, MalformedFrame, UnknownSchema
from fulgurite.events import EVENT_TYPES, AgentReward, Event, LlmCall
from tests.synthetic import make_call

REWARD = AgentReward(
    event_id="e1",
    event_time=1_700_000_000_000,
    group_id="g",
    rollout_id="r",
    name="n",
    value=0.5,
    final=True,
    source="rest",
)
CALL = msgspec.structs.replace(make_call(), routed_alias="small")
CODEC = Codec()
REFERENCE = Codec(implementation="fastavro")


class Registry:
    """A schema registry in memory: counts from 1."""

    def __init__(self, schemas: dict[int, JsonSchema] | None = None) -> None:
        self.schemas = schemas or {}

    def id_of(self, event_type: type[Event]) -> int:
        return 1 + EVENT_TYPES.index(event_type)

    def schema_of(self, schema_id: int) -> JsonSchema | None:
        return self.schemas.get(schema_id)


def written(schema: JsonSchema, schema_id: int, datum: Any) -> bytes:
    buffer = io.BytesIO()
    cast(Any, fastavro).schemaless_writer(buffer, fastavro.parse_schema(schema), datum)
    return b"\x00" + schema_id.to_bytes(4, "big") + buffer.getvalue()


def reward_schema() -> JsonSchema:
    return json.loads((schema_folder() / "agent_reward.avsc").read_text())


def test_the_frame_is_confluents() -> None:
    data = CODEC.encode(REWARD)
    magic, schema_id = struct.unpack(">bi", data[:5])
    assert (magic, schema_id) == (0, ReleasedSchemas().id_of(AgentReward))
    assert CODEC.decode(data) == REWARD


def test_derived_ids_never_collide_with_a_registrys() -> None:
    ids = [ReleasedSchemas().id_of(event_type) for event_type in EVENT_TYPES]
    assert len(set(ids)) == len(ids)
    assert all(1 << 30 <= one < 1 << 31 for one in ids)
    assert derived_id(reward_schema()) == ReleasedSchemas().id_of(AgentReward)


def test_a_codec_with_a_registry_and_one_without_read_each_other() -> None:
    with_registry = Codec(Registry({1 + EVENT_TYPES.index(AgentReward): reward_schema()}))
    framed = with_registry.encode(REWARD)
    assert int.from_bytes(framed[1:5], "big") == 1 + EVENT_TYPES.index(AgentReward)
    assert with_registry.decode(framed) == REWARD
    assert with_registry.decode(CODEC.encode(REWARD)) == REWARD


def test_an_older_schema_is_resolved_against_ours() -> None:
    older = reward_schema()
    older["fields"] = [
        field for field in older["fields"] if field["name"] not in ("metadata", "subject")
    ]
    data = written(older, 99, msgspec.to_builtins(REWARD))
    assert Codec(Registry({99: older})).decode(data) == REWARD


def test_a_symbol_from_a_newer_release_reads_as_the_enums_default() -> None:
    newer = json.loads((schema_folder() / "llm_call.avsc").read_text())
    outcome = next(field for field in newer["fields"] if field["name"] == "outcome")
    outcome["type"]["symbols"].append("teleported")
    datum: dict[str, Any] = {
        "event_id": "e", "event_time": 1, "call_id": "c", "group_id": "g", "rollout_id": "r", "attempt": 0, "mode": "train", "agent": "",
        "identity": "none", "api": "chat.completions", "alias": "a", "backend": "b", "stream": False, "outcome": "teleported",
        "logprobs_mode": "none", "started_at": 1, "finished_at": 2,
        "sampling": dict.fromkeys(("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"), 1.0)
        | {"top_k": 0, "logit_bias": False, "grammar": False},
    }  # fmt: skip
    call = Codec(Registry({99: newer})).decode(written(newer, 99, datum))
    assert isinstance(call, LlmCall)
    assert call.outcome.value == "unknown"


@pytest.mark.parametrize("data", [b"", b"\x00\x00", b"\x01" + b"\x00" * 10, b'{"json": true}'])
def test_bytes_without_the_header_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedFrame, match="Confluent"):
        CODEC.decode(data)


@pytest.mark.parametrize("codec", [CODEC, Codec(Registry())], ids=["derived", "registry"])
def test_an_unknown_schema_is_named(codec: Codec) -> None:
    with pytest.raises(UnknownSchema, match="schema id 12 "):
        codec.decode(b"\x00" + (12).to_bytes(4, "big") + b"datum")


def test_a_schema_of_something_else_is_refused() -> None:
    stranger: JsonSchema = {"type": "record", "name": "Invoice", "namespace": "shop", "fields": []}
    with pytest.raises(UnknownSchema, match="Invoice"):
        Codec(Registry({5: stranger})).decode(b"\x00" + (5).to_bytes(4, "big"))


@pytest.mark.parametrize("event", [REWARD, CALL], ids=["ends with a flag", "ends with a text"])
def test_a_datum_that_is_cut_anywhere_is_refused(event: Event) -> None:
    """Also in its last field, where nothing more is read that could be missing."""
    data = CODEC.encode(event)
    for end in range(5, len(data)):
        with pytest.raises(InvalidEvent, match=type(event).__name__):
            CODEC.decode(data[:end])


def test_a_value_that_does_not_fit_is_refused_with_the_events_id() -> None:
    with pytest.raises(InvalidEvent, match="AgentReward e1"):
        CODEC.encode(msgspec.structs.replace(REWARD, event_time=1 << 70))


def test_headers_tell_type_id_fingerprint_and_trace() -> None:
    headers = CODEC.headers(REWARD)
    fingerprint = schema_fingerprint(reward_schema()).encode()
    assert headers == {
        "event-type": b"AgentReward",
        "event-id": b"e1",
        "schema-fingerprint": fingerprint,
    }
    assert CODEC.headers(REWARD, "00-abc-def-01")["traceparent"] == b"00-abc-def-01"


def test_schema_names_are_file_names() -> None:
    assert [schema_name(t) for t in (LlmCall, AgentReward)] == ["llm_call", "agent_reward"]


def test_schemas_inside_an_installed_package_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def installed(package: str) -> Path:
        return tmp_path / package

    monkeypatch.setattr(schemas_module.resources, "files", installed)
    assert schema_folder() == Path(schemas_module.__file__).parents[2] / "schemas" / "avro"
    (tmp_path / "fulgurite" / "schemas" / "avro").mkdir(parents=True)
    assert schema_folder() == tmp_path / "fulgurite" / "schemas" / "avro"


def test_a_released_schema_that_ours_has_left_behind_is_still_read(tmp_path: Path) -> None:
    older = reward_schema()
    older["fields"] = older["fields"][:-1]
    for path in schema_folder().glob("*.avsc"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "released" / "v0").mkdir(parents=True)
    (tmp_path / "released" / "v0" / "agent_reward.avsc").write_text(json.dumps(older))
    assert ReleasedSchemas(tmp_path).schema_of(derived_id(older)) == older


def test_the_error_tree() -> None:
    assert issubclass(CodecError, FulguriteError)
    assert all(
        issubclass(error, CodecError) for error in (MalformedFrame, UnknownSchema, InvalidEvent)
    )


def test_the_reference_writes_the_same_bytes_and_reads_them() -> None:
    data = CODEC.encode(REWARD)
    assert REFERENCE.encode(REWARD) == data
    assert REFERENCE.decode(data) == REWARD
