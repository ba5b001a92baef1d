"""The fuzz target finds nothing in a few inputs, and something where there is something."""

from __future__ import annotations

import msgspec
import pytest

from fulgurite.enums import CallOutcome
from tests.fuzz import answers
from tests.services.gateway.answering import Answer
from tests.synthetic import make_call


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    def nothing(**_: object) -> None:
        pass

    monkeypatch.setattr("structlog.configure", nothing)


def test_a_few_inputs_end_as_they_must(capsys: pytest.CaptureFixture[str]) -> None:
    assert answers.main(["--inputs", "300", "--seed", "4"]) == 0
    assert "300 inputs of seed 4: 0 faults" in capsys.readouterr().out


def test_what_is_wrong_is_found() -> None:
    call = make_call()
    error = b'data: {"error": {"message": "x"}}\n\n'
    good = Answer(200, {"content-type": "text/event-stream"}, b"data: [DONE]\n\n", [call])
    assert answers.fault_of(good, 0) is None
    for bad, unread in (
        (msgspec.structs.replace(good, calls=[]), 0),
        (msgspec.structs.replace(good, calls=[call, call]), 0),
        (msgspec.structs.replace(good, body=error), 0),
        (
            msgspec.structs.replace(
                good, calls=[msgspec.structs.replace(call, outcome=CallOutcome.upstream_error)]
            ),
            0,
        ),
        (
            msgspec.structs.replace(
                good, calls=[msgspec.structs.replace(call, outcome=CallOutcome.refused)]
            ),
            0,
        ),
        (good, 1),
    ):
        assert answers.fault_of(bad, unread) is not None
