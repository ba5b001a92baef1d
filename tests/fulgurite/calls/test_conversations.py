"""What is one message and what another; conversations told apart or opened anew, never taken for
one.
"""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.calls.conversations import (
    AMBIGUOUS,
    LOOKED_UP,
    MessageChain,
    atoms,
    owner_of,
    recognised,
)

SALT = b"salt"
ASK: dict[str, Any] = {"role": "user", "content": "How much is 3+8?"}
ARGUMENTS = '{"expression": "3+8", "digits": 2.0}'
CALL: dict[str, Any] = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "calc", "arguments": ARGUMENTS},
}
ANSWER: dict[str, Any] = {
    "role": "assistant",
    "content": "Let me see.",
    "tool_calls": [CALL],
    "refusal": None,
    "reasoning_content": "hm",
}
RESULT: dict[str, Any] = {"role": "tool", "tool_call_id": "call_1", "content": "11"}


def called(**changes: Any) -> dict[str, Any]:
    return CALL | {"function": CALL["function"] | changes}


def chain(*items: Any) -> str | None:
    return MessageChain(SALT, []).answered(items)


SENT_BACK: list[dict[str, Any]] = [
    {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL]},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    ANSWER | {"content": [{"type": "text", "text": "Let me see."}]},
    ANSWER
    | {
        "content": [{"type": "text", "text": "Let me"}, {"type": "text", "text": " see."}],
        "annotations": [],
        "audio": None,
    },
    ANSWER | {"content": ["Let me see.\n"], "name": "solver"},
    ANSWER | {"content": " Let me see.\n", "function_call": None},
    ANSWER
    | {
        "tool_calls": [
            called(arguments='{"digits":2,"expression":"3+8","base":null}') | {"index": 0}
        ]
    },
    ANSWER | {"tool_calls": [called(arguments={"digits": 2, "expression": "3+8"})]},
    ANSWER
    | {"content": [{"type": "reasoning", "text": "hm"}, {"type": "text", "text": "Let me see."}]},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "x"},
            {"type": "text", "text": "Let me see.", "cache_control": {"type": "ephemeral"}},
            {"type": "tool_use", "id": "call_1", "name": "calc", "input": json.loads(ARGUMENTS)},
        ],
    },
]


@pytest.mark.parametrize("sent_back", SENT_BACK)
def test_an_answer_sent_back_in_another_form_is_the_same(sent_back: dict[str, Any]) -> None:
    assert chain(ASK, sent_back, RESULT) == chain(ASK, ANSWER, RESULT)


OTHERS: list[dict[str, Any]] = [
    ANSWER | {"tool_calls": []},
    ANSWER | {"role": "user"},
    ANSWER | {"tool_calls": [CALL, CALL]},
    ANSWER | {"tool_calls": [CALL | {"id": "call_2"}]},
    ANSWER | {"tool_calls": [called(arguments='{"expression": "3+9", "digits": 2}')]},
    ANSWER | {"tool_calls": [called(name="add")]},
]


@pytest.mark.parametrize("other", OTHERS)
def test_another_answer_is_another(other: dict[str, Any]) -> None:
    assert chain(ASK, other, RESULT) != chain(ASK, ANSWER, RESULT)


THOUGHTS = st.lists(
    st.tuples(
        st.sampled_from(["<think>", "\n<think>\n", "<think><think>"]),
        st.text().filter(lambda text: "</think>" not in text),
        st.sampled_from(["</think>", "</think>\n\n", "</think> "]),
    ).map("".join),
    min_size=1,
    max_size=3,
).map("".join)
SPOKEN = st.text() | st.lists(
    st.sampled_from(["<think>", "</think>", "a", " ", "\n", "call 1"])
).map("".join)


