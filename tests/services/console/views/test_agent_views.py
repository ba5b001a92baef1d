"""Agents, Routes, Prompts, Feedback and Dead letters: what they say of rows of the index."""

from __future__ import annotations

import json

import pytest

from fulgurite.avro.codec import Codec
from fulgurite.events import DeadLetter
from services.console.pages.blocks import Buttons, Chart, Figures, Notice, Table, Text
from services.console.pages.views import agents, dead_letters, feedback, prompts, routes
from tests.services.console.views.memory_index import (
    NOW,
    MemoryIndex,
    asked,
    minutes_ago,
    only,
    texts,
)
from tests.synthetic import make_reward

SCRIPT = "<script>alert(1)</script>"


@pytest.fixture
def index() -> MemoryIndex:
    return MemoryIndex()


def add_call(index: MemoryIndex, name: str, agent: str, parent: str | None = None) -> None:
    index.add(
        "calls",
        call_id=name,
        rollout_id="r",
        group_id="g",
        agent=agent,
        parent_agent=parent,
        alias="policy",
        policy="policy",
        mode="train",
        outcome="success",
        choices=1,
        prompt_tokens=10,
        completion_tokens=5,
        milliseconds=250,
        started_at=minutes_ago(1),
    )


@pytest.mark.parametrize("view", [agents, routes, prompts, feedback, dead_letters])
def test_an_empty_index_says_what_to_do(index: MemoryIndex, view: object) -> None:
    content = getattr(view, "content")  # noqa: B009
    notice = only(content(asked(index, "/x")), Notice)[0]
    assert notice.commands or notice.tone == "good"


def test_roles_have_calls_tokens_failures_and_credit(index: MemoryIndex) -> None:
    add_call(index, "c1", "")
    add_call(index, "c2", "writer")
    index.add(
        "calls",
        call_id="c3",
        rollout_id="r",
        agent="writer",
        alias="policy",
        outcome="upstream_error",
        failure="rate_limited",
        error=SCRIPT,
        started_at=minutes_ago(1),
        milliseconds=1,
    )
    index.add("rollouts", rollout_id="r", group_id="g", began_at=NOW, mode="train")
    index.add(
        "funnel",
        rollout_id="r",
        agent="writer",
        alias="policy",
        term="trained",
        actions=3,
        credited=2,
        credit=1.0,
    )
    index.add(
        "funnel", rollout_id="r", agent="writer", alias="policy", term="open", actions=1, credited=0
    )
    blocks = agents.content(asked(index, "/agents"))
    roles, tree, failures = only(blocks, Table)
    writer, none = texts(roles.rows)
    assert writer[:6] == ["writer", "policy", "1", "2", "50.0 %", "0.0 %"]
    assert writer[9:] == ["0.500", "75.0 %"]
    assert none[0] == agents.NO_ROLE
    assert len(tree.rows) == 2
    assert texts(failures.rows)[0][:4] == ["writer", "rate_limited", "1", SCRIPT]
    titles = [chart.title for chart in only(blocks, Chart)]
    assert titles == ["Tokens by role", "Mean credit by role"]


def test_sub_agents_stand_below_the_agent_that_started_them(index: MemoryIndex) -> None:
    add_call(index, "c1", "main")
    add_call(index, "c2", "search", "main")
    add_call(index, "c3", "read", "search")
    add_call(index, "c4", "alone", "who was never seen")
    tree = only(agents.content(asked(index, "/agents")), Table)[1]
    names = [row[0] for row in texts(tree.rows)]
    assert names == ["alone", "main", "\u2003└ search", "\u2003\u2003└ read"]


def test_agents_that_start_one_another_are_listed_once() -> None:
    rows = [
        {"agent": "a", "parent_agent": "b", "calls": 1, "rollouts": 1},
        {"agent": "b", "parent_agent": "a", "calls": 1, "rollouts": 1},
        {"agent": "c", "parent_agent": "c", "calls": 1, "rollouts": 1},
    ]
    found = [row["agent"] for _, row in agents.tree(rows)]
    assert sorted(found) == ["a", "b", "c"]


def target(version: str | None, weight: float, upstream: str | None = None) -> dict[str, object]:
    return {
        "policy": "" if upstream else "policy",
        "version": version,
        "upstream": upstream,
        "weight": weight,
        "parameters": {"temperature": 0.5} if upstream else {},
        "cell_weights": {},
        "prompt": "prompt@2" if upstream else None,
    }


def add_routes(index: MemoryIndex) -> None:
    for number, targets in enumerate(
        (
            [target("policy@1.1", 1.0)],
            [target("policy@1.1", 3.0), target("policy@1.2", 1.0)],
            [target(None, 1.0), target(None, 1.0, "gpt")],
        )
    ):
        index.add(
            "routes",
            event_id=f"route {number}",
            event_time=minutes_ago(30 - number),
            alias="policy",
            targets=targets,
            reason="why",
            author="ada",
            offset=number,
        )


