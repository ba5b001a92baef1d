"""Judging, scoring, timelines, exports, lineage and windows, on a log in memory."""

from __future__ import annotations

import asyncio
from io import StringIO
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from fulgurite.calls.claim_checks import extract_pieces, leave, payload_of
from fulgurite.enums import FilterReason, LedgerTerm, UpdateKind
from fulgurite.events import AgentReward, LedgerEntry, LlmCall, PolicyUpdate
from services.cli.rollouts import show
from services.common.blobs.blob_store import open_store
from services.replay.errors import BadArgument, NotFound
from services.replay.exports import Filters, dpo, rows, sft, transitions
from services.replay.groups import Group, read_groups
from services.replay.lineage import Lineage
from services.replay.lookup import find_group, group_of
from services.replay.rescoring import Rescorer
from services.replay.scoring import compare, scores
from services.replay.timeline import rollout_ids, shortened, timeline
from services.replay.windows import parse_datetime, parse_since, shown
from services.rewarder.closing_settings import ClosingSettings
from services.rewards.plugins import RewardPlugin, reward_event_id
from services.rewards.sandbox import Limits
from tests.services.replay.memory_log import CODEC, MemoryLog
from tests.synthetic import (
    group_id,
    make_call,
    make_declared,
    make_group,
    make_reward,
    make_status,
    rollout_id,
)

ASKED: dict[str, object] = {"role": "user", "content": "6 times 7?"}


def chats(*replies: str, group: int = 1) -> Group:
    """A group of rollouts that were asked the same and answered so; the reward is the answer's
    length.
    """
    log = MemoryLog()
    log.append(make_declared(group, len(replies)))
    for index, reply in enumerate(replies):
        log.append(
            make_call(
                group, index, messages=[ASKED], replies=[{"role": "assistant", "content": reply}]
            ),
            make_status(group, index),
            make_reward(group, index, float(len(reply))),
        )
    (found,) = log.groups()
    return found


def rewards_of(
    folder: Path, group: Group, body: str, *, anew: bool = False
) -> tuple[Rescorer, tuple[AgentReward, ...]]:
    """What a function of this body gives a group, and who rescored."""
    (folder / "rewards.py").write_text(f"def fn(episode):\n    {body}\n")
    plugins, limits = (
        [RewardPlugin(f"{folder}/rewards.py:fn", "reward")],
        Limits(processes=1, timeout_s=30, memory_mb=0),
    )
    with Rescorer(plugins, limits, anew=anew) as rescorer:
        return rescorer, asyncio.run(rescorer.rewards(group, group.episodes()))


def test_a_function_takes_the_place_of_rewards_of_its_name(tmp_path: Path) -> None:
    group = chats("42", "forty-two")
    _, rewards = rewards_of(tmp_path, group, "return -float(len(episode.final_text()))")
    found = compare([(scores(group), scores(group, rewards=rewards))])
    assert (found.groups, found.episodes, found.signal_before, found.signal_after) == (1, 2, 1, 1)
    assert {flip[1:] for flip in found.flips} == {(2.0, -2.0), (9.0, -9.0)}
    assert found.before is not None
    assert found.after is not None
    assert (found.before.quartiles[1], found.after.lowest) == (5.5, -9.0)


