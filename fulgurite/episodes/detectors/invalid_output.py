"""Detects that the last answer should be JSON (`response_format`, or `text.format` of responses)
but is not, or does not match the schema.

Only these parts of a JSON schema are checked: type, enum, const, required, properties,
additionalProperties, items. Of several choices all must fail. An answer that calls a tool and a
refusal are not checked.
"""

from __future__ import annotations

from typing import Any, cast

from fulgurite.episodes.detectors.evidence import Evidence
from fulgurite.untrusted_json import Json, mapping, parsed

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}


def invalid_output(seen: Evidence) -> bool:
    """Whether the attempt ended with an answer that does not match the requested format."""
    schema = _asked(seen.body)
    return (
        schema is not None
        and bool(seen.answers)
        and all(_fails(answer, schema) for answer in seen.answers)
    )


def _asked(body: Json) -> Json | None:
    """The schema that the answer should match; None if no JSON was requested."""
    form = mapping(mapping(body.get("text")).get("format")) or mapping(body.get("response_format"))
    if form.get("type") == "json_schema":
        # Chat completions nest the schema under `json_schema`, responses do not.
        return mapping((mapping(form.get("json_schema")) or form).get("schema"))
    return {"type": "object"} if form.get("type") == "json_object" else None


def _fails(answer: Json, schema: Json) -> bool:
    text = answer.get("content")
    if answer.get("tool_calls") or not isinstance(text, str):
        return False
    try:
        return not _fits(parsed(text), schema)
    except ValueError:
        return True


def _fits(value: Any, schema: Json) -> bool:
    if not _has_type(value, schema.get("type")):
        return False
    if ("const" in schema and value != schema["const"]) or (
        "enum" in schema and value not in _list(schema["enum"])
    ):
        return False
    if isinstance(value, list):
        return all(_fits(item, mapping(schema.get("items"))) for item in _list(cast(Any, value)))
    return not isinstance(value, dict) or _fields_fit(cast(Json, value), schema)


def _fields_fit(value: Json, schema: Json) -> bool:
    known = mapping(schema.get("properties"))
    if not {str(name) for name in _list(schema.get("required"))} <= value.keys():
        return False
    if schema.get("additionalProperties") is False and not value.keys() <= known.keys():
        return False
    return all(_fits(item, mapping(known.get(name))) for name, item in value.items())


def _has_type(value: Any, named: Any) -> bool:
    names = _list(named) or [named]
    # An unknown type allows everything. In Python, but not in JSON, True and False are integers.
    kinds = [_TYPES.get(str(name), (object,)) for name in names]
    return any(
        isinstance(value, kind) and (not isinstance(value, bool) or bool in kind or object in kind)
        for kind in kinds
    )


def _list(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []
