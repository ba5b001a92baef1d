"""What the live rewarder was told about closing groups: its own settings, `FULGURITE_REWARDER_*`, as far as a replay depends on them."""

from __future__ import annotations

from pydantic_settings import BaseSettings, SettingsConfigDict

from fulgurite.failure_rules import FailureRules
from fulgurite.failures import FailureKind, FailurePolicy


class ClosingSettings(BaseSettings):
    """Read from the environment; the defaults are the rewarder's (a test compares them)."""

    model_config = SettingsConfigDict(env_prefix="FULGURITE_REWARDER_", extra="ignore")

    grace_s: float = 30.0
    episode_grace_s: float = 600.0
    live_wait_s: float = 300.0
    failure_policies: dict[FailureKind, FailurePolicy] = {}
    penalty: float = 0.0

    def rules(self) -> FailureRules:
        """The failure rules. Raises ValueError for a kind that may not be dropped or retried."""
        return FailureRules(policies=self.failure_policies, penalty=self.penalty)
