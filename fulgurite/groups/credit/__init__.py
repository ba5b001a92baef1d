"""Spreads the rewards of an episode over its actions, by a named credit rule.

This is the registry; a new rule is one small file and one line here.

Credit is a return, before any baseline. The learner compares it with others of its kind: what is
still to come at a turn (`step`, `discounted`) with the credits of the group's other episodes at
that turn, everything else with the rewards of whole episodes. It takes their mean off and divides
by their standard deviation. Rules that have a baseline of their own (`gigpo`, `per_role`,
`last_step`) give the credit that leads to their advantage that way; compared with a batch or a
moving average, it does not.

A declaration names a rule by `name`, or with parameters, `discounted(gamma=0.9)`; others have their
defaults. Parameters are bounded, so that rewards within `fulgurite.groups.rewards.LARGEST_TOTAL`
give credits within `LARGEST_CREDIT` under every rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fulgurite.events import EventStruct
from fulgurite.groups.credit.discounted import discounted
from fulgurite.groups.credit.gigpo import gigpo
from fulgurite.groups.credit.identical import identical
from fulgurite.groups.credit.last_step import last_step
from fulgurite.groups.credit.per_role import per_role
from fulgurite.groups.credit.step import step
from fulgurite.groups.credit.types import Credits, GroupRule, Scored, on_paths
from fulgurite.parameters import Choice, Number, Parameter, Value, choose


class Rule(EventStruct, frozen=True):
    """A rule and its parameters."""

    credit: GroupRule
    parameters: Mapping[str, Parameter] = {}
    anchored: bool = False
    """Whether it asks what an action saw (`Step.state`, `Step.observation`)."""
    by_turn: bool = False
    """Whether a credit is to be compared with those of the same turn, rather than with the rewards
    of whole episodes: of a return, what was paid before is no part.
    """
    has_baseline: bool = False
    """Whether it compares episodes itself, and its credits lead to its advantages only where the
    learner compares within the group.
    """


RULES: dict[str, Rule] = {
    "identical": Rule(on_paths(identical)),
    "step": Rule(on_paths(step), by_turn=True),
    "discounted": Rule(on_paths(discounted), {"gamma": Number(0.95, 0.0, 1.0)}, by_turn=True),
    "last_step": Rule(last_step, has_baseline=True),
    "gigpo": Rule(
        gigpo,
        {
            "gamma": Number(0.95, 0.0, 1.0),
            "omega": Number(1.0, 0.0, 1000.0),
            "norm": Choice(("std", "none")),
            "state": Choice(("observation", "prompt")),
        },
        anchored=True,
        has_baseline=True,
    ),
    "per_role": Rule(per_role, has_baseline=True),
}


class CreditRule(EventStruct, frozen=True):
    """A rule with its parameters filled in."""

    name: str
    """The name with all parameters, so that later defaults do not change its meaning."""
    rule: Rule
    parameters: Mapping[str, Value]

    def __call__(self, group: Sequence[Scored]) -> list[Credits]:
        """Compute credit by action for each episode of a group, whatever their order."""
        return self.rule.credit(group, **self.parameters) if group else []


def credit_rule(text: str) -> CreditRule:
    """Parse a rule as declarations name it. Raises UnknownRule."""
    chosen = choose("credit rule", text, {name: rule.parameters for name, rule in RULES.items()})
    return CreditRule(str(chosen), RULES[chosen.name], chosen.parameters)


def compares_turns(name: str) -> bool:
    """Whether credits under the rule, named as in a trajectory, are compared turn by turn. A rule
    that is not known here compares whole episodes.
    """
    rule = _rule_of(name)
    return rule is not None and rule.by_turn


def has_baseline(name: str) -> bool:
    """Whether the rule, named as in a trajectory, has a baseline of its own, so that its credits
    need a comparison within the group. A rule that is not known here has none.
    """
    rule = _rule_of(name)
    return rule is not None and rule.has_baseline


def _rule_of(name: str) -> Rule | None:
    return RULES.get(name.partition("(")[0])