def test_several_functions_pay_under_their_names_and_are_weighed(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text(
        "def size(e): return len(e.final_text())\ndef two(e): return 2.0 * size(e)\n"
    )
    plugins = [
        RewardPlugin(f"{tmp_path}/rewards.py:{function}", name)
        for name, function in (("reward", "size"), ("style", "two"))
    ]
    group = chats("42", "forty-two")
    with Rescorer(plugins, Limits(processes=1, timeout_s=30, memory_mb=0), anew=True) as rescorer:
        rewards = asyncio.run(rescorer.rewards(group, group.episodes()))
    assert {(reward.name, reward.value) for reward in rewards} == {
        ("reward", 2.0),
        ("style", 4.0),
        ("reward", 9.0),
        ("style", 18.0),
    }
    assert rescorer.given == 4
    assert [score.reward for score in scores(group, rewards=rewards)] == [6.0, 27.0]
    weighed = scores(group, rewards=rewards, weights={"style": 0.5, "reward": 0.0})
    assert [(score.reward, score.named["style"]) for score in weighed] == [(2.0, 4.0), (9.0, 18.0)]


def test_a_verdict_of_the_same_code_is_reused_unless_all_is_judged_anew(tmp_path: Path) -> None:
    group = chats("42")
    _, given = rewards_of(tmp_path, group, "return 5")
    later = msgspec.structs.replace(group, rewards=(*group.rewards, *given))
    again, reused = rewards_of(tmp_path, later, "return 5")
    anew, given_again = rewards_of(tmp_path, later, "return 5", anew=True)
    assert reused == given == given_again
    assert ((again.given, again.reused), (anew.given, anew.reused)) == ((0, 1), (1, 0))


def test_rewards_of_actions_are_reused_once_the_last_of_them_is_there(tmp_path: Path) -> None:
    body = "return {'reward': {call.call_id: 5 for call in episode.calls}}"
    group = chats("42")
    _, given = rewards_of(tmp_path, group, body)
    assert [reward.call_id is None for reward in given] == [False, True]
    for known, reused in ((given, 2), (given[:1], 0)):
        later = msgspec.structs.replace(group, rewards=(*group.rewards, *known))
        rescorer, again = rewards_of(tmp_path, later, body)
        assert again == given
        assert rescorer.reused == reused


def test_a_verdict_that_the_same_code_gave_under_another_name_is_kept_and_not_taken_for_its_own(
    tmp_path: Path,
) -> None:
    group = chats("42")
    _, given = rewards_of(tmp_path, group, "return 5")
    other = [msgspec.structs.replace(reward, name="length", event_id=reward_event_id("length", reward.source, episode))
             for reward, episode in zip(given, group.episodes(), strict=True)]  # fmt: skip
    later = msgspec.structs.replace(group, rewards=(*group.rewards, *other))
    rescorer, rewards = rewards_of(tmp_path, later, "return 5")
    assert sorted((reward.name, reward.value) for reward in rewards) == [
        ("length", 5.0),
        ("reward", 5.0),
    ]
    assert (rescorer.given, rescorer.reused) == (1, 0)


def test_a_function_that_fails_leaves_no_reward_and_says_why(tmp_path: Path) -> None:
    group = chats("42")
    judging, rewards = rewards_of(tmp_path, group, "return 1 / 0")
    (score,) = scores(group, rewards=rewards)
    assert (score.reward, score.reason, judging.failed) == (None, "reward_failed", 1)
    assert judging.why == {"ZeroDivisionError: division by zero": 1}


def test_a_timeline_tells_what_happened_down_to_tokens() -> None:
    group = chats("42", "43")
    found = timeline(group, rollout_id(1, 0), ClosingSettings(), tokens=True)
    assert [event["what"] for event in found["events"]].count("call") == 1
    call = next(event for event in found["events"] if event["what"] == "call")
    assert call["messages"] == [{"role": "user", "content": "6 times 7?", "tool_calls": []}]
    (choice,) = call["choices"]
    assert (
        choice["message"]["content"],
        choice["credit"],
        choice["token_ids"],
        choice["logprobs"],
    ) == ("42", 2.0, [7, 9], [-0.5, -0.5])
    assert found["attempts"] == [{"attempt": 0, "outcome": "finished", "failure": None, "calls": 1}]
    assert rollout_ids(group) == [rollout_id(1, 0), rollout_id(1, 1)]
    assert shortened("a\nb" * 100, 5) == "a ba…"


def test_a_large_call_is_shown_with_its_answer_and_the_sizes_of_what_is_long(
    tmp_path: Path,
) -> None:
    store = open_store("", tmp_path)
    image = [
        {"type": "image_url", "image_url": {"url": "data:" + "A" * 100_000}},
        {"type": "text", "text": "what is it?"},
    ]
    call = make_call(
        0,
        0,
        messages=[{"role": "user", "content": image}],
        replies=[{"role": "assistant", "content": "a cat"}],
    )
    light, payloads = extract_pieces(call, 1_000)
    by_pieces = msgspec.structs.replace(light, pieces=tuple(map(store.put, payloads.values())))
    at_once = leave(call, store.put(payload_of(call)))
    for logged in (by_pieces, at_once):
        told = shown_call(logged)
        assert "100,005 bytes in the claims store" in told
        assert "what is it?" in told
        assert "a cat" in told


def shown_call(call: LlmCall) -> str:
    """The timeline of a rollout of one call, as a terminal shows it."""
    log = MemoryLog()
    log.append(make_declared(0, 1), call, make_status(at=2_000))
    (group,) = log.groups()
    console = Console(record=True, width=400, file=StringIO())
    show(timeline(group, call.rollout_id, ClosingSettings()), console, 400)
    return console.export_text()


def test_any_id_finds_its_group() -> None:
    call = make_call(3, 1)
    for name in (call.call_id, f"{call.call_id}#0", call.rollout_id, f"{call.rollout_id}/0"):
        assert group_of(name) == (group_id(3), call.rollout_id)
    assert group_of(group_id(3)) == (group_id(3), None)
    with pytest.raises(BadArgument):
        group_of("three")
    with pytest.raises(NotFound):
        find_group(MemoryLog(), CODEC, group_id(3))


def test_groups_that_began_before_a_start_are_left_out_whole() -> None:
    log = MemoryLog()
    log.append(*make_group(1, at=1_000, size=1, turns=3), *make_group(2, at=1_030, size=1, turns=3))
    assert [group.group_id for group in read_groups(log, CODEC, since_ms=1_025)] == [group_id(2)]
    assert [group.group_id for group in read_groups(log, CODEC, keys={group_id(1)})] == [
        group_id(1)
    ]


def test_exports() -> None:
    group = chats("42", "forty-two")
    (short, long) = sft([group], Filters(), ClosingSettings())
    assert short["messages"] == [ASKED, {"role": "assistant", "content": "42"}]
    assert (long["reward"], long["versions"]) == (9.0, ["policy@0.0"])
    (pair,) = dpo([group], Filters(), ClosingSettings(), 0.0)
    assert (pair["prompt"], pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == (
        [ASKED],
        "forty-two",
        "42",
    )
    assert list(dpo([group], Filters(), ClosingSettings(), 8.0)) == []
    (one, _) = transitions([group], Filters(), ClosingSettings())
    assert (one["state"], one["action"], one["next_state"], one["done"], one["reward"]) == (
        [1, 2, 3],
        [7, 9],
        [1, 2, 3, 7, 9],
        True,
        2.0,
    )


def test_an_exported_chat_has_no_keys_that_an_api_filled_with_null() -> None:
    log = MemoryLog()
    answer: dict[str, object] = {
        "role": "assistant",
        "content": "42",
        "audio": None,
        "function_call": None,
        "refusal": None,
        "tool_calls": None,
    }
    called: dict[str, object] = {
        "role": "assistant",
        "content": None,
        "audio": None,
        "tool_calls": [{"id": "c", "type": "function"}],
    }
    asked: dict[str, object] = {"role": "user", "content": "6 times 7?", "name": None}
    log.append(
        make_declared(1, 1),
        make_call(1, 0, messages=[asked, called], replies=[answer]),
        make_status(1, 0),
        make_reward(1, 0),
    )
    (chat,) = sft(log.groups(), Filters(), ClosingSettings())
    assert chat["messages"] == [
        ASKED,
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function"}]},
        {"role": "assistant", "content": "42"},
    ]
    assert chat["mode"] == "train"


def test_an_exported_chat_is_never_an_excluded_call() -> None:
    log = MemoryLog()
    titled = make_call(1, 0, 1, at=1_500, messages=[ASKED], prompt=[5], agent="title")
    log.append(
        make_declared(1, 1),
        make_call(1, 0, messages=[ASKED], replies=[{"role": "assistant", "content": "42"}]),
        titled,
        make_status(1, 0),
        make_reward(1, 0),
    )
    (group,) = log.groups()
    excluding = ClosingSettings(excluded_calls='[{"agent": "title"}]')
    for settings, last in ((ClosingSettings(), "answer 1"), (excluding, "42")):
        (chat,) = sft([group], Filters(), settings)
        assert chat["messages"][-1]["content"] == last
    assert [row.actions[0].agent for row in rows([group], Filters(), excluding)] == [""]


def test_a_verdict_without_value_that_is_reused_counts_as_failed(tmp_path: Path) -> None:
    group = chats("42", "43")
    (tmp_path / "rewards.py").write_text("def fn(episode):\n    return 1 / 0\n")
    plugin, limits = (
        RewardPlugin(f"{tmp_path}/rewards.py:fn", "reward"),
        Limits(processes=1, timeout_s=30, memory_mb=0),
    )
    with Rescorer([plugin], limits, anew=False) as rescorer:
        given = asyncio.run(rescorer.rewards(group, group.episodes()))
        assert (rescorer.failed, rescorer.reused) == (2, 0)
        again = msgspec.structs.replace(group, rewards=given)
        asyncio.run(rescorer.rewards(again, again.episodes()))
    assert (rescorer.failed, rescorer.reused) == (4, 2)
    assert rescorer.why == {"ZeroDivisionError: division by zero": 4}


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        (Filters(min_reward=3.0), 1),
        (Filters(policy="other"), 0),
        (Filters(policy="policy", version="policy@0.0", mode="train", agent=""), 2),
        (Filters(version="policy@0.1"), 0),
        (Filters(mode="val"), 0),
        (Filters(agent="writer"), 0),
        (Filters(until_ms=1_000), 0),
    ],
)
def test_filters(filters: Filters, count: int) -> None:
    group = chats("42", "forty-two")
    assert (
        len(list(sft([group], filters, ClosingSettings())))
        == len(list(rows([group], filters, ClosingSettings())))
        == count
    )


