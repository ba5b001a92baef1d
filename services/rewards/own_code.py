"""Collects the code of a user's reward function: its file, and the user's modules that it imports.

Imports are followed recursively. A user's module is one beside the file or in the working
directory, where `own_imports` makes Python look first; installed modules do not count. The code is
read and never run, so an import by a computed name is not seen.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import fulgurite
import services

_OURS = tuple(
    Path(folder).resolve() for package in (fulgurite, services) for folder in package.__path__
)
_INSTALLED = frozenset({"site-packages", "dist-packages"})


class _Module(NamedTuple):
    name: str
    file: Path

    @property
    def package(self) -> list[str]:
        """The package that its relative imports start from."""
        parts = self.name.split(".")
        return parts if self.file.name == "__init__.py" else parts[:-1]


def code_of(file: Path) -> bytes:
    """Return the code of a file and of the user's modules that it imports.

    The result does not depend on the folder. Without such imports it is the file's content.
    """
    folders = tuple(dict.fromkeys((file.parent.resolve(), Path.cwd())))
    code = file.read_bytes()
    found = dict.fromkeys(_imported(code, [], folders))
    # Grows during the loop: modules in the order in which they are found.
    waiting = list(found)
    for module in waiting:
        news = [
            one
            for one in _imported(module.file.read_bytes(), module.package, folders)
            if one not in found
        ]
        found.update(dict.fromkeys(news))
        waiting += dict.fromkeys(news)
    modules = sorted(module for module in found if module.file != file.resolve())
    return b"".join(
        [
            code,
            *(b"\0%b\0%b" % (module.name.encode(), module.file.read_bytes()) for module in modules),
        ]
    )


def _imported(code: bytes, package: list[str], folders: Sequence[Path]) -> Iterator[_Module]:
    """Yield the user's modules that this code imports, and the packages that contain them."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError):
        return  # Loading it reports the error.
    for node in ast.walk(tree):
        for name in _names(node, package):
            parts = name.split(".")
            for end in range(1, len(parts) + 1):
                dotted = ".".join(parts[:end])
                file = _find(dotted, folders)
                if file is not None:
                    yield _Module(dotted, file)


def _names(node: ast.AST, package: list[str]) -> Iterator[str]:
    """Yield names of imported modules, and names that may be modules (`from a import b`)."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.level <= len(package):
        start = package[: len(package) - node.level + 1] if node.level else []
        base = [*start, *([node.module] if node.module else [])]
        yield from (".".join([*base, alias.name]) for alias in node.names)


def _find(dotted: str, folders: Sequence[Path]) -> Path | None:
    for folder in folders:
        place = folder.joinpath(*dotted.split("."))
        for file in (place / "__init__.py", place.with_name(place.name + ".py")):
            if file.is_file():
                return file.resolve() if _is_own(file.resolve()) else None
    return None


def _is_own(file: Path) -> bool:
    return _INSTALLED.isdisjoint(file.parts) and not any(
        file.is_relative_to(folder) for folder in _OURS
    )
