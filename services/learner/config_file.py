"""Reads a training run from a file and the environment: `fulgurite train run.toml`.

Of each key the first of these counts: the variable `FULGURITE__SECTION__KEY`, the file's table of
the policy, the file's shared table, its `preset`, a variable of an earlier release
(`FULGURITE_TRAINER_LR`), the default. The name of the policy and its model may also stand where the
other services look for them, in `FULGURITE_POLICY` and `FULGURITE_MODEL`.

A file may have several policies, each a table `[[policy]]` with the keys of `[policy]`, and with
sections of its own, such as `[policy.optimizer]`. A learner trains one of them.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, cast

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from services.learner.config import RunConfig
from services.learner.errors import ConfigInvalid

PREFIX = "FULGURITE__"
"""Of variables that name a key: FULGURITE__BATCH__GROUPS."""


class Former(NamedTuple):
    """The key that a variable stands for."""

    key: str
    values: Mapping[str, str] = {}
    """Values that are spelled otherwise now."""


FORMER_VARIABLES: dict[str, Former] = {
    "FULGURITE_TOPIC": Former("policy.topic"),
    "FULGURITE_ROWS_OF": Former("policy.rows_of"),
    "FULGURITE_GROUPS_PER_STEP": Former("batch.groups"),
    "FULGURITE_MAX_WAIT_S": Former("batch.max_wait_s"),
    "FULGURITE_MAX_STALENESS": Former("batch.max_staleness"),
    "FULGURITE_MAX_ROW_TOKENS": Former("batch.max_row_tokens"),
    "FULGURITE_PERMUTE_REWARDS": Former("batch.permute_rewards"),
    "FULGURITE_KEEP_VERSIONS": Former("publish.keep"),
    "FULGURITE_TRAINER_LR": Former("optimizer.lr"),
    "FULGURITE_TRAINER_WEIGHT_DECAY": Former("optimizer.weight_decay"),
    "FULGURITE_TRAINER_GRAD_CLIP": Former("optimizer.grad_clip"),
    "FULGURITE_TRAINER_DTYPE": Former("engine.dtype"),
    "FULGURITE_TRAINER_DEVICE": Former("engine.device"),
    "FULGURITE_TRAINER_SEED": Former("engine.seed"),
    "FULGURITE_TRAINER_SHARE_PREFIXES": Former(
        "engine.layout",
        {"true": "forest", "1": "forest", "on": "forest", "yes": "forest"}
        | {"false": "rows", "0": "rows", "off": "rows", "no": "rows"},
    ),
    "FULGURITE_TRAINER_MAX_FOREST_TOKENS": Former("engine.micro_batch_tokens"),
    "FULGURITE_TRAINER_POLICY_LOSS": Former("algorithm.name", {"vanilla": "grpo"}),
    "FULGURITE_TRAINER_CORRECTION": Former("algorithm.correction"),
    "FULGURITE_TRAINER_IS_CAP": Former("algorithm.weight_high"),
    "FULGURITE_TRAINER_SINGLE_ROW_EPISODES": Former("algorithm.single_row_episodes"),
    "FULGURITE_TRAINER_CLIP_LOW": Former("algorithm.clip.low"),
    "FULGURITE_TRAINER_CLIP_HIGH": Former("algorithm.clip.high"),
    "FULGURITE_TRAINER_ENTROPY_COEF": Former("algorithm.entropy_bonus"),
    "FULGURITE_TRAINER_KL_COEF": Former("algorithm.kl"),
    "FULGURITE_TRAINER_KL_ESTIMATOR": Former("algorithm.kl_estimator"),
    "FULGURITE_TRAINER_DRIFT_ALARM_K3": Former("drift.alarm.k3"),
    "FULGURITE_TRAINER_DRIFT_ALARM_ESS": Former("drift.alarm.ess"),
    "FULGURITE_TRAINER_DRIFT_STOP_K3": Former("drift.stop.k3"),
    "FULGURITE_TRAINER_DRIFT_STOP_ESS": Former("drift.stop.ess"),
}
"""Variables of earlier releases and the keys that took their place."""

_SHARED_VARIABLES = {
    "FULGURITE_POLICY": Former("policy.name"),
    "FULGURITE_MODEL": Former("policy.model"),
}
"""Variables that the deployment's other services read, too."""


_SECTIONS = frozenset(RunConfig.model_fields) - {"policy"}
"""Tables that a policy may have for itself."""


class Layer(NamedTuple):
    """Keys from one place; the later layer counts."""

    name: str
    """Of the place, for errors."""
    tables: dict[str, Any]
    variables: Mapping[str, str] = {}
    """Where the place is the environment: each key's variable with its value."""


