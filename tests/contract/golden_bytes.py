"""The formats that stored data has: events, ids, keys, packed tokens, deltas, claim checks, and the
files of learner and gateway.

`python -m tests.contract.golden_bytes` writes `golden/*.json` again. Do that only where a format is
meant to change: logs, checkpoints and spools of deployments that exist were written in the old one.
A file that changes by itself is a bug.
"""

from __future__ import annotations

import base64
import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
from msgspec import inspect

from fulgurite import ids
from fulgurite.avro.codec import Codec
from fulgurite.calls.claim_checks import extract_pieces, leave, payload_of
from fulgurite.calls.deltas import link_of, shorten
from fulgurite.enums import EpisodeOutcome, Mode
from fulgurite.episodes.stitching import stitch
from fulgurite.events import EVENT_TYPES, ClaimCheck, Episode, Event, LlmCall, Position
from fulgurite.groups.group_revisions import revision_of
from fulgurite.groups.group_state import GroupState
from fulgurite.tokens import pack_ids, pack_logprobs, prompt_hash
from fulgurite.topics import LLM_CALLS
from fulgurite.versions import Version
from services.gateway.identity.claims import Claims
from services.gateway.identity.keys import AGENT_SCOPES, KeyRing
from services.gateway.recording.backlog import Entry
from services.gateway.recording.spool_file import MAGIC, frame
from services.learner.artifacts import ArtifactStore
from services.learner.checkpoint import CheckpointState, CheckpointStore
from services.rewarder.closing_settings import ClosingSettings
from tests.synthetic import make_call, make_declared, make_reward, make_status

GOLDEN = Path(__file__).with_name("golden")
CODEC = Codec()
SECRET = b"a secret of these tests"
CHANCE = bytes(range(10))

Values = dict[str, Any]


def event_cases() -> Iterator[tuple[str, Event]]:
    """Names and events: of each type one with all fields and one with those that it must have; an
    episode whose calls are deltas.
    """
    for event_type in EVENT_TYPES:
        yield (
            f"{event_type.__name__}: all fields",
            _filled(event_type, itertools.count(1), whole=True),
        )
        yield (
            f"{event_type.__name__}: required fields",
            _filled(event_type, itertools.count(1), whole=False),
        )
    yield "Episode: a conversation", _conversation()


def events() -> Values:
    """Each case: its type, its fields, its record headers and its bytes."""
    return {
        name: {
            "type": type(event).__name__,
            "fields": json.loads(msgspec.json.encode(event)),
            "headers": {
                key: value.decode() for key, value in CODEC.headers(event, "00-0a-0b-01").items()
            },
            "bytes": _text(CODEC.encode(event)),
        }
        for name, event in event_cases()
    }


def identifiers() -> Values:
    """What ids, revisions and scoped keys are made of, and what they are."""
    group = ids.mint_group(1_700_000_000_000, CHANCE)
    rollout = ids.rollout_of(group, 3, SECRET)
    completion = ids.completion_of(rollout, 1, CHANCE, SECRET)
    claims = Claims(
        rollout=rollout,
        attempt=1,
        group=group,
        agent="critic",
        mode=Mode.train,
        scopes=AGENT_SCOPES,
        exp=1_700_000_600_000,
    )
    episodes, gathered = _closed_group()
    outputs = gathered.close(episodes[0].group_id, ClosingSettings().rules())
    return {
        "group": group,
        "group of an owner": ids.owned_group(1_700_000_000_000, CHANCE, "owner", SECRET),
        "group of a named session": ids.external_group("owner", "session", SECRET),
        "subject": ids.subject_of("person", SECRET),
        "rollout": rollout,
        "completion": completion,
        "completion of the Responses API": ids.public_completion(
            completion, "resp_", "resp_upstream"
        ),
        "episode": ids.episode_id(rollout, 1),
        "action": ids.action_id(completion, 2),
        "derived": ids.derive_id("derived", 1, "from", "parts"),
        "version": str(Version("policy", 2, 17)),
        "episode revisions": [episode.revision for episode in episodes],
        "group revision": revision_of(outputs),
        "rows and entries": [output.event_id for output in outputs],
        "scoped key": KeyRing({"k1": SECRET}).mint(claims),
    }


def payloads() -> Values:
    """Packed tokens, a delta and its link, a call whose payload lies elsewhere, and one some of
    whose texts do.
    """
    first, second = _two_calls()
    link = link_of(first, 3, 41)
    delta, depth = shorten(second, [link])
    payload = payload_of(second)
    claim = ClaimCheck(uri="file:///claims/a", sha256="ab" * 32, size=len(payload))
    pieces, texts = extract_pieces(second, 100)
    return {
        "ids": _text(pack_ids([0, 1, -1, 2**31 - 1])),
        "logprobs": _text(pack_logprobs([0.0, -0.1, -20.25])),
        "prompt hash": prompt_hash(pack_ids([1, 2, 3])),
        "delta": _text(CODEC.encode(delta)),
        "depth of the delta": depth,
        "payload": payload.decode(),
        "call without its payload": _text(CODEC.encode(leave(second, claim))),
        "call without its long texts": _text(CODEC.encode(pieces)),
        "long texts": {name: text.decode() for name, text in texts.items()},
    }


