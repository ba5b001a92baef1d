"""Reward functions by reference: a user's, `rewards.py:fn`, or a built-in one,
`builtin:f1(reference=answer)`.

A function gets a `fulgurite.episodes.view.EpisodeView` and returns a number, numbers by name, or
None for no reward; it may be async. Numbers are Python's, `Decimal` and `Fraction`, numpy's
scalars, and arrays and tensors without dimensions. A user's file is imported by `load` alone, in a
process of its own: what it does and needs at import is no matter of a worker's.
"""

from __future__ import annotations

import hashlib
import importlib.util
import numbers
import sys
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, cast

from fulgurite.episodes.view import EpisodeView
from fulgurite.errors import UnknownRule
from fulgurite.groups.rewards import LARGEST_REWARD, is_bounded
from fulgurite.parameters import Chosen
from services.common.runtime.error_text import clean, repr_of, text_of
from services.rewards import own_code
from services.rewards.builtin import PREFIX, builtin, code_of
from services.rewards.errors import PluginError, RewardFailed
from services.rewards.own_imports import put_first

Function = Callable[[EpisodeView], Any]

_MOST_NAMES = 100
_LONGEST_NAME = 128
"""As the gateway takes it."""


def source_of(reference: str) -> str:
    """Which code it is: its name with the hash of its content and of what it imports. Raises
    PluginError for what is not there.
    """
    if reference.startswith(PREFIX):
        chosen = _chosen(reference)
        return f"{PREFIX}{chosen}#{_digest(code_of(chosen.name))}"
    path, function = _place(reference)
    return f"{path.name}:{function}#{_digest(own_code.code_of(path))}"


def load(reference: str) -> Function:
    """Where it is a user's: changes what this process can import (`own_imports`). Raises
    PluginError.
    """
    return (
        _from_registry(reference)
        if reference.startswith(PREFIX)
        else _from_file(*_place(reference))
    )


def label_of(reference: str) -> str:
    """The function as messages name it: without its folder."""
    return reference if reference.startswith(PREFIX) else reference.rpartition("/")[2]


def named(given: object, name: str, label: str) -> dict[str, float]:
    """What the function `label` returned, as rewards by name; empty for none. Raises
    RewardFailed.
    """
    if given is None:
        return {}
    values = cast("dict[object, object]", given) if isinstance(given, dict) else {name: given}
    if len(values) > _MOST_NAMES:
        raise RewardFailed(
            f"{label} gave {len(values)} rewards: at most {_MOST_NAMES} names are taken"
        )
    return {_name(key, label): _value(value, key, label) for key, value in values.items()}


def _name(key: object, label: str) -> str:
    # A plain text whatever it is a subclass of.
    text = str.__str__(key) if isinstance(key, str) else str(key)
    if not 1 <= len(text) <= _LONGEST_NAME or clean(text) != text:
        raise RewardFailed(
            f"{label} named a reward {repr_of(text)}: a name has 1 to {_LONGEST_NAME} "
            "characters of Unicode text"
        )
    return text


def _value(given: object, key: object, label: str) -> float:
    number = _number(given)
    if number is None or not is_bounded(number, LARGEST_REWARD):
        raise RewardFailed(
            f"{label} gave {repr_of(given)} ({type(given).__name__}) for {repr_of(key)}: "
            f"expected a number from {-LARGEST_REWARD:.0f} to {LARGEST_REWARD:.0f}"
        )
    return number


def _number(given: Any) -> float | None:
    """The number that it is: Python's, numpy's, or a tensor's without dimensions. None for anything
    else.
    """
    if getattr(given, "shape", None) == () and callable(getattr(given, "item", None)):
        given = given.item()
    if not isinstance(given, numbers.Real | Decimal):
        return None
    try:
        return float(given)
    except (OverflowError, ValueError):
        # 10**400; a signalling NaN.
        return None


def _chosen(reference: str) -> Chosen:
    try:
        return builtin(reference.removeprefix(PREFIX))
    except UnknownRule as error:
        raise PluginError(str(error)) from error


def _from_registry(reference: str) -> Function:
    chosen = _chosen(reference)
    try:
        module = importlib.import_module(f"{builtin.__module__}.{chosen.name}")
    except ImportError as error:
        raise PluginError(
            f"{PREFIX}{chosen.name} needs {error.name}: pip install 'fulgurite[rewards]'"
        ) from error
    return partial(module.reward, **chosen.parameters)


def _place(reference: str) -> tuple[Path, str]:
    file, _, function = reference.rpartition(":")
    path = Path(file).resolve()
    if not file or not path.is_file():
        raise PluginError(
            f"{reference!r}: expected FILE.py:FUNCTION with an existing file, or {PREFIX}NAME"
        )
    return path, function


def _from_file(path: Path, function: str) -> Function:
    spec = importlib.util.spec_from_file_location(f"fulgurite_reward_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise PluginError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    put_first(path)
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        # SystemExit, too: a file that ends with `sys.exit(main())` is a program, and no module.
        raise PluginError(f"{path} cannot be imported: {text_of(error)}") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise PluginError(f"{path} has no function {function!r}")
    return cast(Function, found)


def _digest(code: bytes) -> str:
    return hashlib.sha256(code).hexdigest()[:12]
