"""Keeps the settings of learners, from their claims in `policy.updates`. No I/O."""

from __future__ import annotations

import msgspec

from fulgurite.enums import UpdateKind
from fulgurite.events import PolicyUpdate
from fulgurite.learning.relabel import learns_elsewhere


class LearnerConfig(msgspec.Struct, frozen=True):
    """The keys of the learner's run that a runner needs; None where its claim has none."""

    groups: int | None = None
    """None if a batch is whole by its tokens."""
    max_row_tokens: int | None = None
    max_wait_s: float | None = None
    wait: str | None = None


class _Claim(msgspec.Struct, frozen=True):
    """What a claim tells of a run; earlier releases wrote settings by other names."""

    batch: LearnerConfig = LearnerConfig()
    groups_per_step: int | None = None
    max_row_tokens: int | None = None
    max_wait_s: float | None = None


class Learners:
    """The learners that have claimed a policy."""

    def __init__(self) -> None:
        self._configs: dict[str, LearnerConfig] = {}

    def on_update(self, update: PolicyUpdate) -> None:
        """Apply an event of `policy.updates`. Replays and offline training do not count."""
        is_live = update.offline_method is None and not learns_elsewhere(update)
        if update.kind is UpdateKind.claim and is_live:
            self._configs[update.policy] = _config(update.config)

    def train(self, policy: str) -> bool:
        """Whether a learner has ever claimed this policy."""
        return policy in self._configs

    def config(self, policy: str) -> LearnerConfig:
        """Return the settings of the last learner of a policy."""
        return self._configs.get(policy, LearnerConfig())


def _config(text: str | None) -> LearnerConfig:
    try:
        claim = msgspec.json.decode(text or "{}", type=_Claim)
    except (msgspec.DecodeError, UnicodeError):
        return LearnerConfig()
    if claim.batch.wait == "tokens":
        return msgspec.structs.replace(claim.batch, groups=None)
    if claim.batch != LearnerConfig():
        return claim.batch
    return LearnerConfig(claim.groups_per_step, claim.max_row_tokens, claim.max_wait_s)
