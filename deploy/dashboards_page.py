"""A dashboard's frame: name, variables, links, and where its panels lie."""

from __future__ import annotations

from collections.abc import Sequence

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import (
    Dashboard,
    DashboardCursorSync,
    DashboardLinkType,
    GridPos,
    Panel,
    RowPanel,
    VariableOption,
    VariableRefresh,
)

from deploy.dashboards_kit import SOURCE

_COLUMNS = 24
_TAG = "understudy"


class Page:
    """Lays panels out from left to right; a row heading, or a full line, begins anew.

    Args:
        name: last part of the dashboard's uid and its file's name.
        back: where its time range begins.
    """

    def __init__(self, name: str, title: str, question: str, *, back: str = "now-6h") -> None:
        self.name = name
        self._number = self._x = self._y = self._line = 0
        self._builder = (
            dashboard.Dashboard(f"Understudy: {title}")
            .uid(f"understudy-{name}")
            .description(question)
            .tags([_TAG])
            .readonly()
            .refresh("30s")
            .time(back, "now")
            .timezone("browser")
            .tooltip(DashboardCursorSync.CROSSHAIR)
            .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
            .with_variable(
                dashboard.QueryVariable("instance")
                .label("instance")
                .datasource(SOURCE)
                .query('label_values(up{job="understudy"}, instance)')
                .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
                .current(VariableOption(text="All", value="$__all"))
                .multi(True)
                .include_all(True)
                .all_value(".*")
            )
            .link(
                dashboard.DashboardLink("Understudy")
                .type(DashboardLinkType.DASHBOARDS)
                .tags([_TAG])
                .as_dropdown(True)
                .keep_time(True)
            )
        )

    def add(self, *parts: Builder[Panel] | dashboard.Row) -> None:
        """Put panels, and row headings among them, after what is there."""
        for part in parts:
            if isinstance(part, dashboard.Row):
                self._break()
                self._builder.with_row(part.id(self._next()).grid_pos(GridPos(h=1, w=_COLUMNS, x=0, y=self._y)))
                self._y += 1
            else:
                self._place(part)

    def build(self) -> Dashboard:
        """Return the dashboard."""
        return self._builder.build()

    def _place(self, part: Builder[Panel]) -> None:
        panel = part.build()
        place = panel.grid_pos or GridPos()
        if self._x + place.w > _COLUMNS:
            self._break()
        place.x, place.y, panel.id_val = self._x, self._y, self._next()
        self._x, self._line = self._x + place.w, max(self._line, place.h)
        self._builder.with_panel(_Built(panel))

    def _break(self) -> None:
        self._x, self._y, self._line = 0, self._y + self._line, 0

    def _next(self) -> int:
        self._number += 1
        return self._number


class _Built(Builder[Panel]):
    def __init__(self, panel: Panel) -> None:
        self._panel = panel

    def build(self) -> Panel:
        return self._panel


def panels(made: Dashboard) -> Sequence[Panel | RowPanel]:
    """Everything that lies on a dashboard."""
    return made.panels or []
