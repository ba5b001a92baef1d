"""What `fulgurite watch` says of a run, for the events of its rollouts in any order."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable

import msgspec
import pytest

from fulgurite.enums import FilterReason, LedgerTerm, Mode, StatusKind, UpdateKind
from fulgurite.episodes.stitching import stitch
from fulgurite.events import Episode, Event, LedgerEntry, PolicyUpdate
from fulgurite.failures import FailureKind
from fulgurite.ids import action_id
from services.cli.watch import render, status_line
from services.cli.watch_state import WatchState
from services.common.runtime.terminal import EscapingConsole
from tests.synthetic import group_id, make_call, make_declared, make_reward, make_status

DECLARED = make_declared(0, 3, run_id="run-1")


def make_episode(index: int, failure: FailureKind | None = None) -> Episode:
    call = make_call(0, index, replies=[{"role": "assistant", "content": f"said {index}"}])
    kind = StatusKind.finished if failure is None else StatusKind.failed
    end = make_status(0, index, kind, failure=failure)
    episode = stitch([call, end, DECLARED])
    assert episode is not None
    return episode


def make_entry(index: int, term: LedgerTerm, reason: FilterReason | None = None) -> LedgerEntry:
    return LedgerEntry(
        event_id=f"{index} {term} {reason}",
        event_time=1,
        policy="policy",
        group_id=group_id(0),
        term=term,
        reason=reason,
        actions=(action_id(make_call(0, index).call_id, 0),),
        source="learner",
    )


def states(events: Iterable[Event]) -> dict[str, int]:
    state = WatchState()
    for event in events:
        state.add(event)
    return {name: count for name, count in state.shown("run-1").states.items() if count}


def test_a_rollout_rolls_out_then_waits_until_its_actions_are_accounted_for() -> None:
    assert states([DECLARED]) == {"rolling out": 3}
    assert states([DECLARED, make_status(0, 0)]) == {"rolling out": 2, "waiting": 1}
    assert states([DECLARED, make_episode(0)]) == {"rolling out": 2, "waiting": 1}
    retried = make_status(0, 0, StatusKind.failed, will_retry=True)
    assert states([DECLARED, retried]) == {"rolling out": 3}


@pytest.mark.parametrize(
    ("term", "reason", "state"),
    [
        (LedgerTerm.trained, None, "trained"),
        (LedgerTerm.amended, None, "trained"),
        (LedgerTerm.stale, None, "stale"),
        (LedgerTerm.filtered, FilterReason.no_signal, "without signal"),
        (LedgerTerm.filtered, FilterReason.no_baseline, "without signal"),
        (LedgerTerm.filtered, FilterReason.truncated, "left out"),
    ],
)
def test_the_ledger_says_what_became_of_a_rollout(
    term: LedgerTerm, reason: FilterReason | None, state: str
) -> None:
    events = [DECLARED, make_episode(0), make_entry(0, term, reason)]
    assert states(events) == {"rolling out": 2, state: 1}


def test_a_failed_rollout_and_a_failed_reward_are_errors_until_a_value_comes() -> None:
    failed = make_episode(0, FailureKind.agent_exception)
    no_value = make_reward(0, 1, None)
    assert states([DECLARED, failed, no_value]) == {"errored": 2, "rolling out": 1}
    assert states([DECLARED, failed, no_value, make_reward(0, 1)]) == {
        "errored": 1,
        "rolling out": 2,
    }


def test_the_order_of_topics_does_not_matter() -> None:
    events = [DECLARED, make_status(0, 0), make_reward(0, 0), make_entry(0, LedgerTerm.trained)]
    for order in itertools.permutations(events):
        assert states(order) == {"trained": 1, "rolling out": 2}


def test_what_names_no_rollout_of_the_run_and_offline_training_change_nothing() -> None:
    offline = msgspec.structs.replace(make_entry(0, LedgerTerm.trained), source="offline")
    strange = msgspec.structs.replace(make_entry(0, LedgerTerm.trained), actions=("?#0",))
    events = [DECLARED, offline, strange, make_call(), make_status(7, 0), None]
    state = WatchState()
    for event in events:
        state.add(event)
    assert state.shown("run-1").states["rolling out"] == 3
    assert state.shown("another").rollouts == 0
    assert ("run-1" in state, "another" in state) == (True, False)


def test_curve_samples_and_the_newest_version_are_shown() -> None:
    state = WatchState()
    for step in (1, 2):
        state.add(
            PolicyUpdate(
                event_id=str(step),
                event_time=1,
                policy="policy",
                kind=UpdateKind.update,
                epoch=1,
                step=step,
                version=f"policy@1.{step}",
                learner_id="l",
                trained_actions=1,
            )
        )
    for event in (DECLARED, make_episode(0), make_episode(1), make_reward(0, 0, 0.25)):
        state.add(event)
    run = state.shown(state.newest_run)
    assert (run.run_id, run.version) == ("run-1", "policy@1.2")
    (scores,) = run.scores.values()
    assert scores.reward == 0.25
    assert [(point.version, point.reward) for point in scores.curve] == [("policy@0.0", 0.25)]
    assert [(one.answer, one.reward) for one in run.samples] == [("said 0", 0.25), ("said 1", None)]
    written = io.StringIO()
    console = EscapingConsole(file=written, width=160, highlight=False)
    console.print(render(run, 160))
    said = written.getvalue()
    for part in (
        "run-1: 3 rollouts",
        "1 rolling out",
        "2 waiting",
        "policy@1.2",
        "said 1",
        "0.250",
    ):
        assert part in said


def test_training_and_held_out_tasks_have_curves_of_their_own() -> None:
    state = WatchState()
    held_out = make_declared(1, 1, run_id="run-1", mode=Mode.val)
    call = make_call(1, 0, mode=Mode.val)
    episode = stitch([call, make_status(1, 0, mode=Mode.val), held_out])
    assert episode is not None
    for event in (
        make_reward(1, 0, 0.75),
        DECLARED,
        held_out,
        make_episode(0),
        episode,
        make_reward(0, 0, 0.25),
    ):
        state.add(event)
    run = state.shown("run-1")
    assert {mode: scores.reward for mode, scores in run.scores.items()} == {
        "train": 0.25,
        "val": 0.75,
    }
    for scores in run.scores.values():
        (point,) = scores.curve
        assert (point.reward, point.rollouts) == (scores.reward, 1)
    assert run.rollouts == 4
    assert {one.reward for one in run.samples} == {0.25, 0.75}
    written = io.StringIO()
    EscapingConsole(file=written, width=160, highlight=False).print(render(run, 160))
    for part in ("0.250 (train, last 48)", "0.750 (val, last 48)", "reward by version (val)"):
        assert part in written.getvalue()


def test_the_run_that_was_declared_last_is_the_newest() -> None:
    state = WatchState()
    state.add(DECLARED)
    state.add(make_declared(1, run_id="run-2"))
    state.add(make_declared(2))
    assert state.newest_run == "run-2"
    state.add(make_declared(3, run_id="run-1"))
    assert state.newest_run == "run-1"
    assert state.shown(None).rollouts == 2


def test_a_log_without_runs_says_how_to_start_one() -> None:
    assert "fulgurite run" in status_line(WatchState().shown(None)).plain
