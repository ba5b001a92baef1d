"""Which calls a rule takes for no part of the task, by what they recorded of their request."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fulgurite.calls.transcript import messages_of
from fulgurite.episodes.episode_deltas import pack
from fulgurite.episodes.exclusions import ExclusionRule, find_excluded_calls, parse_exclusions
from fulgurite.events import LlmCall
from tests.fulgurite.recorded import conversation
from tests.synthetic import SAMPLING, make_call

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "exclude-calls.md"
TITLE = "You are a title generator. You output ONLY a thread title."
ASKED: list[dict[str, object]] = [
    {"role": "system", "content": TITLE},
    {"role": "user", "content": [{"type": "text", "text": "Generate a title: say ok"}]},
]


def asked(body: Any, turn: int = 0, **more: Any) -> LlmCall:
    call = make_call(turn=turn, agent=more.pop("agent", ""))
    return msgspec.structs.replace(call, request=json.dumps(body), **more)


SHORT = msgspec.structs.replace(SAMPLING, max_tokens=20)
HELPER = asked({"messages": ASKED}, agent="title", alias="small", sampling=SHORT)


def said(text: str) -> dict[str, object]:
    return {"role": "user", "content": text}


def excludes(rule: ExclusionRule, call: LlmCall = HELPER) -> bool:
    return call.call_id in find_excluded_calls([call], [rule])


@pytest.mark.parametrize(
    ("rule", "excluded"),
    [
        (ExclusionRule(agent="title"), True),
        (ExclusionRule(agent="titles"), False),
        (ExclusionRule(alias="small"), True),
        (ExclusionRule(alias="policy"), False),
        (ExclusionRule(max_tokens=20), True),
        (ExclusionRule(max_tokens=19), False),
        (ExclusionRule(tools=False), True),
        (ExclusionRule(tools=True), False),
        (ExclusionRule(max_messages=1), True),
        (ExclusionRule(max_messages=0), False),
        (ExclusionRule(system="^You are a title generator"), True),
        (ExclusionRule(system="Generate a title"), False),
        (ExclusionRule(last="Generate a title"), True),
        (ExclusionRule(last="You are a title generator"), False),
        (ExclusionRule(agent="title", alias="small", system="title", last="ok$"), True),
        (ExclusionRule(agent="title", system="title", last="OK$"), False),
    ],
)
def test_a_rule_matches_where_all_its_conditions_hold(rule: ExclusionRule, excluded: bool) -> None:
    assert excludes(rule) == excluded


@pytest.mark.parametrize(
    ("api", "body", "rule"),
    [
        ("messages", {"system": TITLE, "messages": ASKED[1:]}, ExclusionRule(system="^You are")),
        ("responses", {"instructions": TITLE, "input": "Title?"}, ExclusionRule(last=r"^Title\?$")),
        ("completions", {"prompt": "### Task:\nTitle"}, ExclusionRule(last="^### Task:")),
        ("chat.completions", {"tools": [{"type": "function"}]}, ExclusionRule(tools=True)),
        ("chat.completions", {"functions": [{"name": "f"}]}, ExclusionRule(tools=True)),
        ("chat.completions", {"tools": [], "model": "m"}, ExclusionRule(tools=False)),
    ],
)
def test_a_request_of_any_api_is_read(api: str, body: Any, rule: ExclusionRule) -> None:
    assert excludes(rule, asked(body, api=api))


def test_any_rule_excludes_and_no_rule_excludes_nothing() -> None:
    rules = [ExclusionRule(alias="other"), ExclusionRule(tools=True), ExclusionRule(last="ok")]
    assert find_excluded_calls([HELPER, make_call(turn=1)], rules) == {HELPER.call_id}
    assert find_excluded_calls([HELPER], []) == frozenset()


def test_a_body_that_cannot_be_read_matches_no_condition_on_it() -> None:
    broken = msgspec.structs.replace(HELPER, request="no JSON")
    for rule in (ExclusionRule(tools=False), ExclusionRule(max_messages=9), ExclusionRule(last="")):
        assert not excludes(rule, broken)
    assert excludes(ExclusionRule(alias="small"), broken)
    assert not excludes(
        ExclusionRule(max_tokens=20), msgspec.structs.replace(HELPER, sampling=SAMPLING)
    )


def test_packed_calls_are_read_like_whole_ones() -> None:
    calls = conversation(8)
    packed = pack(calls)
    assert packed[-1].parent is not None
    rule = ExclusionRule(max_messages=len(messages_of(calls[3])) - 1)
    assert find_excluded_calls(packed, [rule]) == {call.call_id for call in calls[:4]}


def test_only_the_beginning_of_a_long_text_is_searched() -> None:
    end = asked({"messages": [{"role": "user", "content": "x" * 20_000 + "title"}]})
    assert not excludes(ExclusionRule(last="title"), end)


def test_rules_are_parsed_from_json() -> None:
    assert parse_exclusions(" ") == ()
    assert parse_exclusions('[{"tools": false, "system": "title"}]') == (
        ExclusionRule(tools=False, system="title"),
    )


@pytest.mark.parametrize(
    ("system", "last"),
    [
        (
            "You are a title generator. You output ONLY a thread title. Nothing else.\n\n<task>",
            "hi",
        ),
        ("You are Claude Code.\nGenerate a concise, sentence-case title (3-7 words) that", "hi"),
        ("Analyze if this message indicates a new conversation topic. If it does,", "hi"),
        ("", "### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing the chat"),
        ("", "### Task:\nGenerate a concise title summarizing the chat history."),
        ("", "### Task:\nGenerate 1-3 broad tags categorizing the main themes of the chat history"),
        ("", "### Task:\nSuggest 3-5 relevant follow-up questions or prompts that the user might"),
        ("", "### Task:\nYou are an autocompletion system. Continue the text in `<text>` based on"),
        ("", "Provide a concise, 5-word-or-less title for the conversation, using its same"),
    ],
)
def test_the_ready_rules_match_one_helper_call_each(system: str, last: str) -> None:
    rules = parse_exclusions(re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)[0])
    call = asked({"messages": [{"role": "system", "content": system}, said(last)]})
    assert sum(excludes(rule, call) for rule in rules) == 1
    task = asked({"messages": [said("### Task:\nRespond to the user query using the context.")]})
    assert not find_excluded_calls([task], rules)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[{}]", "a rule without a condition"),
        ('[{"role": "title"}]', "role"),
        ('[{"system": "("}]', "not a regular expression"),
        ('[{"last": "["}]', "not a regular expression"),
        ('{"agent": "title"}', "array"),
        ("title", "malformed"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_exclusions(text)
