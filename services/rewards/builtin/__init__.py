"""Built-in rewards: a registry; a reward is a small file with a function `reward(episode, ...)`,
and a line here.

`builtin:NAME(parameter=value)` names one wherever a function of yours would be: `--reward
'builtin:f1(reference=answer)'`. What is compared is the text of the last answer, or what follows
the last `after` in it. What it should have been is a field of the task, `reference` unless told
otherwise: `fulgurite run` declares that field and shows it to no agent. An answer that is merely
wrong is worth 0; a task that lacks the field, a reference that cannot be read or a database that is
not there is a failure, and trains nothing.
"""

from __future__ import annotations

import ast
from pathlib import Path

from fulgurite.parameters import Choice, Chosen, Number, Parameter, Text, choose

PREFIX = "builtin:"

_REFERENCE = {"reference": Text("reference"), "after": Text("")}

BUILTINS: dict[str, dict[str, Parameter]] = {
    "exact_match": {**_REFERENCE, "normalise": Choice(("squad", "none"))},
    "f1": dict(_REFERENCE),
    "math": {**_REFERENCE, "timeout_s": Number(5.0)},
    "sql": {
        **_REFERENCE,
        "database": Text("database"),
        "timeout_s": Number(5.0),
        "max_rows": Number(10_000.0),
    },
    "json_schema": {"schema": Text("schema"), "after": Text(""), "timeout_s": Number(5.0)},
}


_FOLDER = Path(__file__).parent


def builtin(text: str) -> Chosen:
    """The reward that is named. Raises UnknownRule."""
    return choose("built-in reward", text, BUILTINS)


def code_of(name: str, folder: Path = _FOLDER) -> bytes:
    """What decides a reward's value: its file, and after it those of this folder that it imports,
    at whatever remove.
    """
    found = [name]
    for one in found:
        found += sorted(_siblings((folder / f"{one}.py").read_text("utf-8")) - set(found))
    return b"".join((folder / f"{one}.py").read_bytes() for one in found)


def _siblings(code: str) -> set[str]:
    modules = (
        node.module or "" for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)
    )
    return {
        module.removeprefix(f"{__name__}.")
        for module in modules
        if module.startswith(f"{__name__}.")
    }
