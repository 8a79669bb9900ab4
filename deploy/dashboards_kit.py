"""Panels of the dashboards: each says in words what to look for, and shows the limit its alert has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    timeseries,
)
from grafana_foundation_sdk.models.common import (
    GraphTresholdsStyleMode,
    HeatmapCellLayout,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMapping,
    ValueMappingResult,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
# What a panel shows is restricted to the instances chosen on top of the page.
HERE = 'job="understudy", instance=~"$instance"'
GREEN, ORANGE, RED, GREY = "green", "orange", "red", "#8e8e8e"


@dataclass(frozen=True)
class Query:
    """A PromQL expression and what its lines are called (``{{label}}`` is replaced)."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Show:
    """What every panel has.

    Attributes:
        unit: Grafana's name of the unit.
        limit: value from which it is red; None for no limit.
        below: whether it is red below the limit instead.
        width: columns of 24.
        height: rows.
    """

    unit: str
    limit: float | None = None
    below: bool = False
    width: int = 8
    height: int = 8


def _thresholds(show: Show) -> dashboard.ThresholdsConfig:
    steps = [Threshold(value=None, color=GREEN)]
    if show.limit is not None:
        first, second = (RED, GREEN) if show.below else (GREEN, RED)
        steps = [Threshold(value=None, color=first), Threshold(value=show.limit, color=second)]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def _targets(queries: Sequence[Query], *, instant: bool = False) -> list[prometheus.Dataquery]:
    made = []
    for number, query in enumerate(queries):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(chr(ord("A") + number))
        made.append((target.instant() if instant else target.range()).datasource(SOURCE))
    return made


def _legend() -> common.VizLegendOptions:
    return (
        common.VizLegendOptions()
        .display_mode(LegendDisplayMode.LIST)
        .placement(LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs([])
    )


def lines(
    title: str, look_for: str, queries: Sequence[Query], show: Show, *, stacked: bool = False
) -> timeseries.Panel:
    """Make a panel of lines over time, the limit as a dashed line."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(look_for)
        .datasource(SOURCE)
        .unit(show.unit)
        .span(show.width)
        .height(show.height)
        .targets(list(_targets(queries)))
        .thresholds(_thresholds(show))
        .legend(_legend())
        .min(0)
        .line_width(1)
        .fill_opacity(30 if stacked else 8)
    )
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL).group("A"))
    if show.limit is not None:
        panel = panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphTresholdsStyleMode.DASHED))
    return panel


def number(title: str, look_for: str, query: Query, show: Show) -> stat.Panel:
    """Make a panel of one number, red beyond its limit, grey words where there is no data."""
    return (
        stat.Panel()
        .title(title)
        .description(look_for)
        .datasource(SOURCE)
        .unit(show.unit)
        .span(show.width)
        .height(show.height)
        .targets(list(_targets([query])))
        .thresholds(_thresholds(show))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .no_value("no data")
    )


def bars(title: str, look_for: str, query: Query, show: Show) -> bargauge.Panel:
    """Make a panel with one horizontal bar for each label, as it is now."""
    return (
        bargauge.Panel()
        .title(title)
        .description(look_for)
        .datasource(SOURCE)
        .unit(show.unit)
        .min(0)
        .span(show.width)
        .height(show.height)
        .targets(list(_targets([query], instant=True)))
        .thresholds(_thresholds(show))
        .orientation(VizOrientation.HORIZONTAL)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .no_value("no data")
    )


def spread(title: str, look_for: str, query: Query, show: Show) -> heatmap.Panel:
    """Make a panel of a histogram over time: the darker, the more."""
    target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id("A").range()
    return (
        heatmap.Panel()
        .title(title)
        .description(look_for)
        .datasource(SOURCE)
        .unit(show.unit)
        .span(show.width)
        .height(show.height)
        .targets([target.format(PromQueryFormat.HEATMAP).datasource(SOURCE)])
        .thresholds(_thresholds(show))
        .calculate(False)
        .rows_frame(heatmap.RowsHeatmapOptions().layout(HeatmapCellLayout.AUTO))
        .color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Blues").steps(32))
    )


def states(
    title: str, look_for: str, query: Query, names: Sequence[tuple[str, str]], show: Show
) -> statetimeline.Panel:
    """Make a panel of states over time; ``names`` are word and colour of 0, 1, 2, ..."""
    words: list[ValueMapping] = [
        ValueMap(options={str(i): ValueMappingResult(text=t, color=c, index=i) for i, (t, c) in enumerate(names)})
    ]
    return (
        statetimeline.Panel()
        .title(title)
        .description(look_for)
        .datasource(SOURCE)
        .unit(show.unit)
        .span(show.width)
        .height(show.height)
        .targets(list(_targets([query])))
        .thresholds(_thresholds(show))
        .mappings(words)
        .legend(_legend())
        .merge_values(True)
    )
