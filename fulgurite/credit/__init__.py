"""Credit rules: how the rewards of an episode are spread over its actions. A registry; a rule is a small file and a line here.

Credit is a return, before any baseline: the learner takes the group's mean reward off and divides by its standard deviation. Rules that
have a baseline of their own (`gigpo`, `per_role`, `last_step`) give the credit that leads to their advantage that way.

A declaration names a rule by `name` or with parameters, `discounted(gamma=0.9)`; those not given have their defaults. `credit_rule`
says what is wrong with a name that is none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from fulgurite.credit.discounted import discounted
from fulgurite.credit.gigpo import gigpo
from fulgurite.credit.identical import identical
from fulgurite.credit.last_step import last_step
from fulgurite.credit.per_role import per_role
from fulgurite.credit.scene import Credits, GroupRule, Scored, on_paths
from fulgurite.credit.step import step
from fulgurite.errors import UnknownRule
from fulgurite.events import Record

_NAME = re.compile(r"\s*([a-z_]+)\s*(?:\((.*)\))?\s*", re.DOTALL)


class Number(Record, frozen=True):
    """A parameter that is a number."""

    default: float
    low: float = 0.0
    high: float = math.inf

    def parse(self, text: str) -> float:
        """Raises ValueError, saying what is expected."""
        expected = f"a number of at least {self.low:g}" if math.isinf(self.high) else f"a number from {self.low:g} to {self.high:g}"
        try:
            value = float(text)
        except ValueError:
            raise ValueError(expected) from None
        if not (self.low <= value <= self.high and math.isfinite(value)):
            raise ValueError(expected)
        return value


class Choice(Record, frozen=True):
    """A parameter that is one of a few words, the first by default."""

    words: tuple[str, ...]

    @property
    def default(self) -> str:
        """The first word."""
        return self.words[0]

    def parse(self, text: str) -> str:
        """Raises ValueError, saying what is expected."""
        if text not in self.words:
            raise ValueError(" or ".join(self.words))
        return text


class Rule(Record, frozen=True):
    """A rule and its parameters."""

    credit: GroupRule
    parameters: Mapping[str, Number | Choice] = {}
    anchored: bool = False
    """Whether it asks what an action saw (`Step.state`, `Step.observation`)."""


RULES: dict[str, Rule] = {
    "identical": Rule(on_paths(identical)),
    "step": Rule(on_paths(step)),
    "discounted": Rule(on_paths(discounted), {"gamma": Number(0.95, 0.0, 1.0)}),
    "last_step": Rule(last_step),
    "gigpo": Rule(
        gigpo,
        {
            "gamma": Number(0.95, 0.0, 1.0),
            "omega": Number(1.0),
            "norm": Choice(("std", "none")),
            "state": Choice(("observation", "prompt")),
        },
        anchored=True,
    ),
    "per_role": Rule(per_role),
}


class CreditRule(Record, frozen=True):
    """A rule with its parameters filled in."""

    name: str
    """All parameters spelled out, so that it means the same whatever the defaults become."""
    rule: Rule
    parameters: Mapping[str, float | str]

    def __call__(self, group: Sequence[Scored]) -> list[Credits]:
        """Credit by action for each episode of a group. Neither the order of episodes nor that of paths matters."""
        return self.rule.credit(group, **self.parameters) if group else []


def credit_rule(text: str) -> CreditRule:
    """The rule that is named, as in a declaration. Raises UnknownRule."""
    match = _NAME.fullmatch(text)
    if match is None or match[1] not in RULES:
        raise UnknownRule(f"no credit rule {text!r}; there are {', '.join(sorted(RULES))}")
    rule = RULES[match[1]]
    values: dict[str, float | str] = {name: parameter.default for name, parameter in rule.parameters.items()}
    given = _given(text, match[2] or "")
    for name, value in given.items():
        if name not in rule.parameters:
            has = f"has {', '.join(rule.parameters)}" if rule.parameters else "has no parameters"
            raise UnknownRule(f"credit rule {text!r}: no parameter {name!r}; {match[1]} {has}")
        try:
            values[name] = rule.parameters[name].parse(value)
        except ValueError as error:
            raise UnknownRule(f"credit rule {text!r}: {name} must be {error}, not {value!r}") from error
    spelled = ", ".join(f"{name}={value}" for name, value in values.items())
    return CreditRule(f"{match[1]}({spelled})" if spelled else match[1], rule, values)


def _given(text: str, inside: str) -> dict[str, str]:
    given: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in inside.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name in given:
            raise UnknownRule(f"credit rule {text!r}: expected parameters as in discounted(gamma=0.95), each once, not {part!r}")
        given[name] = value
    return given
