"""Turns a chart into options of ECharts.

Keys of the options are fixed and never come from data: NiceGUI evaluates the values of keys that
begin with a colon as JavaScript. Tooltips are drawn, not written as markup. Colours of text and
lines are CSS variables, so that a chart follows the theme.
"""

from __future__ import annotations

import math
from typing import Any

from services.console.pages.blocks import Axis, Chart, Mark, Point, Series

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A7F00", "#7F7F7F")
"""Okabe and Ito's colours, which the colour-blind can tell apart, in an order that begins with
those that are clear on light and on dark. Their yellow is darker here, and their black a grey."""

_SYMBOLS = ("circle", "rect", "triangle", "diamond", "emptyCircle", "emptyRect", "emptyTriangle")
"""Series differ by symbols, too."""

_FONT = "system-ui, sans-serif"
"""The page's font: ECharts measures texts before they are in the page."""

_INK = "var(--ink)"
_QUIET = "var(--quiet)"
_LINE = "var(--line)"
_FEW = 60
"""Points up to which each has its symbol."""


def options(chart: Chart) -> dict[str, Any]:
    """The options of a chart."""
    shown = [series.name for series in chart.series if not series.hidden]
    has_legend = chart.legend or len(shown) > 1
    x, y = _axis(chart.x, chart, is_x=True), _axis(chart.y, chart, is_x=False)
    if chart.sideways:
        x, y = y, x | {"inverse": True}
    return {
        "animation": False,
        "color": list(PALETTE),
        "textStyle": {"fontFamily": _FONT, "color": _INK},
        "grid": {
            "left": 12,
            "right": 18,
            "top": 40 if has_legend else 16,
            "bottom": 12,
            "outerBoundsMode": "same",
        },
        "legend": {
            "show": has_legend,
            "type": "scroll",
            "top": 0,
            "left": 8,
            "right": 8,
            "data": shown,
            "textStyle": {"color": _INK},
            "pageTextStyle": {"color": _INK},
            "pageIconColor": _INK,
            "pageIconInactiveColor": _LINE,
            "inactiveColor": _QUIET,
        },
        "tooltip": {
            "trigger": "axis",
            "renderMode": "richText",
            "confine": True,
            "backgroundColor": "#1f2328",
            "borderWidth": 0,
            "textStyle": {"color": "#ffffff", "fontSize": 12},
            "axisPointer": {"type": "shadow" if _is_bars(chart) else "line"},
        },
        "xAxis": x,
        "yAxis": y,
        "series": [
            option
            for number, series in enumerate(chart.series)
            for option in _series(series, number, chart)
        ]
        + [_marks(chart.marks, chart.sideways)],
    }


def _is_bars(chart: Chart) -> bool:
    return any(series.kind == "bar" for series in chart.series)


def _axis(axis: Axis, chart: Chart, *, is_x: bool) -> dict[str, Any]:
    lies = is_x != chart.sideways
    option: dict[str, Any] = {
        "type": axis.kind,
        "name": axis.label,
        "nameLocation": "middle",
        "nameGap": 28 if lies else 50,
        "nameTextStyle": {"color": _QUIET},
        "axisLabel": {"color": _INK, "hideOverlap": True, "fontSize": 12},
        "axisLine": {"show": is_x, "onZero": False, "lineStyle": {"color": _QUIET}},
        "axisTick": {"show": is_x, "lineStyle": {"color": _QUIET}},
        "splitLine": {"show": not is_x, "lineStyle": {"color": _LINE}},
    }
    if axis.kind in ("value", "log"):
        option["scale"] = not _is_bars(chart) or is_x
    if axis.whole:
        option["minInterval"] = 1
    if axis.low is not None:
        option["min"] = axis.low
    if axis.high is not None:
        option["max"] = axis.high
    if axis.kind == "category":
        option["data"] = _categories(chart)
        option["axisLabel"]["width"] = 150
        option["axisLabel"]["overflow"] = "truncate"
    return option


def _categories(chart: Chart) -> list[str]:
    """The categories of all series, in the order in which they come."""
    names = (str(x) for series in chart.series for x, _ in series.points)
    return list(dict.fromkeys(names))


def _series(series: Series, number: int, chart: Chart) -> list[dict[str, Any]]:
    index = number if series.colour is None else series.colour
    colour = PALETTE[index % len(PALETTE)]
    option: dict[str, Any] = {
        "name": series.name,
        "type": series.kind,
        "data": [_point(point, chart) for point in series.points],
        "itemStyle": {"color": "transparent" if series.hidden else colour},
        "silent": series.hidden,
    }
    if series.kind == "line":
        option |= {
            "symbol": _SYMBOLS[index % len(_SYMBOLS)],
            "symbolSize": 6,
            "showSymbol": len(series.points) <= _FEW,
            "lineStyle": {
                "color": colour,
                "width": 2,
                "type": "dashed" if series.dashed else "solid",
            },
            "connectNulls": False,
        }
    elif series.kind == "scatter":
        option |= {"symbol": _SYMBOLS[index % len(_SYMBOLS)], "symbolSize": 7}
    else:
        option["barMaxWidth"] = 42
    if series.hidden:
        option["tooltip"] = {"show": False}
    if series.stack:
        option["stack"] = series.stack
    return [*_band(series, colour), option]


def _band(series: Series, colour: str) -> list[dict[str, Any]]:
    """An invisible line at the lower end, and on it an area up to the upper end."""
    if not series.band:
        return []
    shared: dict[str, Any] = {
        "type": "line",
        "stack": f"band of {series.name}",
        "stackStrategy": "all",
        "symbol": "none",
        "silent": True,
        "lineStyle": {"opacity": 0},
        "tooltip": {"show": False},
        "itemStyle": {"color": colour},
    }
    return [
        shared | {"name": "lower end", "data": [[x, _rounded(low)] for x, low, _ in series.band]},
        shared
        | {
            "name": "interval",
            "data": [[x, _rounded(high - low)] for x, low, high in series.band],
            "areaStyle": {"color": colour, "opacity": 0.18},
        },
    ]


def _point(point: Point, chart: Chart) -> list[float | str | None]:
    x, y = point
    value = [x, _rounded(y)]
    return value[::-1] if chart.sideways else value


def _rounded(value: float | None) -> float | None:
    """A value with five digits, a whole number with all: a tooltip shows it as it is."""
    if value is None or not math.isfinite(value):
        return None
    return float(value) if float(value).is_integer() else float(f"{value:.5g}")


def _marks(marks: tuple[Mark, ...], sideways: bool) -> dict[str, Any]:
    """A series without points that holds the lines across the chart."""
    return {
        "name": "marks",
        "type": "line",
        "data": [],
        "silent": True,
        "tooltip": {"show": False},
        "markLine": {
            "silent": True,
            "symbol": "none",
            "lineStyle": {"color": _QUIET, "type": "dotted"},
            "label": {"color": _INK, "position": "insideStartTop", "formatter": "{b}"},
            "data": [
                {
                    "name": mark.label,
                    "yAxis" if (mark.axis == "y") != sideways else "xAxis": mark.value,
                }
                for mark in marks
            ],
        },
    }
