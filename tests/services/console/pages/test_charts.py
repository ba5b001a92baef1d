"""Options of ECharts: nothing of the log becomes code or markup."""

from __future__ import annotations

from typing import Any

from services.console.pages.blocks import Axis, Chart, Mark, Series
from services.console.pages.drawing.charts import PALETTE, options
from services.console.pages.drawing.components import safe_address

CODE = ":name"
CHART = Chart(
    CODE,
    Axis(CODE, "category"),
    Axis(CODE),
    (
        Series(CODE, ((CODE, 1.0), ("b", None)), band=((CODE, 0.5, 1.5),)),
        Series("<b>two</b>", ((CODE, float("nan")),), "bar", stack=CODE),
    ),
    (Mark(0.5, CODE),),
)


def keys(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [key for name, inner in value.items() for key in [name, *keys(inner)]]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return [key for inner in value for key in keys(inner)] if isinstance(value, list) else []  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def test_no_text_of_the_log_is_a_key() -> None:
    # NiceGUI evaluates the values of keys that begin with a colon.
    assert not [key for key in keys(options(CHART)) if key.startswith(":")]


def test_tooltips_are_drawn_and_not_written_as_markup() -> None:
    tooltip = options(CHART)["tooltip"]
    assert tooltip["renderMode"] == "richText"
    assert "formatter" not in tooltip


def test_a_band_goes_from_its_lower_to_its_upper_end() -> None:
    low, high, line, *_ = options(CHART)["series"]
    assert low["data"] == [[CODE, 0.5]]
    assert high["data"] == [[CODE, 1.0]]
    assert low["stack"] == high["stack"]
    assert line["data"] == [[CODE, 1.0], ["b", None]]


def test_what_is_no_number_is_left_out() -> None:
    assert options(CHART)["series"][3]["data"] == [[CODE, None]]


def test_counts_keep_all_their_digits() -> None:
    values = Series("tokens", (("a", 1_234_567), ("b", 1 / 3)))
    chart = Chart("t", Axis("x", "category"), Axis("y"), (values,))
    assert options(chart)["series"][0]["data"] == [["a", 1_234_567.0], ["b", 0.33333]]


def test_bars_can_lie() -> None:
    lying = options(Chart("t", Axis("x", "category"), Axis("y"), CHART.series[:1], sideways=True))
    assert lying["yAxis"]["type"] == "category"
    assert lying["yAxis"]["inverse"]
    assert lying["series"][2]["data"][0] == [1.0, CODE]


def test_colours_are_distinct() -> None:
    assert len(set(PALETTE)) == len(PALETTE)


def test_addresses_lead_to_the_console_alone() -> None:
    assert safe_address("/runs?run=a") == "/runs?run=a"
    for address in ("javascript:alert(1)", "https://elsewhere", "//elsewhere", None, ""):
        assert safe_address(address) is None
