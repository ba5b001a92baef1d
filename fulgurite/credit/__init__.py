"""Credit rules: how the rewards of an episode are spread over its actions. A registry; a rule is a small file and a line here.

A rule sees one path of actions (see `fulgurite.trajectories.paths`) and gives one credit each; an action on several paths gets the
mean. Credit is a return, before any baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fulgurite.credit.identical import identical
from fulgurite.credit.step import step
from fulgurite.errors import UnknownRule


class CreditRule(Protocol):
    """outcome: paid once for the episode; rewards: paid at each action of the path; episode_reward: outcome and all of the episode's."""

    def __call__(self, outcome: float, rewards: Sequence[float], episode_reward: float) -> list[float]:
        """One credit per action of the path."""
        ...


RULES: dict[str, CreditRule] = {"identical": identical, "step": step}


def credit_rule(name: str) -> CreditRule:
    """The rule of that name. Raises UnknownRule."""
    if name not in RULES:
        raise UnknownRule(f"no credit rule {name!r}; there are {', '.join(sorted(RULES))}")
    return RULES[name]
