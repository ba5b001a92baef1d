"""Values as people read them: numbers with units, times, shortened texts."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime

from fulgurite.untrusted_json import mapping, parsed
from services.console.pages.blocks import Cell, Tone

NONE = "–"
"""Stands where there is no value."""


def number(value: float | None, digits: int = 3) -> str:
    """A number with as many significant digits; thousands are separated by thin spaces."""
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == int(value) and abs(value) < 1e15:
        text = f"{int(value):,}".replace(",", "\u202f")
    elif abs(value) >= 10**digits:
        text = f"{value:,.0f}".replace(",", "\u202f")
    elif abs(value) < 1e-4:
        text = f"{value:.{digits - 1}e}"
    else:
        text = f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"
    return text.replace("-", "−") if "e-" not in text else text


def fixed(value: float | None, places: int = 3) -> str:
    """A number with as many decimal places, such as a reward."""
    if value is None or math.isnan(value):
        return NONE
    return f"{value:.{places}f}".replace("-", "−")


def share(part: float | None, whole: float | None = 1.0) -> str:
    """A share in percent."""
    return NONE if part is None or not whole else f"{100 * part / whole:.1f} %"


def count(value: int | None, one: str, many: str | None = None) -> str:
    """A number with its noun: `1 call`, `2 calls`."""
    return f"{number(value)} {one if value == 1 else many or one + 's'}"


def seconds(value: float | None) -> str:
    """A span of time in the unit that suits it."""
    if value is None:
        return NONE
    if value < 1:
        return f"{1000 * value:.0f} ms"
    if value < 60:
        return f"{value:.1f} s"
    if value < 3600:
        return f"{int(value // 60)} min {int(value % 60)} s"
    if value < 86_400:
        return f"{int(value // 3600)} h {int(value % 3600 // 60)} min"
    return f"{int(value // 86_400)} d {int(value % 86_400 // 3600)} h"


def size(value: float | None) -> str:
    """A number of bytes in the unit that suits it."""
    if value is None:
        return NONE
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def milliseconds(time: datetime | None) -> int | None:
    """Unix milliseconds of a time of the index, which is UTC without a zone."""
    return None if time is None else round(time.replace(tzinfo=UTC).timestamp() * 1000)


def clock(time: datetime | None) -> str:
    """A time with its date, in UTC."""
    return NONE if time is None else f"{time:%Y-%m-%d %H:%M:%S} UTC"


def ago(time: datetime | None, now_ms: int) -> str:
    """How long ago a time was."""
    then = milliseconds(time)
    if then is None:
        return NONE
    passed = (now_ms - then) // 1000
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        if passed >= length:
            return f"{passed // length} {unit} ago"
    return "now"


def short(text: str | None, most: int = 120) -> str:
    """The beginning of a text, on one line."""
    if text is None:
        return NONE
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def task_text(task: str | None) -> str | None:
    """What a task asks, if its JSON says so in a field of a usual name; else the JSON."""
    try:
        found = mapping(parsed(task))
    except ValueError:
        return task
    asked = (found.get(name) for name in ("question", "prompt", "instruction", "task"))
    return next((text for text in asked if isinstance(text, str) and text), task)


def cell(value: object, address: str | None = None, tone: Tone = "plain", most: int = 120) -> Cell:
    """A cell of a table; a long text is shortened, and shown in full where the pointer rests."""
    if value is None:
        return Cell(NONE, address, "quiet")
    if isinstance(value, bool):
        return Cell("yes" if value else "no", address, tone)
    if isinstance(value, (int, float)):
        return Cell(number(value), address, tone)
    if isinstance(value, datetime):
        return Cell(clock(value), address, tone)
    text = str(value)
    line = short(text, most)
    return Cell(line, address, tone, "" if line == text else text[:2000])


def time_of(ms: int) -> datetime:
    """A time as the index has it, from Unix milliseconds."""
    return datetime.fromtimestamp(ms / 1000, UTC).replace(tzinfo=None)


def pretty(text: str) -> str:
    """A JSON text with line breaks; another text as it is."""
    try:
        return json.dumps(parsed(text), indent=2, ensure_ascii=False)
    except ValueError:
        return text
