"""What two runs of the same traffic must have in common, and what each must be in itself.
Differences are told by group.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from msgspec.structs import replace

from fulgurite.episodes.stitching import Input, stitch
from fulgurite.events import (
    AgentReward,
    AgentStatus,
    Episode,
    Event,
    GroupClosed,
    LedgerEntry,
    LlmCall,
    Tombstone,
    Trajectory,
)
from fulgurite.groups.closing import close_group
from fulgurite.groups.group_revisions import Output, RevisionLog
from fulgurite.topics import (
    AGENT_REWARDS,
    AGENT_STATUS,
    EPISODES,
    LLM_CALLS,
    TRAINING_LEDGER,
    TRAJECTORIES,
)
from tests.integration.test_processors import Deployment

Contents = dict[str, Event]
"""By id."""


class Books:
    """One run's topics, by group, each event once."""

    def __init__(self, deployment: Deployment) -> None:
        self.repeated = 0
        self.episodes = self._groups(
            replace(e, supersedes=None) for e in deployment.read(EPISODES) if isinstance(e, Episode)
        )
        outputs = [*deployment.read(TRAJECTORIES), *deployment.read(TRAINING_LEDGER)]
        self.outputs = self._groups(
            output for output in outputs if not isinstance(output, GroupClosed)
        )
        self.closings = {
            output.group_id: output for output in outputs if isinstance(output, GroupClosed)
        }
        """The last of each group."""
        self.inputs = self._groups(
            [
                *deployment.read(LLM_CALLS),
                *deployment.read(AGENT_STATUS),
                *deployment.read(AGENT_REWARDS),
            ]
        )
        written: defaultdict[str, RevisionLog] = defaultdict(RevisionLog)
        for output in outputs:
            if isinstance(output, Trajectory | Tombstone | GroupClosed | LedgerEntry):
                written[output.group_id].add(output)
        self.newest = {group: one.newest for group, one in written.items()}

    def last_episodes(self, group: str) -> Contents:
        """Of each attempt the revision with the most inputs."""
        last: dict[str, Episode] = {}
        for episode in self.episodes.get(group, {}).values():
            assert isinstance(episode, Episode)
            held = last.get(episode.episode_id)
            if held is None or len(held.inputs) < len(episode.inputs):
                last[episode.episode_id] = episode
        return {episode.event_id: episode for episode in last.values()}

    def last_outputs(self, group: str) -> Contents:
        """The newest whole revision: rows, tombstones and ledger entries."""
        newest = self.newest.get(group)
        return {
            name: output
            for name, output in self.outputs.get(group, {}).items()
            if newest and _revision(output) == newest
        }

    def is_named(self, group: str) -> bool:
        """Whether the group's last `GroupClosed` is of its newest revision, and names all of it."""
        newest, closed = self.newest.get(group), self.closings.get(group)
        if newest is None or closed is None:
            return newest is closed
        return (
            closed.group_revision == newest
            and {*closed.row_ids, *closed.entry_ids} == self.last_outputs(group).keys()
        )

    def should_be(self, group: str) -> tuple[Contents, Contents]:
        """Last episodes and outputs, as the pure core makes them of the inputs that the log holds."""
        events = self.inputs.get(group, {}).values()
        declared = [
            event for event in events if isinstance(event, AgentStatus) and event.rollout_id is None
        ]
        attempts: defaultdict[tuple[str, int], list[Input]] = defaultdict(list)
        for event in events:
            if isinstance(event, LlmCall | AgentStatus) and event.rollout_id is not None:
                attempts[event.rollout_id, event.attempt].append(event)
        episodes = [episode for own in attempts.values() if (episode := stitch([*own, *declared]))]
        rewards = [event for event in events if isinstance(event, AgentReward)]
        declaration = declared[0].declaration if declared else None
        outputs: tuple[Output, ...] = close_group(group, declaration, episodes, rewards)
        return {e.event_id: e for e in episodes}, {o.event_id: o for o in outputs}

    def _groups(self, events: Iterable[Event]) -> dict[str, Contents]:
        found: defaultdict[str, Contents] = defaultdict(dict)
        for event in events:
            group = found[getattr(event, "group_id", None) or ""]
            self.repeated += event.event_id in group
            # Two events with one id and different contents: whichever came first, the other is
            # wrong.
            assert group.setdefault(event.event_id, event) == event, (
                f"{event.event_id} was written twice, differently"
            )
        return dict(found)


def differences(calm: Books, harmed: Books, punctual: set[str]) -> list[str]:
    """In words, the smallest group first; none if both runs are what they should be."""
    told: list[tuple[int, str]] = []
    for group in sorted(calm.inputs.keys() | harmed.inputs.keys()):
        problems: list[str] = []
        for name, books in (("undisturbed", calm), ("disturbed", harmed)):
            episodes, outputs = books.should_be(group)
            problems += _unlike(
                f"episodes of the {name} run, and the core's", books.last_episodes(group), episodes
            )
            problems += _unlike(
                f"rows and entries of the {name} run, and the core's",
                books.last_outputs(group),
                outputs,
            )
            problems += (
                []
                if books.is_named(group)
                else [f"the last record of the {name} run is {books.closings.get(group)}"]
            )
        both = (calm.inputs.get(group, {}), harmed.inputs.get(group, {}))
        if group not in punctual:
            # A revision on the way that only one run wrote is judged there only.
            both = tuple(
                {name: event for name, event in one.items() if not isinstance(event, AgentReward)}
                for one in both
            )
        problems += _unlike("inputs, undisturbed and disturbed", *both)
        problems += _unlike(
            "last rows and entries, undisturbed and disturbed",
            calm.last_outputs(group),
            harmed.last_outputs(group),
        )
        if group in punctual:
            problems += _unlike(
                "all episodes, undisturbed and disturbed",
                calm.episodes.get(group, {}),
                harmed.episodes.get(group, {}),
            )
            problems += _unlike(
                "all rows and entries, undisturbed and disturbed",
                calm.outputs.get(group, {}),
                harmed.outputs.get(group, {}),
            )
        if problems:
            told.append((len(calm.inputs.get(group, {})), f"{group}: " + "; ".join(problems)))
    return [words for _, words in sorted(told)]


def _unlike(what: str, one: Contents, other: Contents) -> list[str]:
    if one == other:
        return []
    alone = [_brief(one[name]) for name in sorted(one.keys() - other.keys())]
    others = [_brief(other[name]) for name in sorted(other.keys() - one.keys())]
    changed = [
        _brief(one[name]) for name in sorted(one.keys() & other.keys()) if one[name] != other[name]
    ]
    return [
        f"{what}: only the one has {alone}, only the other has {others}, and they differ in "
        f"{changed}"
    ]


def _brief(event: Event) -> str:
    rollout = getattr(event, "rollout_id", None)
    attempt = getattr(event, "attempt", None)
    return f"{type(event).__name__} {event.event_id[:8]} of {rollout}/{attempt}"


def _revision(output: Event) -> str | None:
    return (
        output.group_revision if isinstance(output, Trajectory | Tombstone | LedgerEntry) else None
    )
