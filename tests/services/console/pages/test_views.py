"""What the views show of a recorded log, and of an empty one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import msgspec
import pytest

from fulgurite.avro.codec import Codec
from fulgurite.events import (
    AgentStatus,
    Episode,
    Event,
    GroupClosed,
    LedgerEntry,
    LlmCall,
    PolicyUpdate,
    Trajectory,
)
from fulgurite.ledger.balance import balance
from fulgurite.ledger.model import Sources
from services.console.pages.blocks import Chart, Figures, Notice, Table, Text, Tokens
from services.console.pages.view import View
from services.console.pages.views import VIEWS, funnel, group, ledger, now, rollouts, runs, step
from services.console.pages.views import timeline as timeline_view
from tests.services.console.recording import (
    MARKUP,
    NOW,
    RUN,
    VERSIONS,
    Recording,
    events,
    figures,
    flat,
    found,
    texts,
)
from tests.synthetic import group_id, rollout_id


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.title)
def test_an_empty_log_says_what_to_do(empty: Recording, view: View) -> None:
    blocks = empty.show(view)
    assert any(isinstance(block, Notice) for block in blocks)
    assert not any(isinstance(block, Table) for block in blocks)


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.title)
def test_the_same_log_gives_the_same_page(recording: Recording, view: View) -> None:
    query = {"rollout": rollout_id(0, 0), "id": group_id(0), "samples": "random"}
    assert list(recording.show(view, **query)) == list(recording.show(view, **query))


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.title)
def test_every_chart_names_its_axes(recording: Recording, view: View) -> None:
    blocks = recording.show(view, rollout=rollout_id(0, 0), id=group_id(0), run=RUN)
    for chart in (block for block in flat(blocks) if isinstance(block, Chart)):
        assert chart.title
        assert chart.x.label
        assert chart.y.label


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.title)
def test_a_wrong_filter_is_no_error(recording: Recording, view: View) -> None:
    names = ("run", "version", "policy", "rollout", "id", "agent", "mode", "sort", "above", "page")
    for value in ("nobody", "'; DROP TABLE calls; --", "99999999999", "-1"):
        assert recording.show(view, **dict.fromkeys(names, value))


def test_now_tells_calls_and_versions(recording: Recording) -> None:
    blocks = recording.show(now.VIEW)
    assert figures(blocks)["Calls, last hour"] == "16"
    assert figures(blocks)["Newest version"] == "9 min ago"
    assert ["vllm", "policy", VERSIONS[1], "9 min ago", VERSIONS[1], "newest"] in texts(blocks)


def test_a_run_shows_its_curve_with_intervals(recording: Recording) -> None:
    blocks = recording.show(runs.VIEW, run=RUN)
    chart = found(blocks, Chart, "Reward by version")
    assert [series.name for series in chart.series] == ["training"]
    assert chart.series[0].points == (("0.0", pytest.approx(1 / 3)), ("1.1", 1.0))
    # All of the one group of the newer version are equal: Wilson's interval, as rewards are 0 or 1.
    assert [name for name, _, _ in chart.series[0].band] == ["0.0", "1.1"]
    assert figures(blocks)["Groups without signal"] == "50.0 %"
    assert figures(blocks)["Failed rollouts"] == "12.5 %"
    flat_groups = found(blocks, Chart, "Groups without signal")
    assert flat_groups.series[0].points == (("0.0", pytest.approx(100 / 3)), ("1.1", 100.0))


def test_runs_are_compared_by_the_number_of_their_version(recording: Recording) -> None:
    chart = found(recording.show(runs.VIEW), Chart)
    assert [series.name for series in chart.series] == [RUN]
    assert [x for x, _ in chart.series[0].points] == [0.0, 1.0]


def test_a_step_warns_beyond_its_learners_own_alarm(recording: Recording) -> None:
    blocks = recording.show(step.VIEW, version=VERSIONS[1])
    notice = found(blocks, Notice)
    assert notice.tone == "warning"
    assert "drift.alarm.k3 = 0.0100" in notice.text
    chart = found(blocks, Chart, "Disagreement")
    assert [mark.value for mark in chart.marks] == [0.01]
    assert '"k3": 0.01' in found(blocks, Text, "Settings").text


def test_a_step_shows_metrics_that_are_not_finite() -> None:
    metrics: step.Metrics = {
        "k3": None,
        "ess": None,
        "share_without_signal": None,
        "episodes": None,
    }
    assert step.alarms(metrics, {"k3": 0.01, "ess": 0.5}) == []
    version = {
        "version": "policy@1.1",
        "published_at": None,
        "trained_actions": 4,
        "artifact_bytes": None,
        "artifact_format": None,
        "metrics": metrics,
    }
    shown = {figure.label: figure for figure in step.figures(version, 0).items}
    assert shown["k3"].value == "–"
    assert shown["Trained actions"].note == "of 0 episodes"


class _Entry(msgspec.Struct):
    event: Event
    offset: int
    partition: int = 0


def test_funnel_and_ledger_count_as_the_log_does(recording: Recording) -> None:
    log = events()

    def entries(*kinds: type[Event]) -> Iterator[_Entry]:
        chosen = (event for event in log if isinstance(event, kinds))
        yield from (_Entry(event, offset) for offset, event in enumerate(chosen))

    books = balance(
        Sources(
            updates=entries(PolicyUpdate),
            dead_letters=(),
            ledger=entries(LedgerEntry),
            trajectories=entries(Trajectory, GroupClosed),
            episodes=entries(Episode),
            statuses=entries(AgentStatus),
            calls=entries(LlmCall),
        ),
        Codec().decode,
        NOW,
    )
    terms: Counter[str] = Counter()
    for account in books.accounts:
        for term, number in account.terms.items():
            terms[term.partition("(")[0]] += number
    assert books.remainder == 0
    shown = figures(recording.show(ledger.VIEW))
    assert int(shown["Training actions"]) == books.actions
    for term in ("trained", "filtered", "stale", "open"):
        assert int(shown[term]) == terms[term]
    stages = figures(recording.show(funnel.VIEW))
    assert (stages["Actions"], stages["Trained"]) == ("16", "25.0 %")


def test_the_funnel_can_be_narrowed_and_split(recording: Recording) -> None:
    blocks = recording.show(funnel.VIEW, run=RUN, by="role")
    assert ["solver", "16", "4", "12"] in texts(blocks)
    assert isinstance(recording.show(funnel.VIEW, run="nobody")[-1], Notice)


def test_rollouts_are_found_by_text_reward_and_failure(recording: Recording) -> None:
    def ids(**query: str) -> list[str]:
        return [row[0] for row in texts(recording.show(rollouts.VIEW, **query))]

    assert len(ids()) == 8
    assert len(ids(above="1")) == 4
    assert len(ids(failure="any")) == 1
    assert len(ids(version=VERSIONS[1])) == 2
    assert len(ids(q="IS 1")) == 4
    assert ids(sort="reward.desc") != ids(sort="reward.asc")


def test_samples_are_shown_for_each_version(recording: Recording) -> None:
    for kind in ("best", "worst", "random"):
        blocks = recording.show(rollouts.VIEW, samples=kind)
        titles = [block.title for block in blocks if isinstance(block, Table)]
        assert titles == [VERSIONS[1], VERSIONS[0]]
    best = texts(recording.show(rollouts.VIEW, samples="best"))
    assert [row[3] for row in best] == ["1.000"] * 4 + ["0.000"] * 3


def test_a_timeline_has_texts_tokens_and_what_became_of_them(recording: Recording) -> None:
    blocks = recording.show(timeline_view.VIEW, rollout=rollout_id(0, 0))
    answers = [
        block.text for block in blocks if isinstance(block, Text) and block.title == "Answer"
    ]
    assert answers == [f"{MARKUP} is 1"] * 2
    by_logprob = found(blocks, Tokens, "3 tokens")
    assert [token.note for token in by_logprob.items] == ["log-probability −0.500"] * 3
    by_advantage = found(blocks, Tokens, "Answers by advantage")
    assert by_advantage.items[0].note == "advantage 0.500"
    facts = [block for block in blocks if isinstance(block, Figures)][1]
    assert facts.items[-1].value == "trained"
    lanes = found(blocks, Chart, "Calls over time")
    assert [series.name for series in lanes.series] == ["before", "solver"]


def test_a_group_shows_its_baseline_and_advantages(recording: Recording) -> None:
    blocks = recording.show(group.VIEW, id=group_id(0))
    assert figures(blocks)["Baseline"] == "0.500"
    rows = found(blocks, Table, "Rollouts").rows
    assert [row[7].text for row in rows] == ["0.500", "−0.500"]
    flat_group = recording.show(group.VIEW, id=group_id(1))
    assert "no signal" in found(flat_group, Notice).text
