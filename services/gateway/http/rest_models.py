"""Bodies of the REST routes. Unknown fields are refused, so that a misspelt one is not silently
lost; numbers have limits.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field

from fulgurite.enums import Mode
from fulgurite.errors import UnknownRule
from fulgurite.failures import FailureKind
from fulgurite.groups.credit import credit_rule
from fulgurite.groups.rewards import LARGEST_REWARD, LARGEST_WEIGHT

Name = Annotated[str, Field(min_length=1, max_length=128)]


def _number(value: Any) -> Any:
    """The value, if it is a JSON number. Text and booleans are not accepted as numbers."""
    if isinstance(value, str | bool):
        raise ValueError("must be a number, not text or a truth value")
    return value


def _truth(value: Any) -> Any:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


Whole = Annotated[int, BeforeValidator(_number)]
Finite = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_number)]
Amount = Annotated[
    float,
    Field(ge=-LARGEST_REWARD, le=LARGEST_REWARD, allow_inf_nan=False),
    BeforeValidator(_number),
]
Weight = Annotated[
    float,
    Field(ge=-LARGEST_WEIGHT, le=LARGEST_WEIGHT, allow_inf_nan=False),
    BeforeValidator(_number),
]
Truth = Annotated[bool, BeforeValidator(_truth)]

MOST_NAMES = 100
"""Rewards with different names that a group may be declared with."""

LONGEST_MESSAGE = 4096
"""Bytes of a status's message: enough for a traceback's end, and small enough for an aggregator to
hold many.
"""
LONGEST_METADATA = 16 * 1024
"""Bytes of a reward's metadata as JSON."""


def _cut(message: str) -> str:
    """The message, shortened to the limit: a shortened status is worth more than a refused one."""
    data = message.encode()
    if len(data) <= LONGEST_MESSAGE:
        return message
    left_out = f"… [{len(data)} bytes in all]"
    return data[: LONGEST_MESSAGE - len(left_out.encode())].decode("utf-8", "ignore") + left_out


def _small(metadata: dict[str, Any]) -> dict[str, Any]:
    size = len(msgspec.json.encode(metadata))
    if size > LONGEST_METADATA:
        raise ValueError(
            f"has {size} bytes as JSON; at most {LONGEST_METADATA} are kept with a reward"
        )
    return metadata


def _credit_rule(text: str) -> str:
    """The rule's name with all its parameters, so that the log has them."""
    try:
        return credit_rule(text).name
    except UnknownRule as error:
        raise ValueError(str(error)) from error


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class DeclareIn(_Body):
    """A group of rollouts of one task sample."""

    n: Whole = Field(1, ge=1, le=1024)
    task: Any = None
    """Any JSON; reward functions see it."""
    mode: Mode = Mode.train
    alias: Name = Field("policy", validation_alias=AliasChoices("alias", "model"))
    """Model name that the agents will ask for."""
    served_by: Name | None = None
    """Another alias, or a version such as `policy@1.3`, that answers the calls for `alias`."""
    prompt_version: Name | None = None
    """Version of the alias's prompt that its calls are served with, candidates included, or `none`
    for what the agent sends; not with `served_by`.
    """
    deadline_s: Finite = Field(600.0, gt=0, le=30 * 24 * 3600)
    expected_rewards: list[Name] = Field([], max_length=MOST_NAMES)
    reward_weights: dict[Name, Weight] = Field({}, max_length=MOST_NAMES)
    """With `expected_rewards`, the names that rewards over REST may have; neither: any name."""
    credit_rule: Annotated[Name, AfterValidator(_credit_rule)] = "identical"
    """As in docs/reference/credit.md: `step`, `discounted(gamma=0.9)`."""
    run_id: str | None = Field(None, max_length=256)
    max_attempts: Whole = Field(1, ge=1, le=100)
    agent: str = Field("", max_length=256)
    """Role that the keys carry."""


class AttemptIn(_Body):
    """The next attempt. All but `attempt` counts only if the gateway has forgotten the group, and
    is as its declaration said; `deadline` in Unix milliseconds.
    """

    attempt: Whole | None = Field(None, ge=0, le=9999)
    mode: Mode | None = None
    deadline: Whole | None = Field(None, gt=0, lt=1 << 53)
    agent: str | None = Field(None, max_length=256)
    alias: Name | None = None
    """Needed with `served_by` or `prompt_version`."""
    served_by: Name | None = None
    prompt_version: Name | None = None


class StatusIn(_Body):
    """What the agent or its runner says."""

    kind: Literal["started", "heartbeat", "finished", "failed"]
    failure: FailureKind | None = None
    message: Annotated[str, AfterValidator(_cut)] | None = None
    """Kept up to 4 KiB."""
    exit_code: Whole | None = Field(None, ge=-(1 << 31), lt=1 << 31)
    will_retry: Truth = False
    attempt: Whole | None = Field(None, ge=0, le=9999)
    """For the admin key; an agent's key names its attempt itself."""
    mode: Mode | None = None


class RewardIn(_Body):
    """A reward of a rollout, or of one choice of one completion."""

    rollout_id: str | None = None
    completion_id: str | None = None
    choice: Whole | None = Field(None, ge=0, le=4096)
    name: Name = "reward"
    value: Amount
    final: Truth = True
    metadata: Annotated[dict[str, Any], AfterValidator(_small)] | None = None
    """Any JSON object, up to 16 KiB of it."""
    attempt: Whole | None = Field(None, ge=0, le=9999)
    """For the admin key; null pays the final attempt."""
    allow_unknown: Truth = False
    """Whether the reward is accepted though its name was not declared, or what it is for is not in
    the log yet.
    """
