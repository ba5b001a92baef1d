"""Parses a name with parameters, such as `discounted(gamma=0.9)`.

Credit rules and built-in rewards are named like this. Parameters that are not given have their
defaults. Errors say what is expected.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from fulgurite.errors import UnknownRule
from fulgurite.events import EventStruct

_NAME = re.compile(r"\s*([a-z_0-9]+)\s*(?:\((.*)\))?\s*", re.DOTALL)

Value = float | str


class Number(EventStruct, frozen=True):
    """A parameter that is a number."""

    default: float
    low: float = 0.0
    high: float = math.inf

    def parse(self, text: str) -> float:
        """Parse a number. Raises ValueError, whose text says what is expected."""
        expected = (
            f"a number of at least {self.low:g}"
            if math.isinf(self.high)
            else f"a number from {self.low:g} to {self.high:g}"
        )
        try:
            value = float(text)
        except ValueError:
            raise ValueError(expected) from None
        if not (self.low <= value <= self.high and math.isfinite(value)):
            raise ValueError(expected)
        return value


class Choice(EventStruct, frozen=True):
    """A parameter that is one of some words; the first is the default."""

    words: tuple[str, ...]

    @property
    def default(self) -> str:
        """The first word."""
        return self.words[0]

    def parse(self, text: str) -> str:
        """Check that the text is one of the words. Raises ValueError with what is expected."""
        if text not in self.words:
            raise ValueError(" or ".join(self.words))
        return text


class Text(EventStruct, frozen=True):
    """A parameter that is any text without a comma."""

    default: str

    def parse(self, text: str) -> str:
        """The text."""
        return text


Parameter = Number | Choice | Text


class Chosen(EventStruct, frozen=True):
    """A name and all its parameters."""

    name: str
    parameters: Mapping[str, Value]

    def __str__(self) -> str:
        """The name with all parameters, so that later defaults do not change its meaning."""
        spelled = ", ".join(f"{name}={value}" for name, value in self.parameters.items())
        return f"{self.name}({spelled})" if spelled else self.name


def choose(kind: str, text: str, known: Mapping[str, Mapping[str, Parameter]]) -> Chosen:
    """Parse a name with parameters. Raises UnknownRule.

    `kind`: what is named, for error texts. `known`: the parameters of each name.
    """
    match = _NAME.fullmatch(text)
    if match is None or match[1] not in known:
        raise UnknownRule(f"no {kind} {text!r}; there are {', '.join(sorted(known))}")
    has = known[match[1]]
    values: dict[str, Value] = {name: parameter.default for name, parameter in has.items()}
    for name, value in _given(kind, text, match[2] or "").items():
        if name not in has:
            there_are = f"has {', '.join(has)}" if has else "has no parameters"
            raise UnknownRule(f"{kind} {text!r}: no parameter {name!r}; {match[1]} {there_are}")
        try:
            values[name] = has[name].parse(value)
        except ValueError as error:
            raise UnknownRule(f"{kind} {text!r}: {name} must be {error}, not {value!r}") from error
    return Chosen(match[1], values)


def _given(kind: str, text: str, inside: str) -> dict[str, str]:
    given: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in inside.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name in given:
            raise UnknownRule(
                f"{kind} {text!r}: expected parameters as in name(parameter=value), each once, "
                f"not {part!r}"
            )
        given[name] = value
    return given