class RunFile(NamedTuple):
    """What a file says."""

    name: str
    preset: object
    tables: dict[str, Any]
    """Shared by all policies."""
    policies: dict[str, dict[str, Any]]
    """Of a file with `[[policy]]` tables: the tables of each policy by its name. Empty for a file
    with one `[policy]`, or none."""


def load(
    file: Path | None, environment: Mapping[str, str] | None = None, policy: str | None = None
) -> RunConfig:
    """The run of one policy that a file and the environment describe.

    `policy` names it; without it, the environment does, or the file if it has one policy only.
    Raises ConfigInvalid.
    """
    environment = os.environ if environment is None else environment
    read = _read(file)
    name = policy
    if read.policies:
        name = _picked(read, name or _named_in(environment))
    if name is not None:
        environment = {**environment, variable("policy.name"): name}
    return _resolved(read, environment, name)


def load_all(
    file: Path | None, environment: Mapping[str, str] | None = None, policy: str | None = None
) -> tuple[RunConfig, ...]:
    """The runs of all policies of a file, frozen ones included, in its order.

    `policy` names the policy of a file with one. Raises ConfigInvalid.
    """
    names = _read(file).policies
    if names and policy is not None:
        raise ConfigInvalid(
            f"{policy!r} was named, but {file and file.name} has a name for each of "
            f"its policies ({', '.join(names)}): name none, and all of them are started"
        )
    found = tuple(load(file, environment, name) for name in names)
    return found or (load(file, environment, policy),)


def _named_in(environment: Mapping[str, str]) -> str | None:
    return environment.get(variable("policy.name")) or environment.get("FULGURITE_POLICY") or None


def _picked(read: RunFile, name: str | None) -> str:
    """The policy of a file that is meant. Raises ConfigInvalid."""
    known = ", ".join(read.policies)
    if name is None and len(read.policies) > 1:
        raise ConfigInvalid(
            f"{read.name} has several policies ({known}), and a learner trains one: name it with "
            "--policy or FULGURITE_POLICY"
        )
    if name is not None and name not in read.policies:
        raise ConfigInvalid(
            f"{read.name} has no policy {name!r}; it has {known}. Name one of them with --policy "
            "or FULGURITE_POLICY"
        )
    return name or next(iter(read.policies))


def _resolved(read: RunFile, environment: Mapping[str, str], policy: str | None) -> RunConfig:
    preset = read.preset
    own = read.policies.get(policy or "")
    given = [
        Layer(read.name, read.tables),
        *([] if own is None else [Layer(f"{read.name}, policy {policy}", own)]),
        _of_variables(
            environment,
            {name: Former(_key_of(name)) for name in environment if name.startswith(PREFIX)},
        ),
    ]
    layers = [
        _of_variables(environment, _SHARED_VARIABLES),
        _of_variables(environment, FORMER_VARIABLES),
        *([] if preset is None else [Layer(f"preset {preset}", _preset(preset, given))]),
        *given,
    ]
    merged: dict[str, Any] = {"policy": {}}
    for layer in layers:
        _merge(merged, layer.tables)
    try:
        return RunConfig.model_validate(merged)
    except ValidationError as error:
        raise ConfigInvalid("; ".join(_problems(error, layers))) from None


def former_in(environment: Mapping[str, str]) -> dict[str, str]:
    """The former variables that are set, and the keys that took their place."""
    return {name: former.key for name, former in FORMER_VARIABLES.items() if environment.get(name)}


def variable(key: str) -> str:
    """The variable of a key."""
    return PREFIX + key.upper().replace(".", "__")


def _read(file: Path | None) -> RunFile:
    if file is None:
        return RunFile("", None, {}, {})
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigInvalid(f"{file} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"{file} is no TOML: {error}") from error
    preset = tables.pop("preset", None)
    policies: dict[str, dict[str, Any]] = {}
    if isinstance(tables.get("policy"), list):
        policies = _policies(file.name, tables.pop("policy"))
    return RunFile(file.name, preset, tables, policies)


def _policies(file: str, written: Sequence[object]) -> dict[str, dict[str, Any]]:
    """The tables of each `[[policy]]`: its keys under `policy`, its own sections beside them."""
    policies: dict[str, dict[str, Any]] = {}
    for number, table in enumerate(written, 1):
        keys_given = cast("dict[str, Any]", table) if isinstance(table, dict) else {}
        name: object = keys_given.get("name")
        if not isinstance(name, str) or not name:
            raise ConfigInvalid(
                f"{file}: [[policy]] {number} of {len(written)} has no name; give each a name, "
                "which is what agents ask for as their model"
            )
        if name in policies:
            raise ConfigInvalid(
                f"{file}: two policies are named {name!r}; give each a name of its own"
            )
        own: dict[str, Any] = {"policy": {}}
        for key, value in keys_given.items():
            (own if key in _SECTIONS else own["policy"])[key] = value
        policies[name] = own
    if not policies:
        raise ConfigInvalid(f"{file}: policy = [] has no policy; write [[policy]] tables")
    return policies


def presets() -> dict[str, str]:
    """The presets by name, as TOML."""
    folder = resources.files("services.learner") / "presets"
    return {
        entry.name.removesuffix(".toml"): entry.read_text(encoding="utf-8")
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".toml")
    }


