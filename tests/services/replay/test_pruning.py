"""Claims that may go: old, and named nowhere in the log, in whatever record."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fulgurite.avro.codec import Codec
from fulgurite.calls.claim_checks import leave, payload_of
from fulgurite.events import ClaimCheck, DeadLetter, LlmCall
from fulgurite.topics import DEAD_LETTERS
from services.common.blobs.blob_store import ClaimStore, open_store
from services.common.kafka.settings import KafkaSettings
from services.replay import pruning
from services.replay.pruning import Pruned, prune
from tests.services.replay.memory_log import MemoryLog
from tests.synthetic import make_call

OLD_S, BEFORE_S = 1_000, 2_000
CODEC = Codec()


class Deployment:
    """A store, and a log that names some of what is in it."""

    def __init__(self, folder: Path) -> None:
        self.store: ClaimStore = open_store("", folder)
        self.log = MemoryLog()
        self._folder = folder

    def left(self, turn: int, *, old: bool = True) -> LlmCall:
        call = make_call(turn=turn, messages=[{"content": "x"}])
        claim = self.store.put(payload_of(call))
        if old:
            os.utime(self._path(claim), (OLD_S, OLD_S))
        return leave(call, claim)

    def prune(self, *, dry: bool = False) -> Pruned:
        return prune(self.store, KafkaSettings(), CODEC, BEFORE_S, dry=dry)

    def names(self) -> set[str]:
        return {left.name for left in self.store.found()}

    def _path(self, claim: ClaimCheck) -> Path:
        return self._folder / "claims" / claim.sha256[:2] / claim.sha256


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    made = Deployment(tmp_path)

    def source(*_arguments: object, **_named: object) -> MemoryLog:
        return made.log

    monkeypatch.setattr(pruning, "LogSource", source)
    return made


def name(call: LlmCall) -> str:
    assert call.claim_check is not None
    return call.claim_check.sha256


def test_only_what_is_old_and_named_nowhere_goes(deployment: Deployment) -> None:
    logged, buried, gone, young = (deployment.left(turn, old=turn < 3) for turn in range(4))
    deployment.log.append(logged)
    letter = DeadLetter(
        event_id="d", event_time=1, stage="aggregator", error_type="BadClaim", error="", topic="llm.calls", partition=0, offset=1, key=b"k",
        value=CODEC.encode(buried),
    )  # fmt: skip
    deployment.log.append_bytes(DEAD_LETTERS, b"k", CODEC.encode(letter))
    would = deployment.prune(dry=True)
    assert deployment.names() == {name(call) for call in (logged, buried, gone, young)}
    done = deployment.prune()
    assert done == would
    assert (done.claims, done.young, done.named, done.removed) == (4, 1, 2, 1)
    assert gone.claim_check is not None
    assert done.removed_bytes == gone.claim_check.size
    assert deployment.names() == {name(call) for call in (logged, buried, young)}


def test_what_is_left_again_meanwhile_stays(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = deployment.left(0)
    named = pruning.named

    def meanwhile(source: MemoryLog) -> set[str]:
        found = named(source)
        deployment.left(0, old=False)
        return found

    monkeypatch.setattr(pruning, "named", meanwhile)
    assert deployment.prune() == Pruned(claims=1, young=1)
    assert deployment.names() == {name(call)}


def test_an_empty_store_asks_no_log(tmp_path: Path) -> None:
    assert prune(open_store("", tmp_path), KafkaSettings(), CODEC, BEFORE_S, dry=False) == Pruned()
