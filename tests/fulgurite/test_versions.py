"""`policy@epoch.step`, ordered by epoch, then step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.versions import (
    MalformedVersion,
    Version,
    base_version,
    parse_prompt_version,
    parse_version,
    prompt_version,
)

numbers = st.integers(0, 10**9)
policies = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)


@given(policies, numbers, numbers)
def test_text_and_back(policy: str, epoch: int, step: int) -> None:
    version = Version(policy, epoch, step)
    assert parse_version(str(version)) == version


@given(numbers, numbers, numbers, numbers)
def test_a_later_epoch_is_newer_whatever_its_step(
    epoch: int, step: int, other_epoch: int, other_step: int
) -> None:
    newer = Version("p", epoch, step) > Version("p", other_epoch, other_step)
    assert newer == ((epoch, step) > (other_epoch, other_step))


def test_the_base_model() -> None:
    assert str(base_version("sql")) == "sql@0.0"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "policy",
        "policy@1",
        "@1.2",
        "policy@1.2.3",
        "policy@-1.2",
        "policy@1.x",
        "pol icy@1.2",
        "policy@1.2\n",
        "policy@1.\u0662",
    ],
)
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(MalformedVersion, match="is not a version"):
        parse_version(text)


@given(st.integers(1, 10**9))
def test_a_prompts_version_is_a_number(number: int) -> None:
    assert parse_prompt_version(prompt_version(number)) == number


@pytest.mark.parametrize("text", ["", "prompt@0", "prompt@01", "prompt@1.2", "other@1", "prompt@"])
def test_what_is_no_version_of_a_prompt(text: str) -> None:
    with pytest.raises(MalformedVersion, match="prompt@N"):
        parse_prompt_version(text)
