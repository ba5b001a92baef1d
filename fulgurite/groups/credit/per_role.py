"""`per_role`: the actions of a role get the rewards that are named for it; where there are none,
the reward of the episode.

A reward is named for a role if its name is the role's, or begins with it and a dot: `critic`,
`critic.recall`. Weights apply as ever. The role's reward is compared with that of the same role in
the group's other episodes, not with whole episodes: its credit is mean of R + std of R · (its
reward - mean over the group) / std over the group, R being the episodes' rewards. The learner takes
mean and std of R off again, so that the advantage is the role's own. An episode in which the role
acts without a reward, such as one that failed and is penalised, has (R - mean of R) / std of R in
its place. The role's advantages are then centred over the episodes in which it acts or is paid. A
role that nobody pays by name has credit R: the rule `identical`.

Source: Dr. MAS (Feng et al. 2026, arXiv 2602.08847): advantages are normalised by each agent's own
reward statistics; one mean and one deviation over agents with different rewards make their
gradients unstable.

Worked example: writer and critic of two episodes; the critic is paid 3 and 1 by name, the writer by
the episodes' rewards 4 and 1.

>>> from fulgurite.groups.credit.types import Path, Scored, Step
>>> def episode(name, outcome, critic):
...     writer = Step(action=f"{name}w", agent="writer")
...     total = outcome + critic
...     path = Path(
...         steps=(writer, Step(action=f"{name}c", agent="critic")), outcome=total, total=total
...     )
...     return Scored(total=total, paths=(path,), by_name={"judge": outcome, "critic": critic})
>>> group = [episode("1", 1.0, 3.0), episode("2", 0.0, 1.0)]
>>> [{k: round(v, 6) for k, v in found.items()} for found in per_role(group)]
[{'1w': 4.0, '1c': 4.0}, {'2w': 1.0, '2c': 1.0}]
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from fulgurite.groups.credit.types import Credits, Scored, mean_and_scale, relative


def per_role(group: Sequence[Scored]) -> list[Credits]:
    """Each action's credit is that of its role in its episode."""
    mean, scale = mean_and_scale([episode.total for episode in group])
    acting = [_roles(episode) for episode in group]
    by_role: dict[str, dict[int, float]] = {}
    for role in set[str]().union(*acting):
        rewards = [_reward(episode, role) for episode in group]
        among = [reward for reward in rewards if reward is not None]
        if not among:
            by_role[role] = {place: episode.total for place, episode in enumerate(group)}
            continue
        compared = {
            place: (group[place].total - mean) / scale
            if reward is None
            else relative(reward, among)
            for place, reward in enumerate(rewards)
            if reward is not None or role in acting[place]
        }
        middle = fmean(compared.values())
        by_role[role] = {place: mean + scale * (one - middle) for place, one in compared.items()}
    return [
        {step.action: by_role[step.agent][place] for path in episode.paths for step in path.steps}
        for place, episode in enumerate(group)
    ]


def _roles(episode: Scored) -> set[str]:
    return {step.agent for path in episode.paths for step in path.steps}


def _reward(episode: Scored, role: str) -> float | None:
    """What the role was paid by name in the episode; None if nothing was."""
    paid = [
        value
        for name, value in episode.by_name.items()
        if role and (name == role or name.startswith(f"{role}."))
    ]
    return sum(paid) if paid else None
