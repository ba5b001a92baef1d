"""What reaches a terminal: no character that it would obey, wherever the text came from."""

from __future__ import annotations

import io
import json
import logging
import re
import unicodedata
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from services.cli.output import print_json
from services.common.runtime import logs
from services.common.runtime.escaping import escaped
from services.common.runtime.terminal import EscapingConsole, plain

ROOT = Path(__file__).parents[4]
EVIL = (
    "\x1b[2J\x1b]0;title\x07\x1b]8;;"
    "http://evil\x1b\\link\x9b31m\u202egnp.exe\u2066\ud83c\U000e0041\u2028\r[red]:bomb:[link=http://evil]x[/link]"
)

texts = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.sampled_from([EVIL, *EVIL]),
        st.characters(categories=("Cc", "Cs", "Cf")),
    ),
    max_size=8,
).map("".join)


def obeyed(text: str) -> list[str]:
    """Characters that a terminal would obey: controls, halves, line separators, and what changes
    the direction.
    """
    controls = [
        c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c not in "\n\t"
    ]
    return controls + re.findall("[\u202a-\u202e\u2066-\u2069]", text)


@given(texts)
def test_a_text_is_escaped_once_and_for_all(text: str) -> None:
    shown = escaped(text)
    assert obeyed(shown) == []
    assert escaped(shown) == shown
    assert shown.encode().decode() == shown


@given(st.text(st.characters(categories=("L", "N", "P", "S", "Zs"))))
def test_letters_signs_and_spaces_stay(text: str) -> None:
    assert escaped(text) == text


def test_emoji_of_several_characters_stay() -> None:
    emoji = "\U0001f469\u200d\U0001f4bb\ufe0f"
    assert escaped(f"{emoji} \u202eb \x1b[2J \ud83c") == f"{emoji} \\u202eb \\x1b[2J \\ud83c"


@given(texts)
def test_a_console_escapes_what_a_printer_forgot(text: str) -> None:
    written = io.StringIO()
    console = EscapingConsole(file=written, force_terminal=False, emoji=False, width=200)
    console.print(text, markup=False)
    table = Table("text")
    table.add_row(plain(text))
    console.print(table)
    console.print(f"[bold]{plain(text)}[/bold]")
    assert obeyed(written.getvalue()) == []


def test_links_lead_nowhere_and_markup_of_a_text_is_text() -> None:
    written = io.StringIO()
    console = EscapingConsole(file=written, force_terminal=True, emoji=False, width=200)
    console.print("[link=http://evil]x[/link]")
    console.print(plain("[link=http://evil]x[/link] [red]r"), highlight=False)
    assert "\x1b]8" not in written.getvalue()
    assert "[link=http://evil]x[/link] [red]r" in written.getvalue()


@given(texts)
def test_json_means_the_same_and_is_escaped(text: str) -> None:
    written = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", written)
        print_json({"text": text})
    assert obeyed(written.getvalue()) == []
    assert json.loads(written.getvalue()) == json.loads(json.dumps({"text": text}))


@pytest.mark.parametrize("package", ["cli", "runner"])
def test_every_command_prints_through_the_console_that_escapes(package: str) -> None:
    for path in (ROOT / "services" / package).glob("*.py"):
        assert not re.search(r"(?<!\w)Console\(", path.read_text()), (
            f"{path.name} makes a console of its own: use services.common.runtime.terminal"
        )


def test_a_log_on_a_terminal_is_escaped_errors_and_all(capsys: pytest.CaptureFixture[str]) -> None:
    handlers, level = logging.getLogger().handlers, logging.getLogger().level
    try:
        logs.configure("test", json=False)
        try:
            raise ValueError(EVIL)
        except ValueError:
            logs.get().exception("failed", error=EVIL)
        said = capsys.readouterr().err
    finally:
        logging.getLogger().handlers, logging.getLogger().level = handlers, level
        structlog.reset_defaults()
        structlog.contextvars.clear_contextvars()
    assert "\\x1b[2J" in said
    # The renderer's own colours are escape sequences too: of those alone.
    assert obeyed(re.sub("\x1b\\[[0-9;]*m", "", said)) == []
