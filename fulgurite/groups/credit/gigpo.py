"""`gigpo(gamma=0.95, omega=1, norm=std, state=observation)`: actions are compared with others that
were taken in the same state.

Source: Group-in-Group Policy Optimization (Feng et al. 2025, arXiv 2505.10978). Of episode i with
reward R(i), and of its action at step t with the discounted return G(i,t) = r(i,t) + γ r(i,t+1) +
...:

    A_E(i)   = (R(i) - mean of R over the group) / std of R over the group
    A_S(i,t) = (G(i,t) - mean of G over all actions of the group in the same anchor state) / F
    A(i,t)   = A_E(i) + ω A_S(i,t)

F is the standard deviation there (`norm=std`) or 1 (`norm=none`); an action whose state nobody else
was in has A_S = 0. Since the learner computes (credit - mean of R) / std of R, the credit is R(i) +
ω · std of R · A_S(i,t), and the advantage is the paper's A(i,t). Without any spread of R the
learner divides by 1, and so does the credit; but a group of equal rewards is not trained at all
(`no_signal`).

The paper's state is what the environment shows: `state=observation` compares the tokens since the
agent's action before, and for an episode's first action all tokens. `state=prompt` compares
everything that the model saw, which is the same only where whole histories are. Actions of
different roles are never compared. An action on several branches has the mean of its returns, and
counts once.

Worked example: two episodes, rewards 1 and 0, that share their first state; γ = 0.5. Their returns
there are 0.5 and 0, so that A_S is ±0.707, as is A_E. The last action of the first episode is alone
in its state.

>>> from fulgurite.groups.credit.types import Path, Scored, Step
>>> a, c = Step(action="a", observation=b"x"), Step(action="c", observation=b"x")
>>> b = Step(action="b", observation=b"y")
>>> first = Scored(total=1.0, paths=(Path(steps=(a, b), outcome=1.0, total=1.0),))
>>> second = Scored(total=0.0, paths=(Path(steps=(c,), outcome=0.0, total=0.0),))
>>> credits = gigpo([first, second], gamma=0.5)
>>> [{k: round(v, 3) for k, v in episode.items()} for episode in credits]
[{'a': 1.5, 'b': 1.0}, {'c': -0.5}]
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from fulgurite.groups.credit.discounted import discounted
from fulgurite.groups.credit.types import (
    Credits,
    Path,
    Scored,
    mean_and_scale,
    mean_over_paths,
    relative,
)


def gigpo(
    group: Sequence[Scored],
    gamma: float = 0.95,
    omega: float = 1.0,
    norm: str = "std",
    state: str = "observation",
) -> list[Credits]:
    """The credits whose advantages are the paper's."""
    _, scale = mean_and_scale([episode.total for episode in group])
    returns = [mean_over_paths(episode, partial(discounted, gamma=gamma)) for episode in group]
    anchors = [_anchors(episode.paths, state) for episode in group]
    together: dict[tuple[str, bytes], list[float]] = {}
    for gains, places in zip(returns, anchors, strict=True):
        for action, gain in gains.items():
            together.setdefault(places[action], []).append(gain)
    return [
        {
            action: episode.total
            + omega * scale * relative(gain, together[places[action]], scaled=norm == "std")
            for action, gain in gains.items()
        }
        for episode, gains, places in zip(group, returns, anchors, strict=True)
    ]


def _anchors(paths: Sequence[Path], state: str) -> dict[str, tuple[str, bytes]]:
    """Role and state of each action."""
    return {
        step.action: (step.agent, step.observation if state == "observation" else step.state)
        for path in paths
        for step in path.steps
    }
