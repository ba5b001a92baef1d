"""When a group is closed, and by which failure rules: `FULGURITE_REWARDER_*`, for the live rewarder
and for whoever closes groups again.
"""

from __future__ import annotations

from collections.abc import Collection

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from fulgurite.episodes.exclusions import parse_exclusions
from fulgurite.episodes.failure_rules import FailureRules
from fulgurite.events import Declaration, Episode
from fulgurite.failures import FailureAction, FailureKind
from fulgurite.groups.closing import awaits_episodes
from fulgurite.groups.rewards import LARGEST_REWARD


class ClosingSettings(BaseSettings):
    """Read from the environment."""

    model_config = SettingsConfigDict(
        env_prefix="FULGURITE_REWARDER_", extra="ignore", use_attribute_docstrings=True
    )

    grace_s: float = Field(default=30.0, ge=0)
    """Seconds after a group's deadline to wait for rewards of complete episodes."""
    episode_grace_s: float = Field(default=600.0, ge=0)
    """Seconds after a group's deadline to wait for episodes."""
    live_wait_s: float = Field(default=300.0, ge=0)
    """Seconds that an undeclared episode waits for its reward."""
    failure_policies: dict[FailureKind, FailureAction] = Field(default={})
    """JSON, failure kind → policy: what training makes of a failure
    (docs/reference/failures.md)."""
    penalty: float = Field(default=0.0, ge=-LARGEST_REWARD, le=LARGEST_REWARD)
    """Reward of failures whose policy is `penalise`."""
    frozen_policies: str = ""
    """Policies, comma-separated, that no learner trains: their actions are
    `filtered(frozen)`."""
    excluded_calls: str = ""
    """JSON, a list of rules: calls that are no part of the task, such as titles. Their actions are
    `filtered(excluded)` (docs/how-to/exclude-calls.md)."""

    @field_validator("excluded_calls")
    @classmethod
    def _has_rules(cls, text: str) -> str:
        parse_exclusions(text)
        return text

    def rules(self) -> FailureRules:
        """What is trained. Raises ValueError for a kind that may not be dropped or retried."""
        frozen = filter(None, (name.strip() for name in self.frozen_policies.split(",")))
        return FailureRules(
            policies=self.failure_policies,
            penalty=self.penalty,
            frozen=frozenset(frozen),
            exclusions=parse_exclusions(self.excluded_calls),
        )

    def due_at(
        self,
        declaration: Declaration | None,
        episodes: Collection[Episode],
        heard_until: int | None = None,
    ) -> int:
        """Unix milliseconds after which a group with some episodes is closed with what there is.

        `heard_until`: no episode can have ended later, whatever a clock that was wrong says.
        """
        if declaration is None:
            ended = max(episode.ended_at for episode in episodes)
            return (ended if heard_until is None else min(ended, heard_until)) + int(
                self.live_wait_s * 1000
            )
        grace = self.episode_grace_s if awaits_episodes(declaration, episodes) else self.grace_s
        return declaration.deadline + int(grace * 1000)
