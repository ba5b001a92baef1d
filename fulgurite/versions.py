"""Parses and writes versions of a policy, `policy@epoch.step`, and of a prompt, `prompt@N`.

`policy@0.0` is the base model. Prompt versions are counted per alias, from 1.
"""

from __future__ import annotations

import re

import msgspec

_PATTERN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)@([0-9]{1,18})\.([0-9]{1,18})")
PROMPT_PREFIX = "prompt@"
_PROMPT = re.compile(rf"{PROMPT_PREFIX}([1-9][0-9]{{0,17}})")


class MalformedVersion(ValueError):
    """A string is not a version."""


class Version(msgspec.Struct, frozen=True, order=True):
    """A version of a policy. Versions of one policy are ordered by epoch, then step."""

    policy: str
    epoch: int
    step: int

    def __str__(self) -> str:
        return f"{self.policy}@{self.epoch}.{self.step}"


def base_version(policy: str) -> Version:
    """The base model of a policy."""
    return Version(policy, 0, 0)


def parse_version(text: str) -> Version:
    """Parse a version. Raises MalformedVersion."""
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise MalformedVersion(f"{text!r} is not a version (policy@epoch.step)")
    return Version(match[1], int(match[2]), int(match[3]))


def prompt_version(number: int) -> str:
    """Write a version of a prompt."""
    return f"{PROMPT_PREFIX}{number}"


def parse_prompt_version(text: str) -> int:
    """Parse a version of a prompt: its number. Raises MalformedVersion."""
    match = _PROMPT.fullmatch(text)
    if match is None:
        raise MalformedVersion(f"{text!r} is not a version of a prompt (prompt@N, N from 1)")
    return int(match[1])
