"""Calls whose payloads lie outside Kafka."""

from __future__ import annotations

import errno
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from fulgurite.calls.claim_checks import leave, payload_of
from services.aggregator.call_expander import CallExpander
from services.common.blobs.blob_store import open_store
from services.common.streaming.worker import Rejected
from tests.synthetic import make_call

CALL = make_call(messages=[{"role": "user", "content": "x" * 10_000}])


async def test_a_call_is_rejected_for_a_missing_payload_and_not_for_a_store_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = open_store("", tmp_path).put(payload_of(CALL))
    expander = CallExpander(MagicMock())
    call = leave(CALL, claim)
    assert await expander.expand(call, lambda _: None) == call
    with monkeypatch.context() as patch:
        patch.setattr("services.common.blobs.blob_store.os.open", _away)
        with pytest.raises(OSError, match="Input/output error"):
            await expander.expand(call, lambda _: None)
    Path(claim.uri.removeprefix("file://")).unlink()  # noqa: ASYNC240
    with pytest.raises(Rejected, match="No such file"):
        await expander.expand(call, lambda _: None)


def _away(*_: object) -> int:
    raise OSError(errno.EIO, "Input/output error")
