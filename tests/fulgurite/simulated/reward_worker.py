"""Episodes → rewards, one for each revision, as `services/rewards/worker.py` does."""

from __future__ import annotations

from fulgurite.events import AgentReward, Episode
from fulgurite.ids import derive_id
from tests.fulgurite.simulated.world import EPISODES, REWARDS, Reader, World

NAME = "judged"


class RewardWorker:
    """Judges what expects its reward. A verdict's id derives from the revision: given twice, after
    a crash, it is the same event.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._reader = Reader(world, "reward-worker", (EPISODES,))
        self._settled: set[str] = set()
        self._at_hand: list[Episode] = []

    def step(self, choice: int) -> bool:
        """See Processor."""
        works = (
            self._pay,
            lambda: self._reader.commit(frozenset(self._settled)),
            lambda: self._read(choice),
        )
        first = choice % 3
        return any(work() for work in (*works[first:], *works[:first]))

    def _read(self, choice: int) -> bool:
        event = self._reader.next(choice)
        if event is None:
            return False
        assert isinstance(event, Episode)
        if (
            event.will_retry
            or event.declaration is None
            or NAME not in event.declaration.expected_rewards
        ):
            self._settled.add(event.event_id)
        else:
            self._at_hand.append(event)
        return True

    def _pay(self) -> bool:
        if not self._at_hand:
            return False
        # Several are judged at once: the first to be done need not be the first that came.
        episode = self._at_hand.pop()
        self._world.append(REWARDS, verdict(episode))
        self._settled.add(episode.event_id)
        return True


def verdict(episode: Episode) -> AgentReward:
    """What the function gives a revision: each has another value."""
    return AgentReward(
        event_id=derive_id("reward", NAME, episode.event_id),
        event_time=episode.event_time + len(episode.inputs),
        group_id=episode.group_id,
        rollout_id=episode.rollout_id,
        attempt=episode.attempt,
        name=NAME,
        value=len(episode.inputs) / 4,
        final=True,
        source="function",
    )
