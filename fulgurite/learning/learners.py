"""Keeps the settings of learners, from their claims in `policy.updates`."""

from __future__ import annotations

import msgspec

from fulgurite.enums import UpdateKind
from fulgurite.events import PolicyUpdate
from fulgurite.learning.relabel import learns_elsewhere


class DriftBounds(msgspec.Struct, frozen=True):
    """The bounds beyond which a learner warns; None where its claim has none."""

    k3: float | None = None
    ess: float | None = None


class LearnerConfig(msgspec.Struct, frozen=True):
    """Keys of a learner's run that others need; None where its claim has none."""

    groups: int | None = None
    """None if a batch is whole by its tokens."""
    max_row_tokens: int | None = None
    max_wait_s: float | None = None
    wait: str | None = None
    max_staleness: int | None = None
    baseline: str | None = None

    @property
    def trains_groups_of_one(self) -> bool:
        """Whether a reward is compared with those of other groups where its own has no other."""
        return self.baseline not in (None, "group")


class _Drift(msgspec.Struct, frozen=True):
    alarm: DriftBounds = DriftBounds()


class _Claim(msgspec.Struct, frozen=True):
    """What a claim tells of a run; earlier releases wrote settings by other names."""

    batch: LearnerConfig = LearnerConfig()
    drift: _Drift = _Drift()
    groups_per_step: int | None = None
    max_row_tokens: int | None = None
    max_wait_s: float | None = None


class Learners:
    """The learners that have claimed a policy."""

    def __init__(self) -> None:
        self._claims: dict[str, _Claim] = {}

    def on_update(self, update: PolicyUpdate) -> None:
        """Apply an event of `policy.updates`. Replays and offline training do not count."""
        is_live = update.offline_method is None and not learns_elsewhere(update)
        if update.kind is UpdateKind.claim and is_live:
            self._claims[update.policy] = _parse(update.config)

    def train(self, policy: str) -> bool:
        """Whether a learner has ever claimed this policy."""
        return policy in self._claims

    def config(self, policy: str) -> LearnerConfig:
        """Return the settings of the last learner of a policy."""
        claim = self._claims.get(policy, _Claim())
        if claim.batch.wait == "tokens":
            return msgspec.structs.replace(claim.batch, groups=None)
        if claim.batch != LearnerConfig():
            return claim.batch
        return LearnerConfig(claim.groups_per_step, claim.max_row_tokens, claim.max_wait_s)

    def alarm(self, policy: str) -> DriftBounds:
        """Return the bounds of drift at which the last learner of a policy warns."""
        return self._claims.get(policy, _Claim()).drift.alarm


def _parse(text: str | None) -> _Claim:
    try:
        return msgspec.json.decode(text or "{}", type=_Claim)
    except (msgspec.DecodeError, UnicodeError):
        return _Claim()
