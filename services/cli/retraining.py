"""Plans to train a policy again without some people: from the last version that knows nothing of
them, on what came after it.

The plan follows from the log and from whom it is for, and so do the names of its topic and policy.
So a second run goes on where the first one ended.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from fulgurite.avro.codec import Codec
from fulgurite.enums import ArtifactFormat, LedgerTerm
from fulgurite.errors import CodecError
from fulgurite.events import LedgerEntry, LlmCall, PolicyUpdate
from fulgurite.ids import derive_id
from fulgurite.learning.batching import LEARNER
from fulgurite.learning.offline import OFFLINE
from fulgurite.topics import GROUP_PARTITIONS, LLM_CALLS
from fulgurite.versions import Version, base_version
from services.common.policies.route_targets import Published, weights_path
from services.replay.errors import BadArgument
from services.replay.records import Source
from services.replay.tenants import Tenants

_SHOWN = 3


class Retraining(msgspec.Struct, frozen=True, kw_only=True):
    """How a policy is trained again."""

    policy: str
    newest: Version
    """The version that is to be replaced."""
    first: Version
    """The first version that they are behind."""
    parent: Version
    """The version to train from."""
    weights: Path | None
    """Of the parent; None: those of the run's base model."""
    groups: frozenset[str]
    """Groups that were settled after the parent: what it is trained on, without them."""
    actions: int
    """Their trained actions, which are left out."""
    offline: tuple[str, ...]
    """Versions after the parent that were trained offline. That is not done again."""
    suffix: str
    """Names the topic and the policy."""

    @property
    def topic(self) -> str:
        """Topic of the trajectories without them."""
        return f"trajectories.without-{self.suffix}"

    @property
    def new_policy(self) -> str:
        """The policy that is trained."""
        return f"{self.policy}-{self.suffix}"


def plan_retraining(
    policy: str,
    published: Published,
    entries: Sequence[LedgerEntry],
    calls: Mapping[str, bool],
    people: Collection[str],
) -> Retraining | None:
    """Plan it; None if no version was trained on their calls. Raises BadArgument.

    `calls`: the calls in the log, and whether each is theirs. `people`: whom it is for.
    """
    chain = _chain(policy, published)
    trained: dict[Version, set[str]] = {}
    ours = {str(version): version for version in chain}
    for entry in entries:
        version = ours.get(entry.version or "")
        if version is not None and entry.term is LedgerTerm.trained:
            trained.setdefault(version, set()).update(entry.actions)
    _require_calls(trained, calls)
    theirs = {
        version: found
        for version, actions in trained.items()
        if (found := {action for action in actions if calls[_call_of(action)]})
    }
    if not theirs:
        return None
    first = min(theirs)
    parent, weights = _parent(first, chain, published)
    later = {str(version) for version in chain if version > parent}
    return Retraining(
        policy=policy,
        newest=chain[-1],
        first=first,
        parent=parent,
        weights=weights,
        groups=frozenset(
            entry.group_id
            for entry in entries
            if entry.source == LEARNER and entry.version in later
        ),
        actions=len(set[str]().union(*theirs.values())),
        offline=tuple(
            dict.fromkeys(
                entry.version or ""
                for entry in entries
                if entry.source == OFFLINE and entry.version in later
            )
        ),
        suffix=derive_id("retraining", str(chain[-1]), *sorted(people))[:8],
    )


def find_calls(
    source: Source, codec: Codec, subjects: Collection[str], tenants: Tenants
) -> dict[str, bool]:
    """All calls of the source by id, and whether each is of an episode of these people.

    Records that cannot be read are left out. Raises LogUnavailable, BadArchive.
    """
    found: dict[str, bool] = {}
    for partition in range(GROUP_PARTITIONS):
        episodes: dict[tuple[str, int], list[str]] = {}
        theirs: set[tuple[str, int]] = set()
        for call in _calls_in(source, codec, partition):
            key = call.rollout_id, call.attempt
            episodes.setdefault(key, []).append(call.call_id)
            if call.subject in subjects or tenants.own(call.group_id):
                theirs.add(key)
        for key, ids in episodes.items():
            found |= dict.fromkeys(ids, key in theirs)
    return found


def _calls_in(source: Source, codec: Codec, partition: int) -> Iterator[LlmCall]:
    for raw in source.read((LLM_CALLS,), partition):
        try:
            event = codec.decode(raw.value)
        except CodecError:
            continue
        if isinstance(event, LlmCall):
            yield event


def _chain(policy: str, published: Published) -> list[Version]:
    """The newest version with those that it was trained from, the oldest first."""
    fold = published.folds.get(policy)
    if fold is None or not fold.updates:
        raise BadArgument(
            f"there is no version of {policy!r} in policy.updates, so nothing is to be trained "
            f"again; it has versions of {', '.join(sorted(published.folds)) or 'no policy'}"
        )
    by_name = {str(version): version for version in fold.updates}
    chain: list[Version] = []
    version: Version | None = fold.version()
    while version is not None and version not in chain:
        chain.append(version)
        version = by_name.get(fold.updates[version].parent_version or "")
    return chain[::-1]


def _require_calls(trained: Mapping[Version, set[str]], calls: Collection[str]) -> None:
    """Check that the log says whose all trained calls are. Raises BadArgument."""
    gone = {
        version: missing
        for version, actions in trained.items()
        if (missing := [action for action in actions if _call_of(action) not in calls])
    }
    if gone:
        versions = ", ".join(map(str, sorted(gone)[:_SHOWN])) + (
            " ..." if len(gone) > _SHOWN else ""
        )
        raise BadArgument(
            f"{sum(map(len, gone.values()))} calls that {versions} were trained on are no longer "
            "in llm.calls, so nobody can say whose they are, and they cannot be trained again. "
            "Give the archive that has them with --archive DIR"
        )


def _parent(
    first: Version, chain: Sequence[Version], published: Published
) -> tuple[Version, Path | None]:
    """The last version before `first` with full weights that are here; else the base model."""
    updates = published.folds[first.policy].updates
    for version in reversed([version for version in chain if version < first]):
        weights = _full_weights(updates[version])
        if weights is not None:
            return version, weights
    return base_version(first.policy), None


def _full_weights(update: PolicyUpdate) -> Path | None:
    """Where the weights are; None for an adapter, which is no model to start from."""
    if update.artifact is None or update.artifact.format is not ArtifactFormat.full:
        return None
    path = weights_path(update)
    return path if path is not None and path.is_file() else None


def _call_of(action: str) -> str:
    return action.partition("#")[0]