def update(version: str, parent: str) -> PolicyUpdate:
    return PolicyUpdate(
        event_id=version, event_time=1, policy="policy", kind=UpdateKind.update, epoch=1, step=1, version=version,
        parent_version=parent, learner_id="l", trained_actions=1,
    )  # fmt: skip


def entry(
    call: LlmCall,
    term: LedgerTerm,
    version: str,
    *,
    source: str = "learner",
    revision: str = "first",
) -> LedgerEntry:
    policy = version.partition("@")[0]
    return LedgerEntry(
        event_id=f"{policy}{call.call_id}{term}{revision}", event_time=1, policy=policy, group_id=call.group_id, group_revision=revision,
        term=term, reason=FilterReason.no_reward if term is LedgerTerm.filtered else None, actions=(f"{call.call_id}#0",),
        version=version, source=source,
    )  # fmt: skip


def test_lineage_goes_both_ways() -> None:
    one, other = make_call(1, 0), make_call(1, 1)
    updates = [update("policy@1.1", "policy@0.0"), update("policy@1.2", "policy@1.1")]
    known = Lineage(
        updates,
        [entry(one, LedgerTerm.trained, "policy@1.1"), entry(other, LedgerTerm.stale, "policy@1.1")]
        * 2,
    )
    behind = known.version("policy@1.1")
    assert (behind.calls, behind.ancestors) == ((one.call_id,), ("policy@0.0",))
    outcome = known.call(one.call_id)
    assert (outcome.trained, outcome.inherited) == (
        {f"{one.call_id}#0": ("policy@1.1",)},
        ("policy@1.2",),
    )
    assert known.call(other.call_id).other == {f"{other.call_id}#0": ("policy: stale",)}
    with pytest.raises(NotFound, match=r"the newest version is policy@1\.2"):
        known.version("policy@9.9")
    with pytest.raises(NotFound):
        known.call("nobody")