def _preset(name: object, later: Sequence[Layer]) -> dict[str, Any]:
    """The tables of a preset. Its number of groups is left out if later layers make batches by
    tokens, with which it would be refused.
    """
    known = presets()
    if not isinstance(name, str) or name not in known:
        raise ConfigInvalid(f"preset = {name!r} is not known; there are {', '.join(known)}")
    tables = tomllib.loads(known[name])
    for layer in later:
        batch = layer.tables.get("batch")
        if isinstance(batch, dict) and cast("dict[str, Any]", batch).get("wait") == "tokens":
            tables["batch"].pop("groups", None)
    return tables


def _of_variables(environment: Mapping[str, str], variables: Mapping[str, Former]) -> Layer:
    layer = Layer("the environment", {}, {})
    named: dict[str, str] = {}
    for name, former in variables.items():
        value = environment.get(name)
        if value:
            named[former.key] = f"{name}={value}"
            _put(
                layer.tables,
                former.key.split("."),
                _parsed(former.values.get(value.lower(), value)),
            )
    return layer._replace(variables=named)


def _key_of(name: str) -> str:
    return name.removeprefix(PREFIX).lower().replace("__", ".")


def _parsed(text: str) -> object:
    """Lists and tables as TOML has them; everything else is text, which the key's type reads."""
    if not text.lstrip().startswith(("[", "{")):
        return text
    try:
        return cast("object", tomllib.loads(f"value = {text}")["value"])
    except tomllib.TOMLDecodeError:
        return text


def _put(tables: dict[str, Any], path: list[str], value: object) -> None:
    for name in path[:-1]:
        table = tables.setdefault(name, {})
        if not isinstance(table, dict):
            raise ConfigInvalid(f"{variable('.'.join(path))}: {name} is a key, not a table")
        tables = cast("dict[str, Any]", table)
    tables[path[-1]] = value


def _merge(into: dict[str, Any], tables: Mapping[str, Any]) -> None:
    for name, value in tables.items():
        known = into.get(name)
        if isinstance(known, dict) and isinstance(value, dict):
            _merge(cast("dict[str, Any]", known), cast("dict[str, Any]", value))
        else:
            into[name] = _copy(value)


def _copy(value: Any) -> Any:
    """Tables are merged into later; a layer stays what it was, for errors to look at."""
    if isinstance(value, dict):
        return {name: _copy(one) for name, one in cast("dict[str, Any]", value).items()}
    return value


def _problems(error: ValidationError, layers: list[Layer]) -> list[str]:
    """Every problem by its key, and where the key was found."""
    problems: list[str] = []
    for one in error.errors():
        path = [str(part) for part in one["loc"]]
        if not path:
            # Keys of several tables do not go together; the text names them.
            problems.append(one["msg"].removeprefix("Value error, "))
            continue
        key = ".".join(path)
        place = next(
            (
                layer.variables.get(key, layer.name)
                for layer in reversed(layers)
                if _has(layer.tables, path)
            ),
            "",
        )
        says = f"{place}: {key}" if place else key
        if one["type"] == "extra_forbidden":
            problems.append(f"{says}: there is no such key{_suggestion(path)}")
        elif one["type"] == "missing":
            problems.append(f"{key} is missing; set it in the file or by {variable(key)}")
        else:
            problems.append(f"{says}: {one['msg'].removeprefix('Value error, ')}")
    return problems


def _has(tables: Mapping[str, Any], path: list[str]) -> bool:
    found: Any = tables
    for name in path:
        if not isinstance(found, dict) or name not in found:
            return False
        found = cast("dict[str, Any]", found)[name]
    return True


def _suggestion(path: list[str]) -> str:
    """A key that may have been meant."""
    known = keys()
    near = difflib.get_close_matches(".".join(path), known, n=1)
    elsewhere = [key for key in known if key.split(".")[-1] == path[-1]]
    meant = (elsewhere or near)[:1]
    return f"; did you mean {meant[0]}?" if meant else ""


def keys(section: type[BaseModel] = RunConfig, prefix: str = "") -> dict[str, FieldInfo]:
    """Every key of the file, with its field."""
    found: dict[str, FieldInfo] = {}
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= keys(kind, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = field
    return found
