"""Built-in rewards: a registry; a reward is a small file with a function `reward(episode, ...)`, and a line here.

`builtin:NAME(parameter=value)` names one wherever a function of yours would be: `--reward 'builtin:f1(reference=answer)'`. What is
compared is the text of the last answer, or what follows the last `after` in it. What it should have been is a field of the task,
`reference` unless told otherwise: `fulgurite run` declares that field and shows it to no agent. An answer that is merely wrong is worth 0;
a task that lacks the field, a reference that cannot be read or a database that is not there is a failure, and trains nothing.
"""

from __future__ import annotations

from pathlib import Path

from fulgurite.parameters import Choice, Chosen, Number, Parameter, Text, choose

PREFIX = "builtin:"

_REFERENCE = {"reference": Text("reference"), "after": Text("")}

BUILTINS: dict[str, dict[str, Parameter]] = {
    "exact_match": {**_REFERENCE, "normalise": Choice(("squad", "none"))},
    "f1": dict(_REFERENCE),
    "math": dict(_REFERENCE),
    "sql": {**_REFERENCE, "database": Text("database"), "timeout_s": Number(5.0), "max_rows": Number(10_000.0)},
    "json_schema": {"schema": Text("schema"), "after": Text("")},
}


def builtin(text: str) -> tuple[Chosen, Path]:
    """The reward that is named, and the file that it is in. Raises UnknownRule."""
    chosen = choose("built-in reward", text, BUILTINS)
    return chosen, Path(__file__).parent / f"{chosen.name}.py"