@given(THOUGHTS, SPOKEN)
def test_a_text_without_its_thoughts_is_the_same_answer(thoughts: str, spoken: str) -> None:
    left = list(atoms([ASK, *said(thoughts + spoken), ASK]))
    assert left == list(atoms([ASK, *said(spoken), ASK]))
    assert left == list(
        atoms(
            [
                ASK,
                *said(
                    None,
                    content=[{"type": "text", "text": thoughts}, {"type": "text", "text": spoken}],
                ),
                ASK,
            ]
        )
    )
    output = {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": thoughts + spoken}],
    }
    assert left == list(atoms([ASK, output, ASK]))


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("<think>a b c</think>call 1", "call 1"),
        ("a b c</think>\n\ncall 1", "call 1"),
        ("<think></think><think>b</think> call 1", "call 1"),
        ("<think>a <think> b</think>call 1", "call 1"),
        ("<think>a</think>", ""),
        ("<think>a", "<think>a"),
        ("call 1 <think>a</think>", "call 1 <think>a</think>"),
    ],
)
def test_thoughts_come_before_a_text(text: str, same: str) -> None:
    assert list(atoms(said(text))) == [("assistant", "text", same)]
    assert list(atoms([{"role": "user", "content": text}])) == [("user", "text", text)]
    assert list(atoms(said(text), words=True)) == [("assistant", "text", text)]
    assert list(atoms([{"role": "tool", "tool_call_id": "c", "content": text}])) == [
        ("tool", "c", "text", text)
    ]


def test_two_that_thought_otherwise_and_said_the_same_are_ambiguous() -> None:
    one, other = MessageChain(SALT, [ASK]), MessageChain(SALT, [ASK])
    assert (
        one.answered(said("<think>a</think>yes"))
        == other.answered(said("<think>b</think>yes"))
        == other.answered(said("yes"))
    )


def test_an_agent_that_drops_its_thoughts_stays_in_one_rollout() -> None:
    history: list[Any] = []
    known: dict[str, str] = {}
    for turn in range(120):
        history += says(f"question {turn}")
        conversation = MessageChain(SALT, history)
        assert (
            not turn
            or recognised([known.get(prefix) for prefix in conversation.prefixes]) == "ro_1"
        )
        chained = conversation.answered(said(f"<think>a b {turn}</think>call {turn}"))
        assert chained is not None
        known[chained] = owner_of(known.get(chained), "ro_1")
        history += said(f"call {turn}")


Pair = tuple[list[Any], list[Any]]

SAME: list[Pair] = [
    (
        [{"role": "system", "content": "It is 9:00."}, ASK],
        [{"role": "developer", "content": "It is 9:01."}, ASK],
    ),
    (
        [{"role": "user", "content": None}],
        [{"role": "user", "content": [{"type": "text", "text": " "}]}],
    ),
    ([RESULT], [RESULT | {"content": [{"type": "text", "text": "11"}], "name": "calc"}]),
    (
        [RESULT],
        [
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "call_1",
                        "content": "11",
                        "is_error": None,
                    }
                ],
            }
        ],
    ),
    (
        [RESULT],
        [
            {
                "type": "function_call_output",
                "call_id": "call_1",
                "output": "11",
                "id": "fco_1",
                "status": "completed",
            }
        ],
    ),
    (
        [{"role": "function", "name": "f", "content": "1"}],
        [{"role": "tool", "tool_call_id": "f", "content": " 1"}],
    ),
    (
        [ANSWER],
        [
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {
                "type": "message",
                "role": "assistant",
                "id": "msg_1",
                "content": [{"type": "output_text", "text": "Let me see."}],
            },
            {
                "type": "function_call",
                "id": "fc_1",
                "call_id": "call_1",
                "name": "calc",
                "arguments": ARGUMENTS,
                "status": "completed",
            },
        ],
    ),
    (
        [{"role": "assistant", "function_call": {"name": "calc", "arguments": ""}}],
        [
            {
                "role": "assistant",
                "content": "",
                "function_call": {"name": "calc", "arguments": "{}"},
            }
        ],
    ),
    (
        [
            {
                "role": "assistant",
                "tool_calls": [
                    {"id": "c", "type": "custom", "custom": {"name": "sh", "input": "ls "}}
                ],
            }
        ],
        [{"type": "custom_tool_call", "call_id": "c", "name": "sh", "input": "ls"}],
    ),
    (
        [{"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}],
        [{"role": "assistant", "content": None, "refusal": "No."}],
    ),
    (
        [
            {
                "type": "web_search_call",
                "id": "ws_1",
                "status": "completed",
                "action": {"query": "x", "sources": None},
            }
        ],
        [{"type": "web_search_call", "action": {"query": "x"}}],
    ),
]


@pytest.mark.parametrize(("left", "right"), SAME)
def test_the_same_things_in_several_languages(left: list[Any], right: list[Any]) -> None:
    assert list(atoms(left)) == list(atoms(right))


def said(text: str | None, **fields: Any) -> list[Any]:
    return [{"role": "assistant", "content": text, **fields}]


def says(*words: str) -> list[Any]:
    return [{"role": "user", "content": word} for word in words]


def calls(arguments: str) -> list[Any]:
    return [{"role": "assistant", "tool_calls": [called(arguments=arguments)]}]


DIFFERENT: list[Pair] = [
    ([ASK, ASK], [ASK]),
    (said("Let me see."), said("Let me see!")),
    (said("Let me see."), said(None)),
    (said("Let me see."), said("Let me see.", refusal="No.")),
    (said("Let me see.", tool_calls=[CALL]), said("Let me see.")),
    (says("ab", "c"), says("a", "bc")),
    ([RESULT], [RESULT | {"tool_call_id": "call_2"}]),
    ([RESULT], [{"role": "user", "content": "11"}]),
    (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "b"}}]}],
    ),
    (
        [
            {
                "role": "user",
                "content": [{"type": "text", "text": "x"}, {"type": "input_image", "file_id": "1"}],
            }
        ],
        [
            {
                "role": "user",
                "content": [{"type": "input_image", "file_id": "1"}, {"type": "text", "text": "x"}],
            }
        ],
    ),
    (
        [{"role": "assistant", "tool_calls": [CALL, "?"]}],
        [{"role": "assistant", "tool_calls": [CALL | {"function": "?"}, "?"]}],
    ),
    (["a"], ["b"]),
    ([7], [8]),
    (
        [{"type": "computer_call_output", "output": 1}],
        [{"type": "computer_call_output", "output": 2}],
    ),
    ([{"role": "user", "content": [7]}], [{"role": "user", "content": [8]}]),
    (
        [{"role": "user", "content": [{"type": "text", "text": 7}]}],
        [{"role": "user", "content": [{"type": "text", "text": 8}]}],
    ),
    (calls("{bad"), calls("{worse")),
    (calls('{"a": 1.5}'), calls('{"a": 1}')),
]


