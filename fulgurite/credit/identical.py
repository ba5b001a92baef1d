"""`identical`: every action gets the whole reward of its episode.

Source: DeepSeekMath (Shao et al. 2024), section 4.1.2, outcome supervision: one reward for all tokens of an output.

Worked example: three actions, 0.25 paid at the second, outcome 1 → credits 1.25, 1.25, 1.25.
"""

from __future__ import annotations

from collections.abc import Sequence


def identical(outcome: float, rewards: Sequence[float], episode_reward: float) -> list[float]:
    """`episode_reward` for every action of the path."""
    return [episode_reward] * len(rewards)
