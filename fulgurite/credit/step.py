"""`step`: an action gets what was paid at it and after it, and the outcome (undiscounted reward-to-go).

Source: Sutton and Barto, Reinforcement Learning (2018), equation 13.8 with γ = 1: what was paid before an action cannot be its merit.

Worked example: three actions, 0.5 paid at the first and 0.25 at the second, outcome 1 → credits 1.75, 1.25, 1.
"""

from __future__ import annotations

from collections.abc import Sequence


def step(outcome: float, rewards: Sequence[float], episode_reward: float) -> list[float]:
    """Sum of `rewards[i:]` and the outcome."""
    gains: list[float] = []
    ahead = outcome
    for reward in reversed(rewards):
        ahead += reward
        gains.append(ahead)
    return gains[::-1]
