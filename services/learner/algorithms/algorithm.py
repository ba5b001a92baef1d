"""What an algorithm is: a comparison of credits, a loss of verl's, and how tokens weigh in it."""

from __future__ import annotations

from typing import Literal

import msgspec

Comparison = Literal["group", "leave_one_out", "batch"]
"""What credits are compared with.

`group`: the mean of their kind in the group, an action's own credit included. `leave_one_out`: the
mean of the others. `batch`: the mean of all trained tokens of the batch, each with its action's
credit.
"""


class Algorithm(msgspec.Struct, frozen=True, kw_only=True):
    """An algorithm by name; the rest of it is settings (`services.learner.config`)."""

    name: str
    loss: str
    """Name in verl's registry of policy losses."""
    comparison: Comparison = "group"
    divides_by_spread: bool = True
    """Whether the difference to the mean is divided by the standard deviation."""
    episodes_weigh_the_same: bool = True
    """Otherwise tokens do: an episode's weight grows with its length."""
    whole_sequences: bool = False
    """Whether the loss is over whole sequences, so that an episode must be one row."""
    clip: tuple[float, float] | None = (0.2, 0.2)
    """Default bounds of the ratio below and above 1; of `dppo`, of the divergence. None: the loss
    has no such bounds.
    """
    ratio_cap: float | None = None
    """Default of the loss's cap of the ratio (verl's `clip_ratio_c`); None: it has none."""
    is_its_ratio: bool = True
    """Whether it differs from `grpo` in what it makes of the ratio to the old policy alone. Where
    the ratio is always 1 it then is `grpo` under another name.
    """
