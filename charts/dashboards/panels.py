"""What the five dashboards are built from: panels whose text says what they show and since when it
is too much. A panel's expression asks for one release, by the variables `job` and `namespace`."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    GraphTresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardLinkType,
    DataSourceRef,
    FieldColorModeId,
    Threshold,
    ThresholdsMode,
    VariableHide,
    VariableRefresh,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

ONE: Final = 'job="$job",namespace=~"$namespace"'
"""Selects the release that the dashboard is looking at."""

SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")

Colour = Literal["green", "yellow", "red", "blue"]
Steps = Sequence[tuple[float | None, Colour]]

PLAIN: Final[Steps] = ((None, "blue"),)
"""A figure that is neither good nor bad."""

NONE_IS_GOOD: Final[Steps] = ((None, "green"), (1, "red"))


@dataclass(frozen=True, slots=True)
class Query:
    """An expression, and what its lines are called in the legend."""

    expression: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Attributes:
        text: what it shows and what to make of it, in sentences.
        unit: Grafana's name of the unit.
        steps: from which value on it has which colour; None is the lowest.
        kind: a figure of now, lines over time, or a table of now.
        min: where the axis of lines begins; None where they may be below 0.
        span: columns of 24.
    """

    title: str
    text: str
    queries: Sequence[Query]
    unit: str = "short"
    steps: Steps = PLAIN
    kind: Literal["figure", "lines", "table"] = "lines"
    span: int = 12
    height: int = 8
    decimals: int | None = None
    max: float | None = None
    min: float | None = 0


def figure(
    title: str,
    expression: str,
    text: str,
    unit: str = "short",
    steps: Steps = PLAIN,
    decimals: int | None = None,
) -> Panel:
    """A single number of now."""
    return Panel(title, text, (Query(expression, title),), unit, steps, "figure", 4, 4, decimals)


def lines(
    title: str,
    expression: str,
    legend: str,
    text: str,
    unit: str = "short",
    steps: Steps = PLAIN,
    max_: float | None = None,
    min_: float | None = 0,
) -> Panel:
    """Lines over time, half as wide as the page."""
    return Panel(title, text, (Query(expression, legend),), unit, steps, max=max_, min=min_)


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, slots=True)
class Page:
    """One dashboard; `uid` is its address in Grafana and never changes."""

    uid: str
    title: str
    text: str
    rows: Sequence[Row]


def build(page: Page) -> str:
    """The dashboard as Grafana's JSON."""
    made = (
        dashboard.Dashboard(page.title)
        .uid(page.uid)
        .description(page.text)
        .tags(["feddp"])
        .readonly()
        .timezone("browser")
        .time("now-6h", "now")
        .refresh("30s")
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
        )
        .with_variable(_variable("job", "Release", "label_values(feddp_leading, job)"))
        .with_variable(
            _variable(
                "namespace", "Namespace", 'label_values(feddp_leading{job="$job"}, namespace)'
            )
            # Outside Kubernetes there is no such label, and "all" matches that, too.
            .include_all(True)
            .all_value(".*")
        )
        .link(
            dashboard.DashboardLink("feddp")
            .type(DashboardLinkType.DASHBOARDS)
            .tags(["feddp"])
            .include_vars(True)
            .keep_time(True)
            .as_dropdown(True)
        )
    )
    numbers = itertools.count(1)
    for row in page.rows:
        made = made.with_row(dashboard.Row(row.title).id(next(numbers)))
        for panel in row.panels:
            made = made.with_panel(_panel(panel).id(next(numbers)))
    return json.dumps(json.loads(JSONEncoder(sort_keys=True).encode(made.build())), indent=2) + "\n"


def _variable(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .query(query)
        .datasource(SOURCE)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .hide(VariableHide.DONT_HIDE)
    )


def _panel(panel: Panel) -> stat.Panel | timeseries.Panel | table.Panel:
    made: stat.Panel | timeseries.Panel | table.Panel
    if panel.kind == "figure":
        made = (
            stat.Panel()
            .graph_mode(BigValueGraphMode.NONE)
            .color_mode(BigValueColorMode.VALUE)
            .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        )
    elif panel.kind == "table":
        made = table.Panel().show_header(True)
    else:
        made = (
            timeseries.Panel()
            .fill_opacity(10)
            .legend(
                common.VizLegendOptions()
                .display_mode(LegendDisplayMode.TABLE)
                .placement(LegendPlacement.BOTTOM)
                .show_legend(True)
                .calcs(["lastNotNull", "max"])
            )
            .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
        )
        if panel.min is not None:
            made = made.min(panel.min)
        if len(panel.steps) > 1:
            made = made.thresholds_style(
                common.GraphThresholdsStyleConfig().mode(GraphTresholdsStyleMode.DASHED)
            )
    made = (
        made.title(panel.title)
        .description(panel.text)
        .unit(panel.unit)
        .datasource(SOURCE)
        .span(panel.span)
        .height(panel.height)
        .thresholds(
            dashboard.ThresholdsConfig()
            .mode(ThresholdsMode.ABSOLUTE)
            .steps([Threshold(value=value, color=colour) for value, colour in panel.steps])
        )
    )
    if panel.kind != "lines":
        made = made.color_scheme(dashboard.FieldColor().mode(FieldColorModeId.THRESHOLDS))
    if panel.decimals is not None:
        made = made.decimals(panel.decimals)
    if panel.max is not None:
        made = made.max(panel.max)
    for number, query in enumerate(panel.queries):
        asked = (
            prometheus.Dataquery()
            .expr(query.expression)
            .legend_format(query.legend)
            .ref_id("ABCDEFGH"[number])
        )
        if panel.kind == "lines":
            made = made.with_target(asked.range())
        elif panel.kind == "table":
            made = made.with_target(asked.instant().format(PromQueryFormat.TABLE))
        else:
            made = made.with_target(asked.instant())
    return made
