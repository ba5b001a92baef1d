"""Draws the blocks of a page, and later those that have changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nicegui import ui
from nicegui.element import Element

from services.console.pages.blocks import (
    Block,
    Button,
    Buttons,
    Chart,
    Columns,
    Field,
    Figures,
    Filters,
    Heading,
    Link,
    Links,
    Notice,
    Table,
    Text,
    Tokens,
)
from services.console.pages.drawing.charts import options
from services.console.pages.drawing.components import TableElement, TokensElement, safe_address, tag

Act = Callable[[Button], None]
"""What a click on an action does."""

_SUBMIT = """(event) => {
  for (const field of event.target.elements) if (!field.value) field.disabled = true;
}"""
"""Leaves empty filters out of the address."""


class Canvas:
    """An element that shows blocks."""

    def __init__(self, parent: Element, act: Act) -> None:
        self._parent = parent
        self._act = act
        self._shown: list[tuple[Block, Element, Callable[[Any], None] | None]] = []

    def show(self, blocks: Sequence[Block]) -> None:
        """Show blocks. Those that are the same as before are left as they are."""
        if [type(block) for block in blocks] != [type(block) for block, _, _ in self._shown]:
            self._parent.clear()
            self._shown = [self._new(block) for block in blocks]
            return
        for place, (block, (shown, frame, update)) in enumerate(
            zip(blocks, self._shown, strict=True)
        ):
            if block == shown:
                continue
            if update is None or not _fits(shown, block):
                frame.clear()
                with frame:
                    update = self._draw(block)
            else:
                update(block)
            self._shown[place] = (block, frame, update)

    def _new(self, block: Block) -> tuple[Block, Element, Callable[[Any], None] | None]:
        with self._parent:
            frame = tag("section", classes=f"block block-{type(block).__name__.lower()}")
        with frame:
            return block, frame, self._draw(block)

    def _draw(self, block: Block) -> Callable[[Any], None] | None:
        """Draw a block where we are. Returns what changes it, if it can be changed."""
        match block:
            case Notice():
                _notice(block)
            case Heading():
                tag("h2", block.text)
                if block.note:
                    tag("p", block.note, "note")
            case Text():
                with _foldable(block.title, block.folded):
                    tag("pre", block.text, "text", tabindex=0)
            case Links():
                _links(block)
            case Figures():
                _figures(block)
            case Table():
                return _table(block)
            case Chart():
                return _chart(block)
            case Tokens():
                return _tokens(block)
            case Filters():
                _filters(block)
            case Buttons():
                self._buttons(block)
            case Columns():
                return self._columns(block)
        return None

    def _columns(self, block: Columns) -> Callable[[Any], None]:
        frame = tag("div", classes="columns").style(f"--least: {block.least}px")
        inner = Canvas(frame, self._act)
        inner.show(block.items)

        def update(changed: Columns) -> None:
            inner.show(changed.items)

        return update

    def _buttons(self, block: Buttons) -> None:
        with tag("div", classes="buttons"):
            for button in block.items:
                with tag("button", button.label, f"action {button.tone}", type="button") as element:
                    element.on("click", lambda _, button=button: self._act(button))


def _fits(shown: Block, block: Block) -> bool:
    """Whether a drawn block can be changed into another of its type."""
    match shown, block:
        case Chart(), Chart():
            return (shown.title, shown.note, shown.height, bool(shown.series)) == (
                block.title,
                block.note,
                block.height,
                bool(block.series),
            )
        case Table(), Table():
            return (shown.title, shown.pages, bool(shown.rows)) == (
                block.title,
                block.pages,
                bool(block.rows),
            )
        case Tokens(), Tokens():
            return (shown.title, shown.legend, shown.folded) == (
                block.title,
                block.legend,
                block.folded,
            )
        case Columns(), Columns():
            return shown.least == block.least
        case _:
            return False


def anchor(link: Link, classes: str = "") -> Element:
    """A link to a page of the console."""
    return tag("a", link.text, classes, href=safe_address(link.address))


def _foldable(title: str, folded: bool) -> Element:
    """Where a titled block goes: under its title, or inside something that opens."""
    if folded:
        frame = tag("details")
        with frame:
            tag("summary", title or "Show")
        return frame
    if title:
        tag("h3", title)
    return tag("div")


def _notice(block: Notice) -> None:
    words = {"bad": "Alarm: ", "warning": "Warning: "}.get(block.tone, "")
    with tag("div", classes=f"notice-box {block.tone}", role="status"):
        tag("p", words + block.text)
        for command in block.commands:
            tag("pre", command, tabindex=0)
        if block.link:
            anchor(block.link)


def _links(block: Links) -> None:
    with tag("nav", classes="links", aria_label=block.label or "Choice"):
        if block.label:
            tag("span", block.label, "note")
        for link in block.items:
            element = anchor(link)
            if link.text == block.chosen:
                element.props["aria-current"] = "true"


def _figures(block: Figures) -> None:
    with tag("dl", classes="figures"):
        for figure in block.items:
            with tag("div", classes=figure.tone):
                tag("dt", figure.label)
                with tag("dd"):
                    if figure.address:
                        anchor(Link(figure.value, figure.address))
                    else:
                        tag("span", figure.value)
                    if figure.note:
                        tag("small", figure.note)


def _table(block: Table) -> Callable[[Table], None]:
    if block.title:
        tag("h3", block.title)
    if not block.rows:
        tag("p", block.empty, "note")
        return lambda _: None
    element = TableElement(block.columns, block.rows)
    if block.pages:
        with tag("nav", classes="links", aria_label="Pages"):
            for link in block.pages:
                anchor(link)

    def update(changed: Table) -> None:
        element.show(changed.columns, changed.rows)

    return update


def _chart(block: Chart) -> Callable[[Chart], None]:
    tag("h3", block.title)
    if block.note:
        tag("p", block.note, "note")
    if not any(series.points for series in block.series):
        tag("p", "No values yet.", "note empty").style(f"min-height: {block.height // 2}px")
        return lambda _: None
    current = [block]

    def follow(event: Any) -> None:
        address = _address_of(current[0], event.series_name, event.data_index)
        if address:
            ui.navigate.to(address)

    chart = ui.echart(options(block), on_point_click=follow, renderer="svg")
    chart.style(f"height: {block.height}px")
    chart.props["role"] = "img"
    chart.props["aria-label"] = f"{block.title}: {block.y.label} by {block.x.label}"

    def update(changed: Chart) -> None:
        current[0] = changed
        chart.props["options"] = options(changed)
        chart.update()

    return update


def _address_of(chart: Chart, name: str, number: int) -> str | None:
    series = next((series for series in chart.series if series.name == name), None)
    if series is None or not 0 <= number < len(series.addresses):
        return None
    return safe_address(series.addresses[number])


def _tokens(block: Tokens) -> Callable[[Tokens], None]:
    with _foldable(block.title, block.folded):
        if block.legend:
            with tag("div", classes="legend"):
                TokensElement(block.legend)
        element = TokensElement(block.items)

    def update(changed: Tokens) -> None:
        element.show(changed.items)

    return update


def _filters(block: Filters) -> None:
    with tag("form", classes="filters", method="get", role="search") as form:
        form.on("submit", js_handler=_SUBMIT)
        for name, value in block.kept:
            tag("input", type="hidden", name=name, value=value)
        for field in block.fields:
            with tag("label"):
                tag("span", field.label)
                enter(field)
        tag("button", "Apply", type="submit")


def enter(field: Field) -> Element:
    """What a person enters a value in. A choice in a form is applied at once."""
    if not field.choices:
        given = tag("input", type=field.kind, name=field.name, autocomplete="off")

        given.props["value"] = field.value
        if field.kind == "number":
            given.props["step"] = "any"
        return given
    with tag("select", name=field.name) as select:
        select.on("change", js_handler="(event) => event.target.form?.requestSubmit()")
        for value, text in field.choices:
            option = tag("option", text, value=value)
            if value == field.value:
                option.props["selected"] = True
    return select
