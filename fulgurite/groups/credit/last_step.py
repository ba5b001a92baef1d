"""`last_step`: the last action of a path gets the whole reward of its episode; what came before is
neither praised nor blamed.

Source: outcome reward at the terminal step alone (Sutton and Barto 2018, section 3.2: a reward
signal that is zero until the end), for agents whose last call is the answer and whose earlier calls
another rule or policy answers for. An earlier action gets the mean reward of the group, which is
the baseline itself: its advantage is 0. Nothing at all would be an advantage below 0 for every
action but the last.

Worked example: rewards 1 and 0, two actions and one.

>>> from fulgurite.groups.credit.types import Path, Scored, Step
>>> first = Path(steps=(Step(action="a"), Step(action="b")), outcome=1.0, total=1.0)
>>> other = Path(steps=(Step(action="c"),), outcome=0.0, total=0.0)
>>> last_step([Scored(total=1.0, paths=(first,)), Scored(total=0.0, paths=(other,))])
[{'a': 0.5, 'b': 1.0}, {'c': 0.0}]
"""

from __future__ import annotations

from collections.abc import Sequence

from fulgurite.groups.credit.types import Credits, Scored, mean_and_scale, mean_over_paths


def last_step(group: Sequence[Scored]) -> list[Credits]:
    """Give each path's last action the episode's reward, the others the group's mean."""
    mean, _ = mean_and_scale([episode.total for episode in group])
    return [
        mean_over_paths(episode, lambda path: [mean] * (len(path.steps) - 1) + [path.total])
        for episode in group
    ]
