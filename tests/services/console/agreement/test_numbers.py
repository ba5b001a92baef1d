"""What each page says is what the command line says of the same log."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean
from typing import Any, TypeVar

import pytest

from fulgurite.cost.table import By, CostRow, CostSources, CostTable, cost_table
from fulgurite.diagnosis.facts import Facts
from fulgurite.diagnosis.log_facts import LogFacts
from fulgurite.enums import Mode
from fulgurite.events import (
    AgentReward,
    AgentStatus,
    DeadLetter,
    Event,
    LedgerEntry,
    LlmCall,
    PolicyApplied,
    PolicyRoute,
    PolicyUpdate,
    PromptUpdate,
)
from fulgurite.groups.rewards import counted
from fulgurite.prompts.history import PromptHistory
from fulgurite.selection.variants import name_variant
from fulgurite.untrusted_json import Json
from services.cli.alive import progress
from services.cli.dlq import summary
from services.cli.held_out import Earned
from services.cli.prompt_views import describe_version
from services.cli.status import outcome_of, served
from services.cli.versions import listed as listed_versions
from services.cli.watch_state import WatchState
from services.common.policies.route_targets import Published
from services.console.pages.blocks import Block, Cell, Chart, Notice, Table
from services.console.pages.formats import fixed, number, share
from services.console.pages.rollout_links import tail
from services.console.pages.views import (
    agents,
    dead_letters,
    feedback,
    funnel,
    group,
    ledger,
    now,
    prompts,
    rewards,
    rollouts,
    routes,
    runs,
    step,
    timeline,
    versions,
)
from services.replay.groups import Group
from services.replay.lineage import Lineage
from services.replay.listing import Wanted, listed
from services.replay.scoring import Comparison, compare, has_signal, scores
from services.replay.timeline import timeline as timeline_of
from services.rewarder.closing_settings import ClosingSettings
from tests.services.console.agreement.many_events import CODEC, NOW, Pages, prices, record_more
from tests.services.console.recording import figures, flat, found
from tests.synthetic import rollout_id

LOG = record_more()
EVENTS: tuple[Event, ...] = tuple(one.event for one in LOG.records if one.event is not None)
RUNS = ("run-1", "run-2", "run-3")

E = TypeVar("E", bound=Event)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    return Pages(tmp_path_factory.mktemp("index") / "index.duckdb", LOG)


def every(kind: type[E]) -> list[E]:
    """The events of a type, in the order of the log."""
    return [one for one in EVENTS if isinstance(one, kind)]


def table(blocks: Sequence[Block], title: str = "") -> list[dict[str, str]]:
    """The rows of the table with a title, by the names of its columns."""
    block: Table = found(blocks, Table, title)
    names = [column.label for column in block.columns]
    return [dict(zip(names, map(text, row), strict=True)) for row in block.rows]


def text(cell: Cell) -> str:
    """What a cell says in full."""
    return cell.note or cell.text


def listing(wanted: Wanted | None = None) -> list[Json]:
    """`fulgurite rollouts list --json`."""
    return [row for one in LOG.groups() for row in listed(one, wanted or Wanted())]


def costs(by: By) -> CostTable:
    """`fulgurite cost --json`."""
    return cost_table(
        CostSources(
            updates=EVENTS, dead_letters=EVENTS, ledger=EVENTS, statuses=EVENTS, calls=EVENTS
        ),
        CODEC.decode,
        by,
        prices(),
    )


def facts(run: str | None = None) -> Facts:
    """`fulgurite diagnose --json`."""
    groups = {
        one.group_id
        for one in every(AgentStatus)
        if one.declaration and one.declaration.run_id == run
    }
    counting = LogFacts(CODEC.decode)
    for one in EVENTS:
        if run is None or getattr(one, "group_id", None) in {None, *groups}:
            counting.add(one)
    return counting.facts(NOW)


def groups_of(run: str, mode: Mode = Mode.train) -> Iterator[Group]:
    """The groups of a run, as `fulgurite try` reads them."""
    for one in LOG.groups():
        declared = one.declared
        if declared is None or declared.declaration is None or declared.mode is not mode:
            continue
        if declared.declaration.run_id == run:
            yield one


def tried(chosen: Iterable[Group]) -> Comparison:
    """`fulgurite try`, with the rewards of the log on both sides."""
    return compare([(scores(one), scores(one)) for one in chosen])


def published() -> Published:
    """The versions as `fulgurite policy` reads them."""
    known = Published()
    for one in EVENTS:
        known.apply(one)
    return known


def last_routes() -> dict[str, PolicyRoute]:
    """The last route of each alias, as the commands read them."""
    return {one.alias: one for one in every(PolicyRoute)}


# Now ------------------------------------------------------------------------------------------


def test_now_counts_the_calls_and_rollouts_that_the_commands_count(pages: Pages) -> None:
    shown = figures(pages.show(now.VIEW))
    assert shown["Calls, last hour"] == number(costs(By.alias).total.calls)
    failed = sum(one.outcome != "success" for one in every(LlmCall))
    assert shown["Calls that failed"] == share(failed, len(every(LlmCall)))
    assert shown["Open rollouts"] == number(sum(one["outcome"] == "open" for one in listing()))


def test_now_says_what_is_served_as_status_does(pages: Pages) -> None:
    rows = table(pages.show(now.VIEW), "What is served where")
    assert [
        (row["Policy"], row["Backend"], row["Serves"], row["Newest version"]) for row in rows
    ] == [
        (one.policy, one.backend, one.serves or "–", one.newest)
        for one in sorted(
            served(every(PolicyUpdate), every(PolicyApplied)),
            key=lambda one: (one.backend, one.policy),
        )
    ]
    states = {
        "load failed" if one.outcome == "failed" else "newest" if one.serves == one.newest else
        "another version"
        for one in served(every(PolicyUpdate), every(PolicyApplied))
    }  # fmt: skip
    assert {row["State"] for row in rows} == states == {"load failed", "newest"}
    failed = [one for one in pages.show(now.VIEW) if isinstance(one, Notice)]
    assert any("local could not load a version of policy: no memory" in one.text for one in failed)


def test_now_says_what_learns_as_status_does(pages: Pages) -> None:
    assert [
        f"{row['Policy']}@{row['Epoch']}.{row['Step']}"
        for row in table(pages.show(now.VIEW), "Learners")
    ] == [one.version for one in progress(every(PolicyUpdate))]


@pytest.mark.parametrize(("view", "title"), [(now, "Routes"), (routes, "Routes in force")])
def test_routes_are_those_of_the_command(pages: Pages, view: Any, title: str) -> None:
    expected = [
        (
            alias,
            name_variant(target)
            + (" (newest)" if target.version is None and target.upstream is None else ""),
            share(target.weight, sum(one.weight for one in route.targets)),
            route.author,
            route.reason,
        )
        for alias, route in last_routes().items()
        for target in route.targets
    ]
    rows = table(pages.show(view.VIEW), title)
    names = ("Alias", "Variant", "Share", "By", "Reason")
    assert sorted(tuple(row[name] for name in names) for row in rows) == sorted(expected)


# Runs -----------------------------------------------------------------------------------------


def test_runs_have_the_rollouts_and_rewards_of_the_listing(pages: Pages) -> None:
    rows = {row["Run"]: row for row in table(pages.show(runs.VIEW), "Runs")}
    assert set(rows) == set(RUNS)
    for run in RUNS:
        members = listing(Wanted(run_id=run))
        rewarded = {
            mode: [one["reward"] for one in members if one["mode"] == mode and one["reward"] is not None]
            for mode in ("train", "val")
        }  # fmt: skip
        assert rows[run]["Groups"] == number(len({one["group_id"] for one in members}))
        assert rows[run]["Rollouts"] == number(len(members))
        failed = sum(one["failure"] is not None for one in members)
        assert rows[run]["Failed"] == share(failed, len(members))
        for mode, column in (("train", "Reward, train"), ("val", "Reward, held out")):
            assert rows[run][column] == fixed(fmean(rewarded[mode]) if rewarded[mode] else None)


def test_runs_cost_what_the_command_says(pages: Pages) -> None:
    expected = {row.key: row for row in costs(By.run).rows}
    for row in table(pages.show(runs.VIEW), "Runs"):
        one = expected[row["Run"]]
        assert row["Tokens"] == number(one.prompt + one.sampled)
        assert row["Cost"] == f"{_euros(one):.2f} EUR"


def _euros(row: CostRow) -> float:
    assert row.money is not None
    assert row.money.low == pytest.approx(row.money.high)
    return row.money.high


@pytest.mark.parametrize("run", RUNS)
def test_the_curve_of_a_run_is_that_of_watch(pages: Pages, run: str) -> None:
    watched = WatchState()
    for one in EVENTS:
        watched.add(one)
    chart = found(pages.show(runs.VIEW, run=run), Chart, "Reward by version")
    titles = {"training": "train", "held out": "val"}
    assert {titles[series.name]: dict(series.points) for series in chart.series} == {
        mode: {
            point.version.partition("@")[2]: pytest.approx(point.reward) for point in of_mode.curve
        }
        for mode, of_mode in watched.shown(run).scores.items()
        if of_mode.curve
    }


@pytest.mark.parametrize("run", RUNS)
def test_groups_without_signal_are_those_of_try(pages: Pages, run: str) -> None:
    ended = [one for one in groups_of(run) if _has_ended(one)]
    flat_groups = len(ended) - sum(has_signal(scores(one)) for one in ended)
    blocks = pages.show(runs.VIEW, run=run)
    assert figures(blocks)["Groups without signal"] == share(flat_groups, len(ended))
    notes = {item.label: item.note for one in flat(blocks) for item in getattr(one, "items", ())
             if hasattr(item, "note") and hasattr(item, "label")}  # fmt: skip
    assert notes["Groups without signal"].startswith(f"{flat_groups} of {len(ended)} group")


def _has_ended(one: Group) -> bool:
    open_rollouts = {row["rollout_id"] for row in listing() if row["outcome"] == "open"}
    assert one.declaration
    return not open_rollouts & set(one.declaration.rollout_ids)


def test_failures_of_a_run_are_those_of_diagnose(pages: Pages) -> None:
    for run in RUNS:
        failed = sum(one["failure"] is not None for one in listing(Wanted(run_id=run)))
        assert sum(facts(run).failures.values()) == failed
        shown = figures(pages.show(runs.VIEW, run=run))
        assert shown["Failed rollouts"] == share(failed, len(listing(Wanted(run_id=run))))


# Step, versions -------------------------------------------------------------------------------


def test_versions_are_those_of_policy_list(pages: Pages) -> None:
    known = listed_versions(published(), last_routes().values(), "policy")
    rows = {row["Version"]: row for row in table(pages.show(versions.VIEW), "Versions")}
    assert list(rows) == [one.version for one in reversed(known)]
    states = {"here": "there", "removed": "pruned", "elsewhere": "elsewhere"}
    for one in known:
        row = rows[one.version]
        assert row["Trained actions"] == number(one.trained_actions)
        assert row["From"] == (one.parent or "the base model")
        assert row["Weights"] == states[one.weights]
        for alias, part in one.routed.items():
            assert f"{alias}: {share(part)}" in row["Served"]


def test_held_out_rewards_of_versions_are_those_of_eval(pages: Pages) -> None:
    members = listing(Wanted(mode=Mode.val))
    for row in table(pages.show(versions.VIEW), "Versions"):
        earned = Earned(model=row["Version"])
        for one in members:
            earned.add(one["task"] or "", one["reward"], one["versions"])
        mean = earned.mean
        expected = "–" if mean is None else f"{fixed(mean.mean)} (n = {mean.count})"
        assert row["Held-out reward"] == expected
    assert any(
        "n = " in row["Held-out reward"] for row in table(pages.show(versions.VIEW), "Versions")
    )


def test_a_version_has_the_calls_of_lineage(pages: Pages) -> None:
    lineage = Lineage(EVENTS, EVENTS)
    for one in listed_versions(published(), (), "policy"):
        behind = lineage.version(one.version)
        said = next(
            row["Value"]
            for row in table(pages.show(versions.VIEW, version=one.version))
            if row["What"] == "Trained on"
        )
        actions = sum(map(len, behind.groups.values()))
        assert said.endswith(f"the ledger has {actions} of {len(behind.groups)} groups")


def test_a_step_has_the_metrics_and_terms_of_the_commands(pages: Pages) -> None:
    for one in listed_versions(published(), (), "policy"):
        blocks = pages.show(step.VIEW, version=one.version)
        assert figures(blocks)["Trained actions"] == number(one.trained_actions)
        metrics = {row["Metric"]: row["Value"] for row in table(blocks, "All metrics")}
        assert metrics == {name: number(value) for name, value in one.metrics.items()}
        terms: Counter[str] = Counter()
        for entry in every(LedgerEntry):
            if entry.version == one.version:
                terms[outcome_of(entry)] += len(entry.actions)
        shown = {
            f"{row['Term']}({row['Reason']})" if row["Reason"] != "–" else row["Term"]: row[
                "Actions"
            ]
            for row in table(blocks, "Actions settled")
        }
        assert shown == {term: number(count) for term, count in terms.items()}


# Funnel, ledger, agents -----------------------------------------------------------------------


def test_funnel_and_ledger_have_the_terms_of_the_ledger(pages: Pages) -> None:
    books = LOG.balance()
    assert books.remainder == 0
    assert len(books.terms) >= 8
    counts: Counter[str] = Counter()
    by_policy: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for account in books.accounts:
        for term, actions in account.terms.items():
            counts[term.partition("(")[0]] += actions
            by_policy[account.policy][term.partition("(")[0]] += actions
    shown = figures(pages.show(ledger.VIEW))
    assert shown["Training actions"] == number(books.actions)
    assert shown["Recorded only"] == number(sum(books.untrained.values()))
    for term in ("trained", "filtered", "stale", "amended", "dead_lettered", "open"):
        assert shown[term.replace("_", "-")] == number(counts[term])
    accounts = {row["Policy"]: row for row in table(pages.show(ledger.VIEW), "By policy")}
    assert set(accounts) == set(by_policy)
    for policy, terms in by_policy.items():
        for term, actions in terms.items():
            assert accounts[policy][term.replace("_", "-")] == number(actions)
    why = {
        f"{row['Term']}({row['Reason']})" if row["Reason"] != "–" else row["Term"]: row["Actions"]
        for row in table(pages.show(funnel.VIEW), "Why")
    }
    untrained = {f"recorded({why})": actions for why, actions in books.untrained.items()}
    assert why == {term: number(count) for term, count in (books.terms | untrained).items()}
    stages = figures(pages.show(funnel.VIEW))
    everything = books.actions + sum(books.untrained.values())
    assert stages["Actions"] == number(everything)
    assert stages["Trained"] == share(counts["trained"] + counts["amended"], everything)


@pytest.mark.parametrize("by", ["role", "run", "policy", "mode"])
def test_a_split_funnel_has_every_action_once(pages: Pages, by: str) -> None:
    books = LOG.balance()
    rows = table(pages.show(funnel.VIEW, by=by), f"By {by}")
    assert sum(_whole(row["Actions"]) for row in rows) == books.actions + sum(
        books.untrained.values()
    )


def _whole(shown: str) -> int:
    return 0 if shown == "–" else int(shown.replace("\u202f", ""))


def test_agents_have_the_tokens_and_calls_of_cost(pages: Pages) -> None:
    rows = table(pages.show(agents.VIEW), "Roles")
    for one in costs(By.alias).rows:
        own = [row for row in rows if row["Alias"] == one.key]
        if own:
            assert sum(_whole(row["Calls"]) for row in own) == one.calls
            assert sum(_whole(row["Prompt tokens"]) for row in own) == one.prompt
            assert sum(_whole(row["Generated tokens"]) for row in own) == one.sampled
    assert {row["Alias"] for row in rows} == {"policy", "other"}


def test_agents_have_the_credit_of_rollouts_show_for_each_alias(pages: Pages) -> None:
    credit: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    closed = {one.group_id for one in LOG.groups() if one.closings}
    for one in LOG.groups():
        for rollout in {key[0] for key in one.inputs} if one.group_id in closed else ():
            for event in timeline_of(one, rollout, ClosingSettings())["events"]:
                for choice in event.get("choices", ()):
                    if choice["credit"] is not None:
                        credit[event["agent"] or agents.NO_ROLE, event["alias"]].append(
                            choice["credit"]
                        )
    rows = table(pages.show(agents.VIEW), "Roles")
    assert {(row["Role"], row["Alias"]): row["Mean credit"] for row in rows} == {
        (row["Role"], row["Alias"]): fixed(
            fmean(of) if (of := credit.get((row["Role"], row["Alias"]))) else None
        )
        for row in rows
    }
    assert len({row["Mean credit"] for row in rows if row["Role"] == "writer"}) == 2


def test_agents_trained_share_is_that_of_the_ledger_for_each_alias(pages: Pages) -> None:
    trained = {
        action
        for entry in every(LedgerEntry)
        if entry.term == "trained" and entry.source == "learner"
        for action in entry.actions
    } - {
        action
        for entry in every(LedgerEntry)
        if entry.term == "amended"
        for action in entry.actions
    }
    actions: defaultdict[tuple[str, str], list[bool]] = defaultdict(list)
    for call in every(LlmCall):
        for choice in call.choices if call.outcome == "success" else ():
            name = f"{call.call_id}#{choice.index}"
            actions[call.agent or agents.NO_ROLE, call.alias].append(name in trained)
    for row in table(pages.show(agents.VIEW), "Roles"):
        of = actions[row["Role"], row["Alias"]]
        assert row["Trained"] == share(sum(of), len(of))
    assert sum(map(sum, actions.values())) == LOG.balance().terms["trained"]


# Rollouts, groups, rewards --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "query"),
    [
        (Wanted(), {}),
        (Wanted(run_id="run-1"), {"run": "run-1"}),
        (Wanted(mode=Mode.live), {"mode": "live"}),
        (Wanted(version="policy@1.1"), {"version": "policy@1.1"}),
        (Wanted(text="hello"), {"q": "HELLO"}),
    ],
)
def test_rollouts_are_those_of_the_command(
    pages: Pages, wanted: Wanted, query: dict[str, str]
) -> None:
    expected = {tail(one["rollout_id"]): one for one in listing(wanted)}
    rows = {row["Rollout"]: row for row in table(pages.show(rollouts.VIEW, **query))}
    assert set(rows) == set(expected)
    for name, one in expected.items():
        row = rows[name]
        assert row["Reward"] == fixed(one["reward"])
        assert row["Mode"] == one["mode"]
        assert row["Calls"] == number(one["calls"])
        assert row["Version"] in (one["versions"] or ["–"])
        assert row["Last answer"] == (one["answer"] or "–")
        ended = one["outcome"] if one["outcome"] != "finished" else "–"
        assert row["Failure"] == (one["failure"] or ended)


def test_a_group_has_the_rewards_and_credit_of_rollouts_show(pages: Pages) -> None:
    for one in LOG.groups():
        if not one.closings:
            continue
        scored = {score.episode.rollout_id: score.reward for score in scores(one)}
        values = [reward for reward in scored.values() if reward is not None]
        blocks = pages.show(group.VIEW, id=one.group_id)
        assert figures(blocks)["Baseline"] == fixed(fmean(values) if values else None)
        rows = {row["Rollout"]: row for row in table(blocks, "Rollouts")}
        assert len(rows) == len(scored)
        for rollout, reward in scored.items():
            row = rows[tail(rollout)]
            credit = [
                choice["credit"]
                for event in timeline_of(one, rollout, ClosingSettings())["events"]
                for choice in event.get("choices", ())
                if choice["credit"] is not None
            ]
            assert row["Reward"] == fixed(reward)
            assert row["Credit"] == fixed(fmean(credit) if credit else None)
            assert _whole(row["Actions"]) == len(credit)
        lacks_signal = any(
            "no signal" in block.text or "no baseline" in block.text
            for block in blocks
            if isinstance(block, Notice)
        )
        assert lacks_signal != has_signal(scores(one))


def test_a_timeline_has_the_rewards_and_terms_of_the_log(pages: Pages) -> None:
    blocks = pages.show(timeline.VIEW, rollout=rollout_id(1, 1))
    assert figures(blocks)["Reward"] == fixed(0.5)
    assert [row["Value"] for row in table(blocks, "Rewards")] == ["0.000", "0.500"]
    assert figures(blocks)["In the ledger"] == "amended"


def test_rewards_have_the_distribution_of_the_log(pages: Pages) -> None:
    for run in RUNS:
        given: defaultdict[str, list[float | None]] = defaultdict(list)
        for one in groups_of(run):
            for score in scores(one):
                for reward in counted(score.episode, one.rewards):
                    given[reward.name].append(reward.value)
        rows = {
            row["Reward"]: row
            for row in table(pages.show(rewards.VIEW, run=run, mode="train"), "Named rewards")
        }
        assert set(rows) == set(given)
        for name, values in given.items():
            valued = [value for value in values if value is not None]
            row = rows[name]
            assert row["Given"] == number(len(values))
            assert row["Failed"].startswith(f"{len(values) - len(valued)} (")
            assert row["Mean"] == fixed(fmean(valued))
            assert (row["Lowest"], row["Highest"]) == (fixed(min(valued)), fixed(max(valued)))


def test_rewards_count_as_for_training(pages: Pages) -> None:
    expected = [
        (score.episode.rollout_id, reward.name, reward.value, reward.fallback)
        for one in LOG.groups()
        for score in scores(one)
        for reward in counted(score.episode, one.rewards)
    ]
    found = pages.index.rows("SELECT rollout_id, name, value, fallback FROM counted_rewards")
    assert sorted(map(str, expected)) == sorted(str(tuple(row.values())) for row in found)
    assert sum(fallback for *_, fallback in expected) == 2


def test_rewards_of_one_name_are_spread_as_try_says(pages: Pages) -> None:
    spread = tried(groups_of("run-3")).before
    assert spread is not None
    (row,) = table(pages.show(rewards.VIEW, run="run-3", mode="train"), "Named rewards")
    assert row["Given"] == number(spread.count)
    assert row["Mean"] == fixed(spread.mean)
    assert row["Deviation"] == fixed(spread.deviation)
    assert (row["Lowest"], row["Highest"]) == (fixed(spread.lowest), fixed(spread.highest))


def test_errors_of_rewards_are_those_of_diagnose(pages: Pages) -> None:
    expected = {why: times for why, times in facts().reward_errors.items() if why != "no value"}
    assert expected
    rows = table(pages.show(rewards.VIEW), "Errors")
    assert {row["Error"]: _whole(row["Times"]) for row in rows} == expected


# Prompts, feedback, dead letters --------------------------------------------------------------


def test_prompts_are_those_of_the_command(pages: Pages) -> None:
    history = PromptHistory()
    for one in every(PromptUpdate):
        history.apply(one)
    expected = {
        str(one.version): describe_version(one, history) for one in history.versions("policy")
    }
    rows = table(pages.show(prompts.VIEW), "Versions")
    written = {
        row["Version"]: row
        for row in rows
        if row["What"].startswith(("set", "candidate")) and "ignored" not in row["What"]
    }
    assert sum("ignored" in row["What"] for row in rows) == 2
    assert set(written) == set(expected)
    for version, about in expected.items():
        assert written[version]["Role"] == (about["role"] or "all")
        assert written[version]["Reason"] == about["reason"]
    in_force = {(row["Role"], row["Version"]) for row in rows if "in force" in row["What"]}
    assert in_force == {
        (role or "all", str(current.version))
        for alias, role in history.scopes()
        if (current := history.current(alias, role)) is not None
    }


def test_feedback_counts_the_rewards_of_live_rollouts(pages: Pages) -> None:
    live = [one["rollout_id"] for one in listing(Wanted(mode=Mode.live))]
    values = [
        reward.value
        for one in LOG.groups()
        for score in scores(one)
        if score.episode.rollout_id in live
        for reward in counted(score.episode, one.rewards)
        if reward.value is not None and not reward.fallback
    ]
    shown = figures(pages.show(feedback.VIEW))
    assert shown["Good"] == number(sum(value > 0 for value in values))
    assert shown["Bad"] == number(sum(value <= 0 for value in values))
    given = {one.rollout_id for one in every(AgentReward) if not one.fallback} & set(live)
    assert shown["Conversations with feedback"] == share(len(given), len(live))


def test_dead_letters_are_those_of_the_command(pages: Pages) -> None:
    letters = {one.event_id: one for one in every(DeadLetter)}
    lost = {name: summary(CODEC, one)["actions"] for name, one in letters.items()}
    blocks = pages.show(dead_letters.VIEW)
    rows = {row["Dead letter"]: row for row in table(blocks, "Dead letters")}
    assert set(rows) == set(letters)
    for name, one in letters.items():
        assert _whole(rows[name]["Actions"]) == len(lost[name])
        assert one.error_type in rows[name]["Error"]
    stages: Counter[tuple[str, str]] = Counter()
    actions: Counter[tuple[str, str]] = Counter()
    for name, one in letters.items():
        stages[one.stage, one.error_type] += 1
        actions[one.stage, one.error_type] += len(lost[name])
    for row in table(blocks, "By stage"):
        key = (row["Stage"], row["Error"])
        assert _whole(row["Dead letters"]) == stages[key]
        assert _whole(row["Actions lost"]) == actions[key]
    assert sum(actions.values()) >= LOG.balance().terms["dead_lettered"]
