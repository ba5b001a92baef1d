"""The claims folder: content-addressed, whole or not there, and proved when it is read."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from fulgurite.claims import leave, payload_of
from fulgurite.errors import BadClaim
from services.claims import ClaimStore, redeemed
from tests.synthetic import make_call

CALL = make_call(messages=[{"role": "user", "content": "x" * 10_000}])


def test_a_payload_lies_under_its_digest_once(tmp_path: Path) -> None:
    store = ClaimStore(tmp_path / "a folder")
    claim = store.put(payload_of(CALL))
    assert store.put(payload_of(CALL)) == claim
    (path,) = [found for found in tmp_path.rglob("*") if found.is_file()]
    assert (path.name, path.parent.name, path.stat().st_size) == (claim.sha256, claim.sha256[:2], claim.size)
    assert redeemed(leave(CALL, claim)) == CALL
    assert redeemed(CALL) is CALL


def test_what_is_missing_altered_or_elsewhere_is_told(tmp_path: Path) -> None:
    claim = ClaimStore(tmp_path).put(payload_of(CALL))
    (path,) = [found for found in tmp_path.rglob("*") if found.is_file()]
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(BadClaim, match="is not what call"):
        redeemed(leave(CALL, claim))
    path.unlink()
    with pytest.raises(BadClaim, match="No such file"):
        redeemed(leave(CALL, claim))
    with pytest.raises(BadClaim, match="only file://"):
        redeemed(leave(CALL, msgspec.structs.replace(claim, uri="s3://bucket/x")))


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("services.claims.os.fsync", fails)
    with pytest.raises(OSError, match="No space left"):
        ClaimStore(tmp_path).put(b"payload")
    assert not [found for found in tmp_path.rglob("*") if found.is_file()]
