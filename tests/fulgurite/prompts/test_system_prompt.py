"""A system prompt is replaced, filled and prefixed, whatever form its content has."""

from __future__ import annotations

from typing import Any

import pytest

from fulgurite.prompts.system_prompt import edit_system
from tests.fulgurite.prompts.prompt_updates import version

SENT: dict[str, Any] = {"role": "system", "content": "Be kind. <rules>old</rules> End."}
PARTS: dict[str, Any] = {
    "role": "developer",
    "content": [
        {"type": "image"},
        {"type": "text", "text": "Be kind."},
        {"type": "text", "text": "<rules>old</rules>", "cache_control": {"type": "ephemeral"}},
    ],
}


def test_it_is_replaced_as_a_whole() -> None:
    assert edit_system([SENT, PARTS], version(1, system="New.")) == [
        {"role": "system", "content": "New."}
    ]
    assert edit_system([{**PARTS, "name": "n"}], version(1, system="New.")) == [
        {"role": "developer", "name": "n", "content": "New."}
    ]
    assert edit_system([], version(1, system="New.")) == [{"role": "system", "content": "New."}]


def test_a_text_is_put_before_it() -> None:
    prompt = version(1, prefix="First.")
    assert edit_system([SENT, PARTS], prompt) == [
        {**SENT, "content": f"First.\n\n{SENT['content']}"},
        PARTS,
    ]
    assert edit_system([PARTS], prompt, "input_text") == [
        {**PARTS, "content": [{"type": "input_text", "text": "First.\n\n"}, *PARTS["content"]]}
    ]
    for empty in ([], [{"role": "system", "content": None}]):
        assert edit_system(empty, prompt) == [{"role": "system", "content": "First."}]


def test_the_first_section_of_a_name_is_filled() -> None:
    prompt = version(1, sections={"rules": "new"})
    twice = {"role": "system", "content": "<rules>a</rules><rules>b</rules>"}
    assert edit_system([SENT, twice], prompt) == [
        {**SENT, "content": "Be kind. <rules>\nnew\n</rules> End."},
        twice,
    ]
    assert edit_system([{"role": "system", "content": "Hi"}, PARTS], prompt) == [
        {"role": "system", "content": "Hi"},
        {
            **PARTS,
            "content": [
                *PARTS["content"][:2],
                {**PARTS["content"][2], "text": "<rules>\nnew\n</rules>"},
            ],
        },
    ]


def test_edits_come_together() -> None:
    prompt = version(1, sections={"b": "2", "a": "1"}, prefix="P")
    sent = [{"role": "system", "content": "<a></a><b></b>"}]
    assert edit_system(sent, prompt) == [
        {"role": "system", "content": "P\n\n<a>\n1\n</a><b>\n2\n</b>"}
    ]


@pytest.mark.parametrize(
    "sent",
    [
        [],
        [{"role": "system", "content": None}],
        [{"role": "system", "content": "no section"}],
        [{"role": "system", "content": "<rules> without an end"}],
        [{"role": "system", "content": "an end </rules> alone"}],
        [{"role": "system", "content": [3, {"type": "image"}, {"text": 4}]}],
        [{"role": "system", "content": {"text": "<rules></rules>"}}],
    ],
)
def test_a_section_that_is_not_there_does_not_fit(sent: list[Any]) -> None:
    assert edit_system(sent, version(1, sections={"rules": "new"})) is None


def test_without_an_edit_the_same_list_is_returned() -> None:
    odd = [{"role": "system", "content": 3}]
    assert edit_system(odd, version(1, tools={"t": "d"})) is odd
    assert edit_system(odd, version(1, system="New.")) is None
