"""An attempt that cannot be stitched is in no replay, as it is in no live episode; its neighbours
are.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from fulgurite.episodes.stitching import Input, stitch
from fulgurite.events import Episode
from services.replay import groups as module
from tests.services.replay.memory_log import MemoryLog
from tests.synthetic import make_call, make_declared, make_status, rollout_id


def test_an_attempt_that_cannot_be_stitched_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def stitched(events: Iterable[Input]) -> Episode | None:
        given = list(events)
        if any(event.rollout_id == rollout_id(0, 0) for event in given):
            raise AttributeError("'str' object has no attribute 'get'")
        return stitch(given)

    log = MemoryLog()
    log.append(make_declared(0, 2), make_call(), make_status(), make_call(0, 1), make_status(0, 1))
    monkeypatch.setattr(module, "stitch", stitched)
    (group,) = log.groups()
    assert [episode.rollout_id for episode in group.episodes()] == [rollout_id(0, 1)]
