"""`identical`: every action gets the whole reward of its episode.

Source: DeepSeekMath (Shao et al. 2024), section 4.1.2, outcome supervision: one reward for all
tokens of an output.

Worked example: three actions, 0.25 paid at the second, outcome 1.

>>> from fulgurite.groups.credit.types import Path, Step
>>> steps = (Step(action="a"), Step(action="b", reward=0.25), Step(action="c"))
>>> identical(Path(steps=steps, outcome=1.0, total=1.25))
[1.25, 1.25, 1.25]
"""

from __future__ import annotations

from fulgurite.groups.credit.types import Path


def identical(path: Path) -> list[float]:
    """The episode's reward for every action of the path."""
    return [path.total] * len(path.steps)
