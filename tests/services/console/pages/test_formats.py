from __future__ import annotations

from datetime import UTC, datetime

import pytest

from services.console.pages import formats
from services.console.pages.address import Address, link


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (float("inf"), "∞"),
        (0, "0"),
        (1234567, "1\u202f234\u202f567"),
        (-3, "−3"),
        (0.00012345, "0.000123"),
        (0.5, "0.500"),
        (12.3456, "12.3"),
        (1234.5, "1\u202f234"),
        (3e-7, "3.00e-07"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert formats.number(value) == text


def test_spans_and_sizes() -> None:
    assert [formats.seconds(value) for value in (None, 0.02, 3.21, 65, 3700, 90_000)] == [
        "–",
        "20 ms",
        "3.2 s",
        "1 min 5 s",
        "1 h 1 min",
        "1 d 1 h",
    ]
    assert [formats.size(value) for value in (None, 10, 2048, 5 * 1024**3)] == [
        "–",
        "10 B",
        "2.0 KiB",
        "5.0 GiB",
    ]


def test_times_are_utc() -> None:
    time = datetime(2026, 1, 2, 3, 4, 5)
    now = int(datetime(2026, 1, 2, 3, 6, 5, tzinfo=UTC).timestamp() * 1000)
    assert formats.clock(time) == "2026-01-02 03:04:05 UTC"
    assert formats.ago(time, now) == "2 min ago"
    assert formats.ago(formats.time_of(now), now) == "now"


def test_a_long_text_is_shortened_and_kept_beside() -> None:
    cell = formats.cell("word " * 100)
    assert cell.text.endswith("…")
    assert len(cell.text) == 120
    assert cell.note.startswith("word word")


@pytest.mark.parametrize(
    ("task", "text"),
    [
        ('{"question": "1+1"}', "1+1"),
        ('{"a": 1}', '{"a": 1}'),
        ("no JSON", "no JSON"),
        (None, None),
    ],
)
def test_a_task_shows_what_it_asks(task: str | None, text: str | None) -> None:
    assert formats.task_text(task) == text


def test_an_address_has_its_filters() -> None:
    address = Address.read("/runs", [("run", " a b "), ("with", ""), ("page", "2")])
    assert address.query == {"run": "a b", "page": "2"}
    assert address.but(page=None) == "/runs?run=a+b"
    assert address.number("page") == 2
    assert address.number("run") is None
    assert address.choice("run", ["x"], "x") == "x"
    assert address.kept("run") == ()
    assert link("/group", id="&=", none=None) == "/group?id=%26%3D"