def test_lineage_tells_of_every_policy_that_learned_from_a_call_and_what_still_stands() -> None:
    call, late = make_call(1, 0), make_call(1, 1)
    updates = [
        update("policy@1.1", "policy@0.0"),
        update("policy-v2@1.1", "policy-v2@0.0"),
        update("policy-v2@1.2", "policy-v2@1.1"),
    ]
    said = [
        entry(call, LedgerTerm.filtered, "policy@1.1", source="rewarder"),
        entry(call, LedgerTerm.trained, "policy@1.1", revision="second"),
        entry(call, LedgerTerm.amended, "policy@1.1", revision="third"),
        entry(late, LedgerTerm.filtered, "policy@1.1", source="rewarder"),
        entry(call, LedgerTerm.trained, "policy-v2@1.1"),
        entry(late, LedgerTerm.trained, "policy-v2@1.1"),
    ]
    known = Lineage(updates, said)
    outcome = known.call(call.call_id)
    assert outcome.trained == {f"{call.call_id}#0": ("policy@1.1", "policy-v2@1.1")}
    assert outcome.other == {f"{call.call_id}#0": ("policy: amended",)}, (
        "the first closing's word no longer stands"
    )
    assert outcome.inherited == ("policy-v2@1.2",)
    assert known.call(late.call_id).other == {f"{late.call_id}#0": ("policy: filtered(no_reward)",)}
    assert known.version("policy-v2@1.1").calls == tuple(sorted((call.call_id, late.call_id)))


