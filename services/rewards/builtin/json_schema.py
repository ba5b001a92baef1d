"""1 if the answer is JSON that fits the task's schema, else 0.

The task's field `schema` holds the JSON Schema; a fenced block is taken out of the answer. For
`{"type": "object", "required": ["n"]}`: '{"n": 3}' → 1, '{"m": 3}' → 0, 'n is 3' → 0. Nothing is
fetched: a schema that refers to another one must hold it (`$defs`). What takes longer than
`timeout_s` is worth 0: the schema's patterns may take for ever on texts made for it.
"""

from __future__ import annotations

import json
from typing import Any, cast

from jsonschema import SchemaError
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

from fulgurite.episodes.view import EpisodeView
from services.rewards.builtin.answers import answer_of, code_of, field_of
from services.rewards.builtin.bounded import within
from services.rewards.errors import RewardFailed


def reward(episode: EpisodeView, schema: str, after: str, timeout_s: float) -> float:
    """In {0, 1}. Raises RewardFailed for a task without the field `schema`, or with what is no
    schema.
    """
    validator = _validator(field_of(episode, schema), schema)
    answer = answer_of(episode, after)
    return within(timeout_s, lambda: _worth(validator, answer, schema))


def _worth(validator: Any, answer: str, schema: str) -> float:
    try:
        value = json.loads(code_of(answer))
    except ValueError:
        return 0.0
    try:
        return float(validator.is_valid(value))
    except Unresolvable as error:
        raise RewardFailed(
            f"the task's {schema!r} refers to what it does not hold: {error}"
        ) from error


def _validator(schema: Any, name: str) -> Any:
    if not isinstance(schema, dict):
        raise RewardFailed(f"the task's {name!r} is {str(schema)[:80]!r}: expected a JSON Schema")
    schema = cast("dict[str, Any]", schema)
    kind = validator_for(schema)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise RewardFailed(f"the task's {name!r} is no JSON Schema: {error.message}") from error
    return kind(schema, registry=Registry())
