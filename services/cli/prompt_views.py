"""Shows prompt versions as JSON, as a table and as lines of text."""

from __future__ import annotations

import msgspec
from rich.table import Column, Table

from fulgurite.enums import PromptKind
from fulgurite.events import PromptUpdate
from fulgurite.prompts.demonstrations import chat_messages
from fulgurite.prompts.history import PromptHistory
from fulgurite.prompts.tuning import edits_of
from fulgurite.untrusted_json import encoded
from services.common.runtime.terminal import plain
from services.replay.windows import shown


def scope_text(alias: str, role: str | None) -> str:
    """An alias, and its role where there is one."""
    return alias if role is None else f"{alias} as {role}"


def describe_version(prompt: PromptUpdate, history: PromptHistory) -> dict[str, object]:
    """What is known of a version, apart from its edits."""
    current = history.current(prompt.alias, prompt.role)
    about = {
        name: value
        for name, value in msgspec.structs.asdict(prompt).items()
        if name in ("alias", "role", "kind", "version", "parent", "reason", "author", "tuning")
    }
    return {**about, "written_at": prompt.event_time, "in_force": prompt == current}


def version_table(found: list[PromptUpdate], history: PromptHistory) -> Table:
    """One version a row."""
    table = Table(
        "alias",
        "role",
        Column("version", no_wrap=True),
        "in force",
        "written (UTC)",
        "changes",
        "author",
        "reason",
    )
    for one in found:
        current = history.current(one.alias, one.role)
        table.add_row(
            plain(one.alias),
            plain(one.role or "all"),
            plain(one.version),
            _state(one, current),
            shown(one.event_time),
            ", ".join(edits_of(one)),
            plain(one.author),
            plain(one.reason),
        )
    return table


def _state(prompt: PromptUpdate, current: PromptUpdate | None) -> str:
    """Whether a version is in force; a candidate is where a rollout names it."""
    if prompt == current:
        return "yes"
    return "where named" if prompt.kind is PromptKind.candidate else ""


def edit_lines(prompt: PromptUpdate | None) -> list[str]:
    """What a version changes, in lines; empty for none."""
    if prompt is None:
        return []
    texts = [
        ("system prompt", prompt.system),
        ("prefix", prompt.prefix),
        *((f"section {name}", text) for name, text in sorted(prompt.sections.items())),
        *((f"tool {name}", text) for name, text in sorted(prompt.tools.items())),
    ]
    lines = [line for title, text in texts if text for line in (f"-- {title}", *text.splitlines())]
    said = [encoded(message).decode() for message in chat_messages(prompt.demonstrations)]
    return [*lines, *(["-- demonstrations", *said] if said else [])]


def version_text(version: str | None, role: str | None) -> str:
    """What a scope gets, for people."""
    return version or ("what the agent sends" if role is None else "the alias's version")