def test_routes_have_shares_scores_and_a_history_of_changes(index: MemoryIndex) -> None:
    add_routes(index)
    for number, (variant, reward) in enumerate((("policy@1.1", 1.0), ("policy@1.2", 0.0))):
        index.add(
            "rollouts",
            rollout_id=f"r{number}",
            alias="policy",
            variant=variant,
            reward=reward,
            began_at=minutes_ago(2),
        )
    blocks = routes.content(asked(index, "/routes", since="24h"))
    current, earned, history = only(blocks, Table)
    assert {tuple(row[1:3]) for row in texts(current.rows)} == {
        ("policy (newest)", "50.0 %"),
        ("upstream:gpt,prompt@2,temperature=0.5", "50.0 %"),
    }
    assert [row[:6] for row in texts(earned.rows)] == [
        ["policy", "policy@1.1", "1", "50.0 %", "1.000 (n = 1)", "0.000"],
        ["policy", "policy@1.2", "1", "50.0 %", "0.000 (n = 1)", "1.000"],
    ]
    changes = [row[2] for row in texts(history.rows)]
    assert changes[1] == "policy@1.1: 100.0 % → 75.0 %; policy@1.2: new, 25.0 %"
    assert changes[2] == "policy@1.1: new, 100.0 %"
    assert "policy@1.1: removed" in changes[0]
    (chart,) = only(blocks, Chart)
    assert [series.name for series in chart.series] == ["policy@1.1", "policy@1.2"]
    assert only(blocks, Buttons)[0].items[0].action == "roll_back"


def add_prompts(index: MemoryIndex) -> None:
    for number, (kind, version, system) in enumerate(
        (
            ("set", "prompt@1", "Be brief."),
            ("set", "prompt@2", f"Be brief.\n{SCRIPT}"),
            ("rollback", "prompt@1", None),
        )
    ):
        index.add(
            "prompts",
            event_id=f"p{number}",
            event_time=minutes_ago(30 - number),
            alias="policy",
            kind=kind,
            version=version,
            parent="prompt@1" if version == "prompt@2" else None,
            system=system,
            demonstrations=json.dumps([{"role": "user", "content": "hi"}]) if not number else "[]",
            reason="why",
            author="ada",
            offset=number,
        )


def test_prompts_have_scores_and_say_which_is_in_force(index: MemoryIndex) -> None:
    add_prompts(index)
    for number, version in enumerate((None, "prompt@1", "prompt@1")):
        index.add(
            "rollouts",
            rollout_id=f"r{number}",
            alias="policy",
            prompt_version=version,
            reward=float(number > 0),
        )
    blocks = prompts.content(asked(index, "/prompts"))
    (table,) = only(blocks, Table)
    assert [row[0] for row in texts(table.rows)] == ["prompt@1", "prompt@2", "prompt@1"]
    assert [row[3] for row in texts(table.rows)] == ["rolled back to, in force", "set", "set"]
    assert texts(table.rows)[2][4] == "system, demonstrations"
    assert texts(table.rows)[2][5] == "1.000 ± 0.000 (n = 2)"
    (chart,) = only(blocks, Chart)
    assert chart.series[0].points == (("as sent", 0.0), ("prompt@1", 1.0))


def test_candidates_are_in_force_nowhere_and_have_the_scores_of_their_tuning(
    index: MemoryIndex,
) -> None:
    add_prompts(index)
    index.add("prompts", event_id="p3", event_time=minutes_ago(1), alias="policy", offset=3,
              kind="candidate", version="prompt@3", system="Be kind.", demonstrations="[]",
              reason="a tuning", author="tune")  # fmt: skip
    for stage, rewards in (("training", [0.0]), ("validation", [1.0, 0.5])):
        index.add("prompt_scores", event_id=stage, alias="policy", version="prompt@3",
                  stage=stage, rewards=rewards)  # fmt: skip
    (table,) = only(prompts.content(asked(index, "/prompts")), Table)
    newest, before = texts(table.rows)[:2]
    assert (newest[0], newest[3], newest[6]) == ("prompt@3", "candidate", "0.750 (n = 2)")
    assert before[3] == "rolled back to, in force"
    query = {"of": "policy", "version": "prompt@3"}
    assert "+Be kind." in only(prompts.content(asked(index, "/prompts", **query)), Text)[0].text


