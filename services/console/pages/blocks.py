"""What a page consists of, as plain values.

A view returns blocks, and `drawing` draws them. So a view can be tested without a browser, and a
page that is looked at again draws only the blocks that have changed. Every text is drawn as text,
never as markup: most of them were written by agents.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Tone = Literal["plain", "good", "warning", "bad", "quiet"]
"""How a value is to be taken. It is said in words as well as by colour."""


@dataclass(frozen=True)
class Notice:
    """A sentence that stands out: an empty page and what to do, an alarm, an error."""

    text: str
    tone: Tone = "plain"
    commands: tuple[str, ...] = ()
    """Commands that help, for a shell."""
    link: Link | None = None


@dataclass(frozen=True)
class Heading:
    """Title of the blocks that follow, with a sentence about them."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Text:
    """A text of any length as it was written, line breaks included."""

    text: str
    title: str = ""
    folded: bool = False
    """Whether it is shown only when it is opened."""


@dataclass(frozen=True)
class Link:
    """A text that leads to another page of the console."""

    text: str
    address: str


@dataclass(frozen=True)
class Links:
    """Links beside one another; `chosen` is the text of the one that is shown."""

    items: tuple[Link, ...]
    label: str = ""
    chosen: str | None = None


@dataclass(frozen=True)
class Figure:
    """A number with its name."""

    label: str
    value: str
    note: str = ""
    tone: Tone = "plain"
    address: str | None = None


@dataclass(frozen=True)
class Figures:
    """Numbers beside one another."""

    items: tuple[Figure, ...]


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    label: str
    number: bool = False
    """Whether it holds numbers, which stand to the right."""
    note: str = ""
    """What it means, shown where the pointer rests."""
    sort: str | None = None
    """Address that sorts the table by it."""
    sorted: Literal["ascending", "descending"] | None = None


@dataclass(frozen=True)
class Cell:
    """A value of a table."""

    text: str
    address: str | None = None
    tone: Tone = "plain"
    note: str = ""
    """The whole of it, shown where the pointer rests."""


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""
    empty: str = "Nothing yet."
    pages: tuple[Link, ...] = ()
    """Links to the pages before and after."""


@dataclass(frozen=True)
class Axis:
    """An axis of a chart, with its unit."""

    label: str
    kind: Literal["value", "time", "category", "log"] = "value"
    low: float | None = None
    high: float | None = None
    """Ends of the axis; None: as the values need."""
    whole: bool = False
    """Whether only whole numbers are marked."""


Point = tuple[float | str, float | None]


@dataclass(frozen=True)
class Series:
    """Points of one name. A line may have a band, such as an interval."""

    name: str
    points: tuple[Point, ...]
    kind: Literal["line", "bar", "scatter"] = "line"
    band: tuple[tuple[float | str, float, float], ...] = ()
    """x, low, high."""
    stack: str | None = None
    dashed: bool = False
    colour: int | None = None
    """Index in the palette; None: the series' own index."""
    hidden: bool = False
    """Whether it only holds up the series that is stacked on it."""
    addresses: tuple[str, ...] = ()
    """Where a click on each point leads."""


@dataclass(frozen=True)
class Mark:
    """A line across a chart at one value, such as a limit."""

    value: float
    label: str
    axis: Literal["x", "y"] = "y"


@dataclass(frozen=True)
class Chart:
    """A chart with a title and named axes."""

    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    marks: tuple[Mark, ...] = ()
    note: str = ""
    height: int = 260
    """Pixels."""
    sideways: bool = False
    """Whether bars lie."""
    legend: bool = False
    """Whether a single series is named, too."""


@dataclass(frozen=True)
class Token:
    """A piece of a token stream."""

    text: str
    colour: str = ""
    """A CSS colour behind it; empty: none."""
    note: str = ""
    faint: bool = False
    """Whether it is context, which carries no loss."""


@dataclass(frozen=True)
class Tokens:
    """A token stream, coloured by a value."""

    items: tuple[Token, ...]
    title: str = ""
    legend: tuple[Token, ...] = ()
    folded: bool = False


@dataclass(frozen=True)
class Field:
    """What a person may enter."""

    name: str
    label: str
    value: str = ""
    choices: tuple[tuple[str, str], ...] = ()
    """Value and text of each choice; empty: free text."""
    kind: Literal["text", "search", "number"] = "text"


@dataclass(frozen=True)
class Filters:
    """A form whose fields stand in the address."""

    fields: tuple[Field, ...]
    kept: tuple[tuple[str, str], ...] = ()
    """Names and values of the address that the form does not show, but keeps."""


@dataclass(frozen=True)
class Button:
    """An action. It asks before it acts, and needs the admin key (`actions.py`)."""

    label: str
    action: str
    """Name of the action."""
    question: str
    """What the person is asked."""
    arguments: tuple[tuple[str, str], ...] = ()
    fields: tuple[Field, ...] = ()
    """What the person enters; its values join the arguments."""
    tone: Tone = "plain"


@dataclass(frozen=True)
class Buttons:
    """Actions beside one another."""

    items: tuple[Button, ...]


@dataclass(frozen=True)
class Columns:
    """Blocks side by side, or below one another where the page is narrow."""

    items: tuple[Block, ...] = field(default_factory=tuple)
    least: int = 340
    """Width of a column, in pixels, below which they break."""


Block = (
    Notice | Heading | Text | Links | Figures | Table | Chart | Tokens | Filters | Buttons | Columns
)
