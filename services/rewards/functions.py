"""Loads reward functions: a user's, `rewards.py:fn`, or a built-in, `builtin:f1(reference=answer)`.

A function gets a `fulgurite.episodes.view.EpisodeView` and returns a number, numbers by name, or
None for no reward; it may be async. In the place of a number may stand numbers by call id, each for
what the model did in that call. Numbers are Python's, `Decimal` and `Fraction`, numpy's
scalars, and arrays and tensors without dimensions. Only `load` imports a user's file, in a process
of its own, so that the import cannot affect a worker.
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
from services.common.runtime.extras import how_to_install
from services.rewards import own_code
from services.rewards.builtin import PREFIX, builtin, code_of
from services.rewards.errors import PluginError, RewardFailed
from services.rewards.own_imports import put_first

Function = Callable[[EpisodeView], Any]

Value = float | dict[str, float]
"""A reward of the whole episode, or rewards of its actions by call id or action id."""

_MOST_NAMES = 100
_LONGEST_NAME = 128
"""Characters; the gateway has the same limit."""


def source_of(reference: str) -> str:
    """Name the function with the hash of its code and of what it imports.

    Raises PluginError if it does not exist.
    """
    if reference.startswith(PREFIX):
        chosen = _chosen(reference)
        return f"{PREFIX}{chosen}#{_digest(code_of(chosen.name))}"
    path, function = _place(reference)
    return f"{path.name}:{function}#{_digest(own_code.code_of(path))}"


def load(reference: str) -> Function:
    """Load a function. Raises PluginError.

    For a user's file, this changes what the process can import (`own_imports`).
    """
    return (
        _from_registry(reference)
        if reference.startswith(PREFIX)
        else _from_file(*_place(reference))
    )


def label_of(reference: str) -> str:
    """The function's name in messages: without its folder."""
    return reference if reference.startswith(PREFIX) else reference.rpartition("/")[2]


def named(given: object, name: str, label: str) -> dict[str, Value]:
    """Turn what the function `label` returned into rewards by name; empty for None.

    Raises RewardFailed.
    """
    if given is None:
        return {}
    values = cast("dict[object, object]", given) if isinstance(given, dict) else {name: given}
    if len(values) > _MOST_NAMES:
        raise RewardFailed(
            f"{label} returned {len(values)} rewards; at most {_MOST_NAMES} are allowed"
        )
    return {_name(key, label): _value(value, key, label) for key, value in values.items()}


def _value(given: object, key: object, label: str) -> Value:
    if not isinstance(given, dict):
        return _finite(given, key, label)
    actions = cast("dict[object, object]", given)
    return {clean(str(action)): _finite(value, action, label) for action, value in actions.items()}


def _name(key: object, label: str) -> str:
    # A plain `str`, even for an instance of a subclass.
    text = str.__str__(key) if isinstance(key, str) else str(key)
    if not 1 <= len(text) <= _LONGEST_NAME or clean(text) != text:
        raise RewardFailed(
            f"{label} returned a reward named {repr_of(text)}: a name must have 1 to "
            f"{_LONGEST_NAME} characters of valid Unicode"
        )
    return text


def _finite(given: object, key: object, label: str) -> float:
    number = _number(given)
    if number is None or not is_bounded(number, LARGEST_REWARD):
        raise RewardFailed(
            f"{label} returned {repr_of(given)} ({type(given).__name__}) for {repr_of(key)}: "
            f"expected a number from {-LARGEST_REWARD:.0f} to {LARGEST_REWARD:.0f}"
        )
    return number


def _number(given: Any) -> float | None:
    """Convert a number of Python, numpy or a tensor without dimensions; None for anything else."""
    if getattr(given, "shape", None) == () and callable(getattr(given, "item", None)):
        given = given.item()
    if not isinstance(given, numbers.Real | Decimal):
        return None
    try:
        return float(given)
    except (OverflowError, ValueError):
        # For example 10**400, or a signalling NaN.
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
            f"{PREFIX}{chosen.name} needs {error.name}: {how_to_install('rewards')}"
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
        # SystemExit included: a file may end with `sys.exit(main())`.
        raise PluginError(f"{path} cannot be imported: {text_of(error)}") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise PluginError(f"{path} has no function {function!r}: give FILE.py:FUNCTION")
    return cast(Function, found)


def _digest(code: bytes) -> str:
    return hashlib.sha256(code).hexdigest()[:12]
