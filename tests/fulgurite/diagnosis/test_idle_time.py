"""How much of a training run nothing ran."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.diagnosis.idle_time import idle_share
from fulgurite.enums import Mode, UpdateKind
from fulgurite.events import AgentStatus, LlmCall, PolicyUpdate
from tests.synthetic import make_call, make_declared, make_status

RUN = "run-1"
BEGIN = 1_000_000
END = BEGIN + 10_000
LAST = "policy@0.2"


def make_update(at: int, seconds: float | None, version: str = LAST) -> PolicyUpdate:
    """An update whose batch was begun so many seconds before."""
    return PolicyUpdate(
        event_id=version,
        event_time=at,
        policy="policy",
        kind=UpdateKind.update,
        epoch=0,
        step=2,
        version=version,
        learner_id="learner",
        trained_actions=1,
        metrics={} if seconds is None else {"step_seconds": seconds},
    )


def make_span(start: int, stop: int, number: int = 0) -> LlmCall:
    """A call in flight between two times after the begin."""
    return msgspec.structs.replace(
        make_call(number), started_at=BEGIN + start, finished_at=BEGIN + stop
    )


def idle(
    calls: list[LlmCall],
    updates: list[PolicyUpdate],
    statuses: list[AgentStatus] | None = None,
) -> float | None:
    """The idle share of the run that begins at BEGIN."""
    return idle_share(RUN, LAST, statuses or [make_declared(at=BEGIN, run_id=RUN)], calls, updates)


@pytest.mark.parametrize(
    ("spans", "step", "expected"),
    [
        ([], None, 1.0),
        ([], 2.0, 0.8),
        ([(0, 10_000)], None, 0.0),
        ([(1_000, 3_000), (2_000, 4_000)], None, 0.7),
        ([(1_000, 4_000), (2_000, 3_000)], None, 0.7),
        ([(1_000, 9_000)], 2.0, 0.1),
        ([(-5_000, 1_000), (9_000, 15_000)], None, 0.8),
        ([(-5_000, -1_000), (11_000, 15_000)], None, 1.0),
        ([(3_000, 4_000), (1_000, 2_000)], 50.0, 0.0),
    ],
)
def test_time_without_a_call_and_without_a_step_is_idle(
    spans: list[tuple[int, int]], step: float | None, expected: float
) -> None:
    calls = [make_span(*span) for span in spans]
    assert idle(calls, [make_update(END, step)]) == pytest.approx(expected)


def test_the_run_begins_with_its_first_group_for_training() -> None:
    statuses = [
        make_declared(2, at=BEGIN + 5_000, run_id=RUN),
        make_declared(1, at=BEGIN, run_id=RUN),
        make_declared(0, at=BEGIN - 1_000, run_id=RUN, mode=Mode.val),
        make_declared(3, at=BEGIN - 2_000, run_id="another"),
        make_status(0, at=BEGIN - 3_000),
    ]
    assert idle([make_span(0, 5_000)], [make_update(END, None)], statuses) == 0.5


def test_the_run_ends_with_the_version_that_was_its_last() -> None:
    claim = msgspec.structs.replace(make_update(END + 1, 9.0), kind=UpdateKind.claim)
    earlier = make_update(BEGIN + 3_000, 1.0, "policy@0.1")
    later = make_update(END + 9_000, 1.0, "policy@0.3")
    assert idle([], [later, make_update(END, 1.0), earlier, claim]) == pytest.approx(0.8)


def test_a_run_without_its_begin_or_its_last_version_has_no_share() -> None:
    assert idle([], []) is None
    assert idle([], [make_update(END, 1.0, "policy@0.1")]) is None
    assert idle([], [make_update(BEGIN, 1.0)]) is None
    assert idle([], [make_update(END, 1.0)], [make_status()]) is None


TIMES = st.integers(-2_000, 12_000)


@given(st.lists(st.tuples(TIMES, TIMES).map(lambda pair: (min(pair), max(pair))), max_size=6))
def test_it_is_the_share_of_milliseconds_that_nothing_covers(
    spans: list[tuple[int, int]],
) -> None:
    calls = [make_span(start, stop) for start, stop in spans]
    busy = {moment for start, stop in spans for moment in range(max(0, start), min(stop, 10_000))}
    update = [make_update(END, None)]
    share = idle(calls, update)
    assert share == pytest.approx(1 - len(busy) / 10_000)
    assert idle([*reversed(calls), *calls], update) == share
