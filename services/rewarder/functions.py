"""Reward functions by reference: a user's, `rewards.py:fn`, or a built-in one, `builtin:f1(reference=answer)`.

A function gets a `fulgurite.episode_view.EpisodeView` and returns a number, numbers by name, or None for no reward; it may be async.
A user's file is imported by `load` alone, in a process of its own: what it does and needs at import is no matter of a worker's.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from fulgurite.episode_view import EpisodeView
from fulgurite.errors import UnknownRule
from fulgurite.parameters import Chosen
from services.rewarder import own_code
from services.rewarder.builtin import PREFIX, builtin, code_of
from services.rewarder.errors import PluginError, RewardFailed
from services.rewarder.own_imports import put_first

Function = Callable[[EpisodeView], Any]


def source_of(reference: str) -> str:
    """Which code it is: its name with the hash of its content and of what it imports. Raises PluginError for what is not there."""
    if reference.startswith(PREFIX):
        chosen = _chosen(reference)
        return f"{PREFIX}{chosen}#{_digest(code_of(chosen.name))}"
    path, function = _place(reference)
    return f"{path.name}:{function}#{_digest(own_code.code_of(path))}"


def load(reference: str) -> Function:
    """Where it is a user's: changes what this process can import (`own_imports`). Raises PluginError."""
    return _from_registry(reference) if reference.startswith(PREFIX) else _from_file(*_place(reference))


def named(given: object, name: str) -> dict[str, float]:
    """What a function returned, as rewards by name; empty for none. Raises RewardFailed."""
    if given is None:
        return {}
    values = cast("dict[object, object]", given) if isinstance(given, dict) else {name: given}
    rewards: dict[str, float] = {}
    for key, value in values.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise RewardFailed(f"{key!r} is {value!r}: expected a finite number")
        rewards[str(key)] = float(value)
    return rewards


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
        raise PluginError(f"{PREFIX}{chosen.name} needs {error.name}: pip install 'fulgurite[rewards]'") from error
    return partial(module.reward, **chosen.parameters)


def _place(reference: str) -> tuple[Path, str]:
    file, _, function = reference.rpartition(":")
    path = Path(file).resolve()
    if not file or not path.is_file():
        raise PluginError(f"{reference!r}: expected FILE.py:FUNCTION with an existing file, or {PREFIX}NAME")
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
    except Exception as error:
        raise PluginError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise PluginError(f"{path} has no function {function!r}")
    return cast(Function, found)


def _digest(code: bytes) -> str:
    return hashlib.sha256(code).hexdigest()[:12]
