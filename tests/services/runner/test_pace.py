"""How far the runner runs ahead: settled by the ledger and the version it names, or given up long
after the deadline.
"""

from __future__ import annotations

from fulgurite.enums import ApplyOutcome, LedgerTerm
from fulgurite.events import LedgerEntry, PolicyApplied
from fulgurite.versions import Version
from services.runner.pace import GIVE_UP_MS, Pace, usual_max_ahead


def _entry(
    group: str, version: str | None, source: str = "learner", policy: str = "p"
) -> LedgerEntry:
    return LedgerEntry(
        event_id=f"{group}{version}",
        event_time=0,
        policy=policy,
        group_id=group,
        term=LedgerTerm.trained,
        version=version,
        source=source,
    )


def _applied(
    version: str, outcome: ApplyOutcome = ApplyOutcome.applied, policy: str = "p"
) -> PolicyApplied:
    return PolicyApplied(
        event_id=version,
        event_time=0,
        policy=policy,
        backend="b",
        engine_id="e",
        version=version,
        outcome=outcome,
        seconds=0.0,
    )


def _pace(*groups: str, max_ahead: int | None = 2) -> Pace:
    pace = Pace("p", max_ahead)
    for group in groups:
        pace.start(group, 1000)
    return pace


def test_as_many_groups_as_allowed() -> None:
    assert _pace("a").may_start(0)
    assert not _pace("a", "b").may_start(0)
    assert _pace("a", "b", max_ahead=None).may_start(0)


def test_a_batch_of_unknown_size_is_one_of_the_default() -> None:
    assert (usual_max_ahead(1), usual_max_ahead(5), usual_max_ahead(None)) == (2, 8, 12)


def test_a_group_is_settled_once_its_version_is_served() -> None:
    pace = _pace("a", "b")
    pace.on_ledger(_entry("a", "p@1.1"))
    assert not pace.may_start(0)
    pace.on_applied(_applied("p@1.1"))
    assert pace.may_start(0)
    assert (pace.ahead, pace.settled, pace.updates) == (1, 1, [Version("p", 1, 1)])


def test_a_version_served_before_its_entry_comes_settles_at_once() -> None:
    pace = _pace("a", "b")
    pace.on_applied(_applied("p@1.2"))
    pace.on_ledger(_entry("a", "p@1.1"))
    assert pace.ahead == 1


def test_a_group_that_taught_nothing_is_settled_by_its_entry() -> None:
    pace = _pace("a", "b")
    pace.on_ledger(_entry("a", None))
    pace.on_ledger(_entry("b", "p@0.0"))
    assert pace.ahead == 0


def test_other_sources_groups_policies_and_failures_do_not_count() -> None:
    pace = _pace("a", "b")
    pace.on_ledger(_entry("a", None, source="rewarder"))
    pace.on_ledger(_entry("a", None, policy="a"))
    pace.on_ledger(_entry("a", "a@0.0", policy="a"))
    pace.on_ledger(_entry("c", None))
    pace.on_ledger(_entry("a", "p@1.1"))
    pace.on_applied(_applied("q@1.1", policy="q"))
    pace.on_applied(_applied("p@1.1", ApplyOutcome.failed))
    assert (pace.ahead, pace.updates) == (2, [])


def test_a_group_without_the_policy_is_settled_without_its_learner() -> None:
    pace = _pace("a", "b")
    pace.pass_over("a")
    pace.pass_over("a")
    assert (pace.ahead, pace.settled) == (1, 1)


def test_what_was_served_at_the_start_is_no_update() -> None:
    pace = _pace("a")
    pace.begin_with(Version("p", 1, 4))
    pace.on_applied(_applied("p@1.4"))
    pace.on_applied(_applied("p@2.0"))
    assert pace.updates == []
    pace.on_applied(_applied("p@2.5"))
    assert pace.updates == [Version("p", 2, 5)]


def test_a_group_long_past_its_deadline_holds_nobody_up() -> None:
    pace = _pace("a", "b")
    assert not pace.may_start(1000 + GIVE_UP_MS)
    assert pace.may_start(1001 + GIVE_UP_MS)
    assert pace.is_idle(1001 + GIVE_UP_MS)
