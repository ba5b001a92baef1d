"""Makes steps of a built episode's actions, for credit rules to compare."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from fulgurite.groups.credit.types import Step
from fulgurite.ids import action_id
from fulgurite.trajectories.building import Row


def steps_of(rows: Sequence[Row], *, anchored: bool = True) -> dict[str, Step]:
    """Make the steps of a built episode, without their rewards.

    `anchored`: also hash the tokens before each action, which takes longer than everything else.
    """
    steps: dict[str, Step] = {}
    for row in rows:
        if not anchored:
            names = {
                action_id(action.call_id, action.choice): action
                for action in row.actions
                if action.loss
            }
            steps.update(
                {name: Step(action=name, agent=action.agent) for name, action in names.items()}
            )
            continue
        read, before, state = 0, 0, hashlib.sha256()
        for action in row.actions:
            # A copy of the hash so far: a long row is read once, not once for each action.
            state.update(row.token_ids[read * 4 : action.start * 4])
            if action.loss:
                name = action_id(action.call_id, action.choice)
                observation = hashlib.sha256(row.token_ids[before * 4 : action.start * 4]).digest()
                steps[name] = Step(
                    action=name,
                    agent=action.agent,
                    state=state.copy().digest(),
                    observation=observation,
                )
            read, before = action.start, action.end
    return steps
