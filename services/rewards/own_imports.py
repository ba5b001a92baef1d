"""What a user's file finds when it imports: what lies beside it, then in the working directory,
then what is installed.

A project's own `services`, beside the file or in the working directory, is found too, though ours
has that name. For processes that run nothing but the user's function: they lose sight of ours.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

_NAME = __name__.partition(".")[0]
_KEPT = "services.rewards.sandbox"
"""The parent names functions of it to this process."""


def put_first(file: Path) -> None:
    """Let imports find what belongs to this file."""
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
        # A folder without that file comes after every installed package of its name, wherever it
        # lies.
        merged = ModuleType(_NAME)
        merged.__path__ = [str(own), *ours.__path__]
        sys.modules[_NAME] = merged