def test_a_prompt_is_shown_as_a_diff_of_texts(index: MemoryIndex) -> None:
    add_prompts(index)
    query = {"of": "policy", "version": "prompt@2"}
    blocks = prompts.content(asked(index, "/prompts", **query))
    against_parent, everything = only(blocks, Text)
    assert f"+{SCRIPT}" in against_parent.text.splitlines()
    assert '-{"role": "user", "content": "hi"}' in against_parent.text.splitlines()
    assert everything.text.splitlines() == ["-- system prompt", "Be brief.", SCRIPT]
    assert "--to prompt@2" in only(blocks, Notice)[0].commands[0]
    first = prompts.content(asked(index, "/prompts", of="policy", version="prompt@1"))
    assert "+Be brief." in only(first, Text)[0].text
    unknown = prompts.content(asked(index, "/prompts", of="policy", version="prompt@7"))
    assert "no version prompt@7" in only(unknown, Notice)[0].text


def test_feedback_is_counted_over_time_and_version_and_the_worst_comes_first(
    index: MemoryIndex,
) -> None:
    for number, value in enumerate((1.0, 1.0, -1.0)):
        name = f"ro_{number}"
        index.add(
            "rollouts",
            rollout_id=name,
            mode="live",
            alias="policy",
            version=f"policy@1.{number % 2}",
            attempt=0,
            began_at=minutes_ago(9),
            answer=SCRIPT,
        )
        index.add(
            "rewards",
            event_id=name,
            event_time=minutes_ago(8),
            rollout_id=name,
            name="thumb",
            value=value,
            final=True,
        )
    blocks = feedback.content(asked(index, "/feedback", since="24h"))
    values = [figure.value for figure in only(blocks, Figures)[0].items]
    assert values[:3] == ["2", "1", "66.7 %"]
    over_time, by_version = only(blocks, Chart)
    assert [series.points[0][1] for series in over_time.series] == [2, 1]
    assert dict(by_version.series[0].points) == {"policy@1.0": 0.0, "policy@1.1": 1.0}
    (worst,) = only(blocks, Table)
    assert texts(worst.rows)[0][:3] == ["ro_2", "−1.00", "policy@1.0"]
    assert texts(worst.rows)[0][4] == SCRIPT
    assert worst.rows[0][7].address == "/feedback?since=24h&pin=ro_2"
    pinned = feedback.content(asked(index, "/feedback", pin="ro_2"))
    (notice,) = only(pinned, Notice)
    assert notice.commands[0].startswith("fulgurite pin ro_2 ")
    strange = feedback.content(asked(index, "/feedback", pin="$(reboot)"))
    assert not only(strange, Notice)


def test_dead_letters_are_read_and_may_be_sent_back(index: MemoryIndex) -> None:
    for number in range(2):
        index.add(
            "dead_letters",
            event_id=f"letter{number}",
            event_time=minutes_ago(number),
            stage="aggregator",
            error_type="InvalidEvent",
            error=SCRIPT,
            topic="llm.calls",
            source_partition=3,
            source_offset=42 + number,
            bytes=2048,
            actions=number,
        )
    blocks = dead_letters.content(asked(index, "/dead-letters"))
    stages, letters = only(blocks, Table)
    assert texts(stages.rows)[0][:4] == ["aggregator", "InvalidEvent", "2", "1"]
    assert texts(letters.rows)[0][2:6] == ["aggregator", "llm.calls[3]@42", "0", "2.0 KiB"]
    assert not only(blocks, Buttons)
    one = dead_letters.content(asked(index, "/dead-letters", letter="letter1"))
    assert [text.text for text in only(one, Text)] == [
        SCRIPT,
        "The index does not hold the record any more.",
    ]
    assert only(one, Buttons)[0].items[0].arguments == (("letter", "letter1"),)
    stage = dead_letters.content(asked(index, "/dead-letters", stage="aggregator"))
    assert only(stage, Buttons)[0].items[0].action == "redrive_stage"
    missing = dead_letters.content(asked(index, "/dead-letters", letter="no"))
    assert "no dead letter no" in only(missing, Notice)[0].text


def test_the_event_of_a_dead_letter_is_shown_or_its_bytes() -> None:
    codec = Codec()

    def shown(value: bytes | None) -> str:
        letter = DeadLetter(
            event_id="e",
            event_time=1,
            stage="s",
            error_type="E",
            error="e",
            topic="agent.rewards",
            partition=0,
            offset=0,
            value=value,
        )
        return dead_letters.event_text(codec, codec.encode(letter))

    reward = make_reward(1, 0, 0.5)
    assert json.loads(shown(codec.encode(reward)))["value"] == 0.5
    assert shown(b"nonsense").endswith("6e 6f 6e 73 65 6e 73 65")
    assert "no bytes" in shown(None)
    assert "cannot be read" in dead_letters.event_text(codec, b"nonsense")
    assert "holds AgentReward, not" in dead_letters.event_text(codec, codec.encode(reward))
