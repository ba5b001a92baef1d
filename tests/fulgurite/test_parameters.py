"""Names with parameters: what was chosen is spelled out, what is none is said clearly."""

from __future__ import annotations

import pytest

from fulgurite.errors import UnknownRule
from fulgurite.parameters import Choice, Number, Text, choose

KNOWN = {
    "plain": {},
    "rich2": {"size": Number(2.0, 1.0), "colour": Choice(("red", "blue")), "text": Text("")},
}


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("plain", "plain"),
        (" plain( ) ", "plain"),
        ("rich2", "rich2(size=2.0, colour=red, text=)"),
        ("rich2(text=a = b(c), colour=blue)", "rich2(size=2.0, colour=blue, text=a = b(c))"),
    ],
)
def test_what_was_chosen_is_spelled_out_and_chosen_again_by_that(text: str, spelled: str) -> None:
    chosen = choose("thing", text, KNOWN)
    assert str(chosen) == spelled
    assert choose("thing", spelled, KNOWN) == chosen


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("other", "no thing 'other'; there are plain, rich2"),
        ("plain(size=1)", "thing 'plain.size=1.': no parameter 'size'; plain has no parameters"),
        ("rich2(width=1)", "no parameter 'width'; rich2 has size, colour, text"),
        ("rich2(size=0)", "size must be a number of at least 1, not '0'"),
        ("rich2(size=nan)", "size must be a number of at least 1, not 'nan'"),
        ("rich2(size=big)", "size must be a number of at least 1, not 'big'"),
        ("rich2(colour=green)", "colour must be red or blue, not 'green'"),
        ("rich2(red)", "expected parameters as in name.parameter=value., each once, not 'red'"),
        ("rich2(text=a, text=b)", "each once, not 'text=b'"),
    ],
)
def test_what_is_none_is_said_clearly(text: str, told: str) -> None:
    with pytest.raises(UnknownRule, match=told):
        choose("thing", text, KNOWN)
