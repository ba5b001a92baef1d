"""Bodies of the REST routes. Unknown fields are refused, so that a misspelt one is not silently lost; numbers are finite."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field

from fulgurite.credit import credit_rule
from fulgurite.errors import UnknownRule
from fulgurite.failures import FailureKind
from fulgurite.kinds import Mode

Name = Annotated[str, Field(min_length=1, max_length=128)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


def _credit_rule(text: str) -> str:
    """The rule's name with all its parameters: the log says what they were."""
    try:
        return credit_rule(text).name
    except UnknownRule as error:
        raise ValueError(str(error)) from error


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class DeclareIn(_Body):
    """A group of rollouts of one task sample."""

    n: int = Field(1, ge=1, le=1024)
    task: Any = None
    """Any JSON; reward functions see it."""
    mode: Mode = Mode.train
    alias: Name = Field("policy", validation_alias=AliasChoices("alias", "model"))
    """Model name that the agents will ask for."""
    deadline_s: float = Field(600.0, gt=0, le=30 * 24 * 3600, allow_inf_nan=False)
    expected_rewards: list[Name] = []
    reward_weights: dict[str, Finite] = {}
    credit_rule: Annotated[Name, AfterValidator(_credit_rule)] = "identical"
    """As in docs/credit.md: `step`, `discounted(gamma=0.9)`."""
    run_id: str | None = Field(None, max_length=256)
    max_attempts: int = Field(1, ge=1, le=100)
    agent: str = Field("", max_length=256)
    """Role that the keys carry."""


class AttemptIn(_Body):
    """The next attempt; `mode` and `deadline` only if the gateway has forgotten the group."""

    attempt: int | None = Field(None, ge=0, le=9999)
    mode: Mode | None = None
    deadline: int | None = Field(None, gt=0, lt=1 << 53)
    agent: str | None = Field(None, max_length=256)


class StatusIn(_Body):
    """What the agent or its runner says."""

    kind: Literal["started", "heartbeat", "finished", "failed"]
    failure: FailureKind | None = None
    message: str | None = Field(None, max_length=65_536)
    exit_code: int | None = Field(None, ge=-(1 << 31), lt=1 << 31)
    will_retry: bool = False
    attempt: int | None = Field(None, ge=0, le=9999)
    """For the admin key; an agent's key names its attempt itself."""
    mode: Mode | None = None


class RewardIn(_Body):
    """A reward of a rollout, or of one choice of one completion."""

    rollout_id: str | None = None
    completion_id: str | None = None
    choice: int | None = Field(None, ge=0, le=4096)
    name: Name
    value: float = Field(allow_inf_nan=False)
    final: bool = True
    metadata: dict[str, Any] | None = None
    attempt: int | None = Field(None, ge=0, le=9999)
    """For the admin key; null pays the final attempt."""