def files() -> Values:
    """What learner and gateway leave on their disks: each file's name within its folder, and its
    bytes as text.
    """
    event = CODEC.encode(make_call())
    spooled = msgspec.msgpack.encode(Entry(LLM_CALLS.name, "key", None, 1_700_000_000.25, event))
    with tempfile.TemporaryDirectory() as made, tempfile.TemporaryDirectory() as base:
        folder = Path(made).resolve()
        state = checkpoint()
        CheckpointStore(folder, state.policy, durable=False).write(
            state, lambda part: _write(part / "model.bin", b"tensors")
        )
        ArtifactStore(folder, state.policy, Path(base), durable=False).write(
            Version("policy", 2, 17), lambda path: _write(path, b"weights")
        )
        names = {
            str(path.relative_to(folder)): path.read_bytes().decode().replace(str(folder), "FOLDER")
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
    return {
        "learner": names,
        "gateway": {"1.spool": _text(MAGIC + frame(spooled) + frame(b"a second payload"))},
    }


def checkpoint() -> CheckpointState:
    """A learner's state after a step."""
    return CheckpointState(
        policy="policy",
        topic="fulgurite.trajectories",
        topic_id="a-topic-id",
        epoch=2,
        step=17,
        version="policy@2.17",
        serial=5,
        positions=(Position(partition=0, offset=41), Position(partition=7, offset=0)),
        settled={"gr_a": (0, 43)},
        trained_batches=12,
        pending=(b"\x00framed", b"\x00events"),
    )


GOLDEN_FILES = {
    "events.json": events,
    "ids.json": identifiers,
    "payloads.json": payloads,
    "files.json": files,
}
"""What each file holds."""


def event_of(case: Values) -> Event:
    """The event of a case in `events.json`."""
    types = {event_type.__name__: event_type for event_type in EVENT_TYPES}
    return msgspec.convert(case["fields"], types[case["type"]], builtin_types=())


def _filled(struct: type[Any], numbers: Iterator[int], *, whole: bool) -> Any:
    fields = (field for field in msgspec.structs.fields(struct) if whole or field.required)
    return struct(
        **{
            field.name: _value(inspect.type_info(field.type), field.name, numbers, whole=whole)
            for field in fields
        }
    )


def _value(kind: inspect.Type, name: str, numbers: Iterator[int], *, whole: bool) -> Any:
    match kind:
        case inspect.StrType():
            return f"{name} ☃ {next(numbers)}"
        case inspect.IntType():
            return next(numbers)
        case inspect.FloatType():
            return next(numbers) / 4
        case inspect.BoolType():
            return whole
        case inspect.BytesType():
            return bytes([0, next(numbers) % 256])
        case inspect.EnumType():
            return list(kind.cls)[-1 if whole else 0]
        case inspect.StructType():
            return _filled(kind.cls, numbers, whole=whole)
        case inspect.VarTupleType():
            return tuple(_value(kind.item_type, name, numbers, whole=whole) for _ in range(2))
        case inspect.DictType():
            return {key: _value(kind.value_type, name, numbers, whole=whole) for key in ("a", "b")}
        case inspect.UnionType():
            branch = next(other for other in kind.types if not isinstance(other, inspect.NoneType))
            return _value(branch, name, numbers, whole=whole)
        case _:
            raise TypeError(f"no value for {kind}")


def _two_calls() -> tuple[LlmCall, LlmCall]:
    """The second extends the first."""
    said: list[dict[str, object]] = [
        {"role": "system", "content": "Be brief. " * 60},
        {"role": "user", "content": "1+1? ☃"},
    ]
    prompt = list(range(100))
    first = make_call(messages=said, prompt=prompt, answers=[[7, 9]])
    answered: list[dict[str, object]] = [
        *said,
        {"role": "assistant", "content": "answer 0"},
        {"role": "user", "content": "And 2+2?"},
    ]
    second = make_call(
        turn=1, at=1_100, messages=answered, prompt=[*prompt, 7, 9, 5], answers=[[4], [6, 8]]
    )
    hashed = [
        msgspec.structs.replace(call, prompt_hash=prompt_hash(call.prompt_token_ids or b""))
        for call in (first, second)
    ]
    return hashed[0], hashed[1]


def _conversation() -> Episode:
    calls = _two_calls()
    return Episode(
        event_id="episode",
        event_time=2_000,
        episode_id=ids.episode_id(calls[0].rollout_id, 0),
        revision="revision",
        group_id=calls[0].group_id,
        rollout_id=calls[0].rollout_id,
        attempt=0,
        mode=Mode.train,
        rule="rule",
        outcome=EpisodeOutcome.finished,
        will_retry=False,
        started_at=1_000,
        ended_at=2_000,
        calls=calls,
    )


def _closed_group() -> tuple[tuple[Episode, ...], GroupState]:
    """Two rollouts, of which one is paid less; a retried call is in the ledger."""
    declared = make_declared(0, 2)
    first = stitch([declared, make_call(0, 0, 0), make_status(0, 0)])
    second = stitch(
        [
            declared,
            make_call(0, 1, 0, answers=[(8,)]),
            make_call(0, 1, 1, at=1_010),
            make_status(0, 1),
        ]
    )
    assert first is not None
    assert second is not None
    gathered = GroupState()
    for event in (first, second, make_reward(0, 0, 1.0), make_reward(0, 1, 0.25)):
        gathered.add(event)
    return (first, second), gathered


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def main() -> None:
    """Write the files."""
    for name, make in GOLDEN_FILES.items():
        text = json.dumps(cast(Any, make()), indent=1, ensure_ascii=False)
        (GOLDEN / name).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
