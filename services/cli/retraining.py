"""Plans to train a policy again without some people: from the last version that knows nothing of
them, on what came after it.

The plan follows from the log and from whom it is for, and so do the names of its topic and policy.
So a second run goes on where the first one ended. The claim of a policy that was trained again says
from which version, and without whom: its versions know what that version knows.
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
from fulgurite.topics import GROUP_PARTITIONS, LLM_CALLS, TRAJECTORIES
from fulgurite.versions import Version, base_version, parse_version
from services.common.policies.route_targets import Published, weights_path
from services.replay.errors import BadArgument
from services.replay.records import Source
from services.replay.tenants import Tenants

WITHOUT = "trajectories.without-"
"""How the names of topics begin that leave people out."""
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
    rows_of: str
    """The policy that generated what it is trained on."""
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
        return f"{WITHOUT}{self.suffix}"

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
    places = {version: place for place, version in enumerate(chain)}
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
    first = min(theirs, key=lambda version: places[version])
    parent, weights = _parent(first, chain, published)
    after = chain[places.get(parent, -1) + 1 :]
    later = set(map(str, after))
    return Retraining(
        policy=policy,
        newest=chain[-1],
        first=first,
        parent=parent,
        weights=weights,
        rows_of=_rows_of(after, published),
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


def left_out_before(policy: str, published: Published) -> tuple[str, ...]:
    """Whom a policy, and those that it was trained again from, are trained without."""
    found: list[str] = []
    policies: list[str] = []
    while policy not in policies:
        policies.append(policy)
        origin = _origin(policy, published)
        found += origin.without
        policy = parse_version(origin.parent).policy if origin.parent is not None else policy
    return tuple(dict.fromkeys(found))


class _Origin(msgspec.Struct, frozen=True):
    """What a claim says of where its policy comes from."""

    topic: str = TRAJECTORIES.name
    rows_of: str | None = None
    parent: str | None = None
    without: tuple[str, ...] = ()


class _Claim(msgspec.Struct, frozen=True):
    policy: _Origin = _Origin()


def _origin(policy: str, published: Published) -> _Origin:
    """From its first claim: a later learner may train it on live traffic. Raises BadArgument."""
    epochs = [epoch for claimed, epoch in published.claims if claimed == policy]
    found = _claimed(policy, min(epochs), published) if epochs else _Origin()
    if found.parent is None and found.topic.startswith(WITHOUT):
        raise BadArgument(
            f"{policy} was trained again without people by an earlier release, and its claim in "
            "policy.updates does not say from which version: train the policy that it replaced "
            "again instead, and name everybody who is to be left out"
        )
    return found


def _claimed(policy: str, epoch: int, published: Published) -> _Origin:
    claim = published.claims.get((policy, epoch))
    try:
        return msgspec.json.decode((claim and claim.config) or "{}", type=_Claim).policy
    except msgspec.DecodeError:
        return _Origin()


def _chain(policy: str, published: Published) -> list[Version]:
    """The newest version with those that it was trained from, the oldest first. Before a policy's
    own come those of the policy that it was trained again from.
    """
    fold = published.folds.get(policy)
    if fold is None or not fold.updates:
        raise BadArgument(
            f"there is no version of {policy!r} in policy.updates, so nothing is to be trained "
            f"again; it has versions of {', '.join(sorted(published.folds)) or 'no policy'}"
        )
    chain: list[Version] = []
    version: Version | None = fold.version()
    while version is not None and version not in chain:
        update = _update(version, published)
        if update is not None:
            chain.append(version)
        version = _trained_from(version, update, published)
    return chain[::-1]


def _trained_from(
    version: Version, update: PolicyUpdate | None, published: Published
) -> Version | None:
    name = update.parent_version if update is not None else None
    parent = None if name is None else parse_version(name)
    if parent is not None and _update(parent, published) is not None:
        return parent
    # The policy's own versions end here.
    origin = _origin(version.policy, published).parent
    return None if origin is None else parse_version(origin)


def _update(version: Version, published: Published) -> PolicyUpdate | None:
    fold = published.folds.get(version.policy)
    return None if fold is None else fold.updates.get(version)


def _rows_of(versions: Sequence[Version], published: Published) -> str:
    """The policy that generated what these versions were trained on. Raises BadArgument."""
    found: dict[str, Version] = {}
    for version in versions:
        update = _update(version, published)
        is_live = update is None or update.topic in (None, TRAJECTORIES.name)
        claimed = _claimed(version.policy, version.epoch, published).rows_of
        found[version.policy if is_live else claimed or version.policy] = version
    if len(found) > 1:
        named = " and ".join(f"{version} on calls of {name}" for name, version in found.items())
        raise BadArgument(
            f"{named} were trained, and a policy cannot be trained again on the calls of two at a "
            "time: train the one that began again, without all of these people, and go on from it"
        )
    (name,) = found
    return name


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
    for version in reversed(chain[: chain.index(first)]):
        weights = _full_weights(_update(version, published))
        if weights is not None:
            return version, weights
    return base_version(chain[0].policy), None


def _full_weights(update: PolicyUpdate | None) -> Path | None:
    """Where the weights are; None for an adapter, which is no model to start from."""
    if (
        update is None
        or update.artifact is None
        or update.artifact.format is not ArtifactFormat.full
    ):
        return None
    path = weights_path(update)
    return path if path is not None and path.is_file() else None


def _call_of(action: str) -> str:
    return action.partition("#")[0]
