"""Plots as SVG that stands inside the page: no script, no style and no address of its own.

pygal lays out axes and shapes; colours and fonts come from the page's style sheet, so that one
drawing is readable on light, on dark and on paper.
"""

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any
from xml.etree.ElementTree import Element

import pygal
from pygal.style import Style

Series = Sequence[tuple[str, Sequence[float | None]]]

COLOURS = 8
"""Colours in the style sheet; further series start again."""

_LABELS_MAX = 12
_DOTS_MAX = 30
_STYLE = Style(
    font_family="sans-serif", label_font_size=12, major_label_font_size=12, title_font_size=13
)


def lines(
    rounds: Sequence[int], series: Series, *, unit: str, dashed: frozenset[int] = frozenset()
) -> str:
    """A line for each series over the rounds; a None leaves a gap.

    Args:
        dashed: indices of series that are limits, drawn dashed and without dots.
    """
    values = [value for _, row in series for value in row if value is not None]
    logarithmic = bool(values) and min(values) > 0 and max(values) > 50 * min(values)
    chart = pygal.Line(
        **_options(rounds, unit),
        logarithmic=logarithmic,
        dots_size=3,
        show_dots=len(rounds) <= _DOTS_MAX,
        allow_interruptions=True,
    )
    if logarithmic:
        chart.config.y_labels = _decades(min(values), max(values))
        # pygal leaves out a label that stands exactly at the top.
        chart.config.range = (chart.config.y_labels[0], 1.05 * chart.config.y_labels[-1])
    else:
        chart.config.range = (0, _above(max(values, default=1.0)))
    return _draw(chart, rounds, series, _number, dashed)


def stacked(rounds: Sequence[int], series: Series, *, unit: str) -> str:
    """Bars that stand on each other, one pile a round."""
    chart = pygal.StackedBar(**_options(rounds, unit))
    piles = [
        sum(value or 0 for value in pile) for pile in zip(*(row for _, row in series), strict=True)
    ]
    chart.config.range = (0, _above(max(piles, default=1.0)))
    return _draw(chart, rounds, series, _number)


def bars(
    names: Sequence[object], series: Series, *, unit: str, x_title: str = "round", top: float = 0
) -> str:
    """Bars side by side for each name."""
    options = _options([str(name) for name in names], unit) | {"x_title": x_title}
    chart = pygal.Bar(**options)
    values = [value for _, row in series for value in row if value is not None]
    chart.config.range = (0, top or _above(max(values, default=1.0)))
    return _draw(chart, names, series, _number)


def _options(names: Sequence[object], unit: str) -> dict[str, Any]:
    return {
        "style": _STYLE,
        "js": [],
        "disable_xml_declaration": True,
        "width": 560,
        "height": 280,
        "margin": 6,
        "show_legend": False,
        "x_title": "round",
        "y_title": unit,
        "x_labels": [str(name) for name in names],
        "x_labels_major_every": max(1, math.ceil(len(names) / _LABELS_MAX)),
        "show_minor_x_labels": len(names) <= _LABELS_MAX,
        "truncate_label": 14,
        "max_scale": 6,
    }


def _above(value: float) -> float:
    return value * 1.08 if value > 0 else 1.0


def _decades(low: float, high: float) -> list[float]:
    """Labels of a logarithmic axis: powers of ten, from below `low` to above `high`."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [10.0**power for power in range(first, last + 1)]


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def _draw(
    chart: Any,
    names: Sequence[object],
    series: Series,
    formatter: Callable[[float | None], str],
    dashed: frozenset[int] = frozenset(),
) -> str:
    chart.config.value_formatter = formatter
    for name, row in series:
        chart.add(name, list(row))
    chart.add_xml_filter(lambda root: _bare(root, dashed))
    svg: str = chart.render(is_unicode=True)
    svg = svg.replace(' xmlns="http://www.w3.org/2000/svg"', "")
    label = f"{', '.join(name for name, _ in series)} by {chart.config.x_title}"
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
    return f"{svg}{_legend(series, dashed)}"


def _legend(series: Series, dashed: frozenset[int]) -> str:
    items = "".join(
        f'<li><i class="swatch s-{index % COLOURS}{" dashed" if index in dashed else ""}"></i>'
        f"{escape(name)}</li>"
        for index, (name, _) in enumerate(series)
    )
    return f'<ul class="legend">{items}</ul>'


def _bare(root: Element, dashed: frozenset[int]) -> Element:
    """Keep only shapes and words; turn pygal's hidden values into tooltips of the browser's own."""
    for heading in root.findall("title"):
        root.remove(heading)
    for parent in list(root.iter()):
        for child in list(parent):
            if not isinstance(child.tag, str) or child.tag in ("script", "style"):
                parent.remove(child)
            elif child.tag == "desc":
                parent.remove(child)
                if child.get("class") == "value":
                    title = Element("title")
                    title.text = child.text
                    parent.append(title)
        parent.attrib.pop("id", None)
        if classes := parent.get("class"):
            parent.set("class", " ".join(_recoloured(name, dashed) for name in classes.split()))
    return root


def _recoloured(name: str, dashed: frozenset[int]) -> str:
    stem, _, number = name.partition("-")
    if stem == "color" and number.isdigit():
        return f"s-{int(number) % COLOURS}"
    if stem == "serie" and number.isdigit() and int(number) in dashed:
        return "dashed"
    return name
