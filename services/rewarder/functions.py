"""Reward functions by reference: a user's, `rewards.py:fn`, or a built-in one, `builtin:f1(reference=answer)`.

A function gets a `fulgurite.episode_view.EpisodeView` and returns a number, numbers by name, or None for no reward; it may be async.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from fulgurite.episode_view import EpisodeView
from fulgurite.errors import UnknownRule
from services.rewarder.builtin import PREFIX, builtin
from services.rewarder.errors import PluginError, RewardFailed

Function = Callable[[EpisodeView], Any]


class Loaded(NamedTuple):
    """A function, and the name that tells which code it is: with the hash of its file's content."""

    function: Function
    source: str


def load(reference: str) -> Loaded:
    """Raises PluginError."""
    if reference.startswith(PREFIX):
        return _builtin(reference.removeprefix(PREFIX))
    file, _, function = reference.rpartition(":")
    path = Path(file).resolve()
    if not file or not path.is_file():
        raise PluginError(f"{reference!r}: expected FILE.py:FUNCTION with an existing file, or {PREFIX}NAME")
    return Loaded(_from_file(path, function), f"{path.name}:{function}#{_digest(path)}")


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


def _builtin(text: str) -> Loaded:
    try:
        chosen, path = builtin(text)
    except UnknownRule as error:
        raise PluginError(str(error)) from error
    try:
        module = importlib.import_module(f"{builtin.__module__}.{chosen.name}")
    except ImportError as error:
        raise PluginError(f"{PREFIX}{chosen.name} needs {error.name}: pip install 'fulgurite[rewards]'") from error
    return Loaded(partial(module.reward, **chosen.parameters), f"{PREFIX}{chosen}#{_digest(path)}")


def _from_file(path: Path, function: str) -> Function:
    spec = importlib.util.spec_from_file_location(f"fulgurite_reward_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise PluginError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    # Beside the file lies what it imports.
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise PluginError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise PluginError(f"{path} has no function {function!r}")
    return cast(Function, found)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
