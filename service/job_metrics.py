"""What scheduled jobs measured, for Prometheus: ``GET /jobs/metrics``.

Each job writes one file of the text format (``prometheus_client.write_to_textfile``) into ``<state>/monitoring``; the
service, which is scraped anyway, hands them out. A job that never ran has no series, and how old a file is stays
visible in the job's own timestamps.
"""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

# No job writes more than a few lines per feature; more than this is not one of their files.
_LARGEST = 4_000_000


def job_metrics_app(folder: Path) -> Starlette:
    """Make the route ``GET /metrics`` over the ``*.prom`` files of a folder."""

    async def metrics(_: Request) -> Response:
        return Response(await run_in_threadpool(gathered, folder), media_type=CONTENT_TYPE_LATEST)

    return Starlette(routes=[Route("/metrics", metrics, methods=["GET"])])


def gathered(folder: Path) -> bytes:
    """Return the series of all files in the text format; ``understudy_job_file_damaged`` names what cannot be read.

    A series that two files have keeps the value of the file whose name sorts first.
    """
    registry = CollectorRegistry()
    registry.register(_Files(folder))
    return bytes(generate_latest(registry))


class _Files(Collector):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def describe(self) -> list[Metric]:
        return []  # read anew at every scrape

    def collect(self) -> list[Metric]:
        families: dict[str, Metric] = {}
        damaged = GaugeMetricFamily(
            "understudy_job_file_damaged", "Files of series that could not be read (1).", labels=["file"]
        )
        for path in sorted(self._folder.glob("*.prom")):
            found = _parsed(path)
            damaged.add_metric([path.name], float(found is None))
            for family in found or ():
                mine = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                known = {(sample.name, *sorted(sample.labels.items())) for sample in mine.samples}
                mine.samples += [s for s in family.samples if (s.name, *sorted(s.labels.items())) not in known]
        return [*families.values(), damaged]


def _parsed(path: Path) -> list[Metric] | None:
    try:
        if path.stat().st_size > _LARGEST:
            return None
        return list(text_string_to_metric_families(path.read_text()))
    except (OSError, ValueError, KeyError, IndexError):
        return None
