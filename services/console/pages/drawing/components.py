"""Components of the page that are written in JavaScript: tables and token streams.

Each is one small file without a build. They get lists of texts and write them as text.
"""

from __future__ import annotations

from nicegui.element import Element

from services.console.pages.blocks import Cell, Column, Token

_SAFE_START = ("/", "?", "#")


class TableElement(Element, component="table.js"):
    """A table with links, and with columns that are sorted by address."""

    def __init__(self, columns: tuple[Column, ...], rows: tuple[tuple[Cell, ...], ...]) -> None:
        super().__init__()
        self.show(columns, rows)

    def show(self, columns: tuple[Column, ...], rows: tuple[tuple[Cell, ...], ...]) -> None:
        """Show other rows."""
        self._props["columns"] = [
            [column.label, column.number, column.note, column.sort, column.sorted]
            for column in columns
        ]
        self._props["rows"] = [
            [[cell.text, safe_address(cell.address), cell.tone, cell.note] for cell in row]
            for row in rows
        ]


class TokensElement(Element, component="tokens.js"):
    """A token stream."""

    def __init__(self, tokens: tuple[Token, ...]) -> None:
        super().__init__()
        self.show(tokens)

    def show(self, tokens: tuple[Token, ...]) -> None:
        """Show other tokens."""
        self._props["tokens"] = [
            [token.text, token.colour, token.note, token.faint] for token in tokens
        ]


def safe_address(address: str | None) -> str | None:
    """An address if it leads to the console itself."""
    is_own = address and address.startswith(_SAFE_START) and not address.startswith(("//", "/\\"))
    return address if is_own else None


def tag(name: str, text: str | None = None, /, classes: str = "", **props: object) -> Element:
    """An HTML element with a text. Names of props are fixed, their values may be anything."""
    element = Element(name)
    if text is not None:
        element._text = text  # pyright: ignore[reportPrivateUsage]
    if classes:
        element.classes(classes)
    for prop, value in props.items():
        element.props[prop.rstrip("_").replace("_", "-")] = value
    return element
