"""From rewards that are accepted to what a trainer gets: finite in float32, under every credit
rule, for groups of any shape.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fulgurite.enums import LedgerTerm
from fulgurite.episodes.stitching import stitch
from fulgurite.events import AgentReward, Episode, LedgerEntry, LlmCall
from fulgurite.groups.closing import close_group
from fulgurite.groups.credit import RULES
from fulgurite.groups.rewards import LARGEST_REWARD, LARGEST_WEIGHT
from fulgurite.learning.batching import BatchRules, RowBatcher
from fulgurite.versions import Version
from tests.services.learner.batches import train_rows
from tests.synthetic import make_call, make_declared, make_reward, make_status

NAMES = ("reward", "critic", "critic.recall")
SPELLED = (
    "discounted(gamma=1)",
    "gigpo(omega=1000, norm=none)",
    "gigpo(gamma=1, omega=1000, state=prompt)",
)
VALUES = st.sampled_from([0.0, 1e-9, 2e-6, 1.0, LARGEST_REWARD, -LARGEST_REWARD]) | st.floats(
    -LARGEST_REWARD, LARGEST_REWARD
)
WEIGHTS = st.sampled_from([0.0, 1.0, LARGEST_WEIGHT, -LARGEST_WEIGHT]) | st.floats(
    -LARGEST_WEIGHT, LARGEST_WEIGHT
)


def calls_of(index: int, turns: int, branched: bool) -> Sequence[LlmCall]:
    """A conversation, whose last turn has two answers if it is branched."""
    prompts = [
        (1, 2, 3, *(number for turn in range(before) for number in (7, 9, 4 + turn)))
        for before in range(turns)
    ]
    return [
        make_call(
            0,
            index,
            turn,
            prompt=prompt,
            answers=((7, 9), (8, 9)) if branched and turn == turns - 1 else ((7, 9),),
            agent="critic",
        )
        for turn, prompt in enumerate(prompts)
    ]


@settings(max_examples=60, deadline=None)
@given(
    st.data(),
    st.sampled_from([*sorted(RULES), *SPELLED]),
    st.dictionaries(st.sampled_from(NAMES), WEIGHTS),
    st.integers(2, 4),
)
def test_accepted_rewards_make_finite_rows(
    data: st.DataObject, rule: str, weights: dict[str, float], size: int
) -> None:
    declared = make_declared(0, size, weights=weights, credit=rule)
    episodes: list[Episode] = []
    rewards: list[AgentReward] = []
    for index in range(size):
        calls = calls_of(index, data.draw(st.integers(1, 3)), data.draw(st.booleans()))
        episode = stitch([declared, *calls, make_status(0, index)])
        assert episode is not None
        episodes.append(episode)
        rewards.append(make_reward(0, index, data.draw(VALUES)))
        rewards += [
            make_reward(
                0,
                index,
                data.draw(VALUES),
                name=data.draw(st.sampled_from(NAMES)),
                call_id=call.call_id,
                choice=choice.index,
            )
            for call in calls
            for choice in call.choices
        ]
    batcher = RowBatcher("policy", BatchRules(groups_per_step=1))
    outputs = [
        one
        for one in close_group(declared.group_id, declared.declaration, episodes, rewards)
        if not isinstance(one, LedgerEntry)
    ]
    for offset, output in enumerate(outputs):
        batcher.add(0, offset, output)
    groups = batcher.next_batch(Version("policy", 0, 0))
    trained = train_rows(groups)
    assert bool(trained) == any(
        outcome[0] is LedgerTerm.trained for group in groups for outcome in group.outcomes.values()
    )
    for row in trained:
        assert row.advantages.dtype == np.float32
        assert np.isfinite(row.advantages).all()