def test_lineage_tells_of_offline_training_beside_what_was_trained_online() -> None:
    call, late = make_call(1, 0), make_call(1, 1)
    tuned = msgspec.structs.replace(update("policy@2.5", "policy@1.1"), offline_method="dpo")
    said = [
        entry(call, LedgerTerm.trained, "policy@1.1"),
        entry(late, LedgerTerm.filtered, "policy@1.1", source="rewarder"),
        entry(call, LedgerTerm.trained, "policy@2.5", source="offline", revision="second"),
        entry(late, LedgerTerm.trained, "policy@2.5", source="offline", revision="second"),
    ]
    known = Lineage([update("policy@1.1", "policy@0.0"), tuned], said)
    assert known.version("policy@2.5").offline_method == "dpo"
    assert known.version("policy@2.5").calls == tuple(sorted((call.call_id, late.call_id)))
    assert known.call(call.call_id).trained == {f"{call.call_id}#0": ("policy@1.1", "policy@2.5")}
    outcome = known.call(late.call_id)
    assert outcome.trained == {f"{late.call_id}#0": ("policy@2.5",)}
    assert outcome.other == {f"{late.call_id}#0": ("policy: filtered(no_reward)",)}


@pytest.mark.parametrize("span", ["999999999d", f"{'9' * 400}d"])
def test_a_span_longer_than_time_is_from_the_beginning(span: str) -> None:
    assert parse_since(span, 1_000) == 0


def test_points_in_time() -> None:
    assert parse_since("2h", 7_200_000) == 0
    assert parse_since(None) is None
    assert (
        parse_since("1970-01-01T00:00:01") == parse_datetime("1970-01-01T01:00:01+01:00") == 1_000
    )
    assert shown(1_000) == "1970-01-01 00:00:01"
    with pytest.raises(BadArgument, match="ISO"):
        parse_since("yesterday")
