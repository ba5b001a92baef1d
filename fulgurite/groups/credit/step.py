"""`step`: an action gets what was paid at it and after it, and the outcome (undiscounted
reward-to-go).

Source: Sutton and Barto, Reinforcement Learning (2018), equation 13.8 with γ = 1: what was paid
before an action cannot be its merit.

Worked example: three actions, 0.5 paid at the first and 0.25 at the second, outcome 1.

>>> from fulgurite.groups.credit.types import Path, Step
>>> steps = (Step(action="a", reward=0.5), Step(action="b", reward=0.25), Step(action="c"))
>>> step(Path(steps=steps, outcome=1.0, total=1.75))
[1.75, 1.25, 1.0]
"""

from __future__ import annotations

from fulgurite.groups.credit.discounted import discounted
from fulgurite.groups.credit.types import Path


def step(path: Path) -> list[float]:
    """Sum of the rewards from each action on, and the outcome."""
    return discounted(path, gamma=1.0)
