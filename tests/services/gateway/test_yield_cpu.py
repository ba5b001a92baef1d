"""Where a gateway may not choose how it is scheduled, it says so and serves."""

from __future__ import annotations

import os

import pytest
from structlog.testing import capture_logs

from services.gateway.main import yield_cpu


def test_a_system_that_refuses_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_pid: int, _policy: int, _param: object) -> None:
        raise PermissionError("not here")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with capture_logs() as lines:
        yield_cpu()
    assert [(line["log_level"], line["error"]) for line in lines] == [("warning", "not here")]
    assert "FULGURITE_YIELD_CPU" in lines[0]["event"]