@pytest.mark.parametrize(("left", "right"), DIFFERENT)
def test_things_that_differ(left: list[Any], right: list[Any]) -> None:
    assert chain(*left) != chain(*right)


def test_a_text_beside_tool_calls_counts_where_every_word_does() -> None:
    without = ANSWER | {"content": None}
    assert (
        MessageChain(SALT, [ASK, ANSWER], words=True).prefixes
        != MessageChain(SALT, [ASK, without], words=True).prefixes
    )
    answered = MessageChain(SALT, [ASK], words=True).answered
    assert (
        answered([ANSWER])
        == MessageChain(SALT, [ASK, ANSWER], words=True).prefixes[0]
        != answered([without])
    )


def test_a_thought_of_a_message_alone_is_an_empty_answer() -> None:
    thought = {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}]}
    assert chain(thought) == chain({"role": "assistant", "content": ""}) is not None


def test_nulls_and_forms_of_numbers_count_nowhere_in_arguments() -> None:
    assert list(atoms(calls('{"of": [{"digits": 2.0, "base": null}, [1.0]]}'))) == list(
        atoms(calls('{"of": [{"digits": 2}, [1]]}'))
    )


def test_arguments_nested_too_deeply_count_as_text() -> None:
    deep = "[" * 5000 + "]" * 5000
    assert chain({"role": "assistant", "tool_calls": [called(arguments=deep)]}) is not None


def test_salts_never_meet() -> None:
    prompt = [ASK, ANSWER, RESULT]
    assert MessageChain(b"a", prompt).prefixes != MessageChain(b"b", prompt).prefixes


def test_prefixes_end_where_the_assistant_spoke_and_the_longest_comes_first() -> None:
    assert MessageChain(SALT, [ASK]).prefixes == ()
    assert MessageChain(SALT, [ASK]).answered([]) is None
    first = MessageChain(SALT, [ASK]).answered([{"role": "assistant", "content": "11"}])
    again = [ASK, {"role": "assistant", "content": "11"}, ASK]
    assert MessageChain(SALT, again).prefixes == (first,)
    second = MessageChain(SALT, again).answered([{"role": "assistant", "content": "12"}])
    assert MessageChain(SALT, [*again, {"role": "assistant", "content": "12"}, ASK]).prefixes == (
        second,
        first,
    )
    long = MessageChain(SALT, again * LOOKED_UP * 2)
    assert len(long.prefixes) == LOOKED_UP
    assert first not in long.prefixes


