"""`discounted(gamma=0.95)`: an action gets what was paid at it, and what came after it the less the
later it came.

Source: Sutton and Barto, Reinforcement Learning (2018), equation 3.8: G(t) = r(t) + γ r(t+1) + γ²
r(t+2) + ... The outcome is paid at the path's last action. Turns are counted, not tokens. With
gamma=1 it is `step`, with gamma=0 an action gets only what was paid at it. Early actions of long
episodes get less than the group's mean reward, which the baseline then takes off: the rule prefers
short episodes.

Worked example: three actions, 0.5 paid at the first, outcome 1, γ = 0.5.

>>> from fulgurite.groups.credit.types import Path, Step
>>> steps = (Step(action="a", reward=0.5), Step(action="b"), Step(action="c"))
>>> discounted(Path(steps=steps, outcome=1.0, total=1.5), gamma=0.5)
[0.75, 0.5, 1.0]
"""

from __future__ import annotations

from fulgurite.groups.credit.types import Path


def discounted(path: Path, gamma: float = 0.95) -> list[float]:
    """Discounted return of each action of the path; `gamma` is within 0 and 1."""
    gains: list[float] = []
    ahead = path.outcome
    for place, step in enumerate(reversed(path.steps)):
        ahead = step.reward + (ahead if place == 0 else gamma * ahead)
        gains.append(ahead)
    return gains[::-1]
