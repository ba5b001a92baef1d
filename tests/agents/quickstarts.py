"""The quick-starts that frameworks publish, cut out of the very packages that are installed:
README, docstring, shipped document, example.

None is copied into this repository. `agent.toml` in a framework's folder says where each lies, what
is changed in it (model name, address or key, nothing else), what is recorded of it, and what the
model is made to say where a small one could not.
"""

from __future__ import annotations

import ast
import re
import textwrap
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from tests.agents.environments import FOLDER, Environment

_FENCED = re.compile(
    r"^(?P<indent>[ \t]*)```(?:python|py|ts|typescript)\b[^\n]*\n(?P<code>.*?)^(?P=indent)```",
    re.MULTILINE | re.DOTALL,
)
_DIRECTIVE = re.compile(
    r"^(?P<indent>[ \t]*)\.\. code-block:: python\n(?P<code>(?:(?P=indent)[ \t]+[^\n]*\n|[ "
    r"\t]*\n)+)",
    re.MULTILINE,
)


class Speech(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the model is made to say to prompts that contain `to`: its first, second, ... turn of
    the conversation.
    """

    says: list[str]
    to: str = ""


class Quickstart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One published agent."""

    name: str
    source: str
    """`README of PACKAGE`, or a file within the installed packages."""
    alias: str
    """Model name that it asks for."""
    api: str
    """As in the event: `chat.completions`, `responses`, `messages`."""
    docstring: str | None = None
    """Name in that file whose docstring holds it."""
    holds: str | None = None
    """Text by which its code block is known among others; without it the file is the agent."""
    changes: dict[str, str] = {}
    """Replaced in it."""
    environment: dict[str, str] = {}
    """Variables that it asks for under names of its own; `$OPENAI_BASE_URL` and the like are filled
    in.
    """
    stdin: str = ""
    """What its user types."""
    scaffold: list[list[str]] = []
    """Commands of the framework that make the project which is run."""
    entry: str | None = None
    """What starts such a project: `folder:module:function`."""
    notebook: bool = False
    """Written for one: it awaits at the top level."""
    stream: bool = False
    """Whether it streams."""
    turns: list[str] = []
    """Roles of each call's prompt when the words are dictated, in order of the calls; empty:
    whatever it sends.
    """
    refused: int = 0
    """Calls that the gateway refuses and the agent's client makes again in another way."""
    rows: int = 1
    """Trajectories that the dictated run makes."""
    prints: str = ""
    """What it is then heard to say."""
    dictated: list[Speech] = []
    """Empty: it runs with the small model's own words only."""
    free: bool = True
    """Whether it ends well with the small model's own words."""


class Agent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A framework: `agent.toml` of its folder."""

    framework: str
    package: str
    quickstart: list[Quickstart]
    folder: str = ""


class Cut(msgspec.Struct, frozen=True):
    """A quick-start as published, and as it runs."""

    original: str
    running: str


def agents() -> list[Agent]:
    """All frameworks, by folder."""
    return [_agent(path) for path in sorted(FOLDER.glob("*/agent.toml"))]


def _agent(path: Path) -> Agent:
    read = cast("Mapping[str, Any]", tomllib.loads(path.read_text()))
    return msgspec.structs.replace(msgspec.convert(read, Agent), folder=path.parent.name)


def cut(quickstart: Quickstart, environment: Environment) -> Cut:
    """Take it out of its package. Fails if it is not there, or not the only one."""
    text = _source(quickstart, environment)
    original = text if quickstart.holds is None else _block(text, quickstart.holds)
    running = original
    for old, new in quickstart.changes.items():
        assert old in original, f"{quickstart.name}: {old!r} is not in the published agent"
        running = running.replace(old, new)
    return Cut(original, running)


def version(package: str, environment: Environment) -> str:
    """Of an installed package."""
    if environment.node:
        described = msgspec.json.decode(
            (environment.packages / package / "package.json").read_bytes(), type=dict[str, Any]
        )
        return str(described["version"])
    [found] = re.findall(
        r"^Version: (.+)$", _metadata(package, environment).partition("\n\n")[0], re.MULTILINE
    )
    return found


def _source(quickstart: Quickstart, environment: Environment) -> str:
    readme = quickstart.source.removeprefix("README of ")
    if readme != quickstart.source:
        return (
            (environment.packages / readme / "README.md").read_text()
            if environment.node
            else _metadata(readme, environment)
        )
    file = environment.packages / quickstart.source
    if not file.is_file():
        [file] = (environment.folder / "sdists").glob(f"*/{quickstart.source}")
    return (
        file.read_text() if quickstart.docstring is None else _docstring(file, quickstart.docstring)
    )


def _metadata(package: str, environment: Environment) -> str:
    [file] = environment.packages.glob(f"{package.replace('-', '_')}-*.dist-info/METADATA")
    return file.read_text()


def _docstring(file: Path, name: str) -> str:
    nodes = ast.parse(file.read_text()).body
    [found] = [
        n
        for n in nodes
        if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name and ast.get_docstring(n)
    ]
    return ast.get_docstring(found) or ""


def _block(text: str, holds: str) -> str:
    blocks = [
        textwrap.dedent(match["code"])
        for pattern in (_FENCED, _DIRECTIVE)
        for match in pattern.finditer(text)
    ]
    found = [block for block in blocks if holds in block]
    assert len(found) == 1, f"{len(found)} of {len(blocks)} code blocks hold {holds!r}"
    return found[0].strip("\n") + "\n"


def aliases(all_agents: Sequence[Agent]) -> list[str]:
    """Every model name that some agent asks for."""
    return sorted({quickstart.alias for agent in all_agents for quickstart in agent.quickstart})