def test_whose_a_chain_is() -> None:
    assert owner_of(None, "a") == owner_of("a", "a") == "a"
    assert owner_of("b", "a") == owner_of(AMBIGUOUS, "a") == AMBIGUOUS
    assert recognised([]) is recognised([None, None]) is None
    assert recognised([None, "a", "b"]) == "a"
    assert recognised([None, AMBIGUOUS, "b"]) is None


class World:
    """Agents that share a key, and what a gateway remembers of them."""

    def __init__(self) -> None:
        self.histories: dict[int, list[Any]] = defaultdict(list)
        self.known: dict[str, str] = {}
        self.rollouts = 0
        self.spoken: dict[str, set[int]] = defaultdict(set)
        """Rollout → agents whose calls it got."""
        self.chains: dict[str, set[int]] = defaultdict(set)
        """Prompt with answer → agents that had just this."""
        self.last: dict[int, tuple[str, str]] = {}
        """Agent → rollout of its last call, chain after its answer."""

    def turn(self, agent: int, says: str, answers: list[str], picked: int) -> None:
        history = self.histories[agent]
        history.append({"role": "user", "content": says})
        conversation = MessageChain(SALT, history)
        rollout = recognised([self.known.get(prefix) for prefix in conversation.prefixes])
        self._check(agent, rollout)
        if rollout is None:
            self.rollouts += 1
            rollout = f"rollout {self.rollouts}"
        self.spoken[rollout].add(agent)
        for answer in answers:
            chain = (
                conversation.answered([{"role": "assistant", "content": answer, "refusal": None}])
                or ""
            )
            self.known[chain] = owner_of(self.known.get(chain), rollout)
            self.chains[chain].add(agent)
        taken = answers[picked % len(answers)]
        history.append({"role": "assistant", "content": [{"type": "text", "text": taken}]})
        self.last[agent] = rollout, conversation.answered([history[-1]]) or ""

    def _check(self, agent: int, rollout: str | None) -> None:
        before, chain = self.last.get(agent, ("", ""))
        if self.chains[chain] == {agent}:
            assert rollout == before, "a history that nobody else has is its own rollout's"
        elif rollout is not None:
            assert rollout == before, "taken for another's"


WORD = st.sampled_from(["a", "b"])
TURN = st.tuples(st.integers(0, 3), WORD, st.lists(WORD, min_size=1, max_size=2), st.integers(0, 1))


@given(st.lists(TURN, max_size=40))
def test_interleaved_agents_with_equal_words_are_told_apart_or_opened_anew(
    turns: list[tuple[int, str, list[str], int]],
) -> None:
    world = World()
    for agent, says, answers, picked in turns:
        world.turn(agent, says, answers, picked)
    assert all(len(agents) == 1 for agents in world.spoken.values())


FIELDS = (
    *(
        "role",
        "type",
        "content",
        "tool_calls",
        "function_call",
        "function",
        "custom",
        "name",
        "arguments",
        "input",
        "output",
        "id",
    ),
    *("call_id", "tool_call_id", "tool_use_id", "text", "refusal", "status"),
)
WORDS = (
    "assistant",
    "user",
    "tool",
    "function",
    "system",
    "text",
    "tool_use",
    "tool_result",
    "function_call",
    "function_call_output",
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=3)
    | st.sampled_from(WORDS),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=3), inner, max_size=5)
    ),
    max_leaves=12,
)


@given(st.lists(JSON, max_size=4), st.lists(JSON, max_size=3), st.booleans())
def test_whatever_an_agent_sends_has_a_chain(
    items: list[Any], answer: list[Any], words: bool
) -> None:
    one, other = (
        MessageChain(SALT, items, words=words),
        MessageChain(SALT, json.loads(json.dumps(items)), words=words),
    )
    assert one.prefixes == other.prefixes
    assert one.answered(answer) == other.answered(json.loads(json.dumps(answer)))
