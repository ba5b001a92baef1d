"""Makes a user's file find its own modules first: beside it, then in the working directory.

Installed modules come last. A user's own package `services` is found too, although Fulgurite has a
package of that name. Use this only in a process that runs nothing but the user's function: it can
no longer import Fulgurite's `services`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

_NAME = __name__.partition(".")[0]
_KEPT = "services.rewards.child"
"""Stays importable: the parent process calls functions of it by name."""


def put_first(file: Path) -> None:
    """Put the file's folder and the working directory first in the import path."""
    folders = list(dict.fromkeys((file.parent, Path.cwd())))
    sys.path[:0] = map(str, folders)
    own = next((folder / _NAME for folder in folders if _has_own(folder)), None)
    if own is not None:
        _give_way(own)


def _has_own(folder: Path) -> bool:
    own = folder / _NAME
    return own.with_suffix(".py").is_file() or (
        own.is_dir() and str(own) not in sys.modules[_NAME].__path__
    )


def _give_way(own: Path) -> None:
    ours = sys.modules[_NAME]
    for name in [name for name in sys.modules if name.partition(".")[0] == _NAME and name != _KEPT]:
        del sys.modules[name]
    if own.is_dir() and not (own / "__init__.py").is_file():
        # Python would prefer any installed package of this name to a folder without __init__.py.
        merged = ModuleType(_NAME)
        merged.__path__ = [str(own), *ours.__path__]
        sys.modules[_NAME] = merged
