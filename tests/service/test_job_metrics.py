"""What jobs wrote is handed out as it is; a damaged file costs itself only."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
from prometheus_client import CollectorRegistry, Gauge, write_to_textfile
from prometheus_client.parser import text_string_to_metric_families

from service.job_metrics import gathered, job_metrics_app


def write(path: Path, name: str, value: float, **labels: str) -> None:
    registry = CollectorRegistry()
    gauge = Gauge(name, "Something.", list(labels), registry=registry)
    (gauge.labels(**labels) if labels else gauge).set(value)
    write_to_textfile(str(path), registry)


def series(text: bytes) -> dict[tuple[str, ...], float]:
    families = text_string_to_metric_families(text.decode())
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def test_series_of_several_jobs_come_back_with_their_labels(tmp_path: Path) -> None:
    write(tmp_path / "a.prom", "understudy_drift_psi", 0.25, feature="x")
    write(tmp_path / "b.prom", "understudy_label_coverage", 0.9)

    found = series(gathered(tmp_path))

    assert found[("understudy_drift_psi", "x")] == 0.25
    assert found[("understudy_label_coverage",)] == 0.9
    assert found[("understudy_job_file_damaged", "a.prom")] == 0


def test_a_damaged_file_is_named_and_the_others_are_there(tmp_path: Path) -> None:
    write(tmp_path / "a.prom", "understudy_label_coverage", 0.9)
    (tmp_path / "b.prom").write_bytes(b"\xff\xfe{{{ 3 4 5")

    found = series(gathered(tmp_path))

    assert found[("understudy_job_file_damaged", "b.prom")] == 1
    assert found[("understudy_label_coverage",)] == 0.9


def test_a_series_in_two_files_is_told_once(tmp_path: Path) -> None:
    write(tmp_path / "a.prom", "understudy_label_coverage", 0.9)
    write(tmp_path / "b.prom", "understudy_label_coverage", 0.1)

    assert gathered(tmp_path).count(b"\nunderstudy_label_coverage ") == 1
    assert series(gathered(tmp_path))[("understudy_label_coverage",)] == 0.9


def test_without_any_job_there_is_an_empty_answer(tmp_path: Path) -> None:
    async def ask() -> httpx.Response:
        app = job_metrics_app(tmp_path / "nowhere")
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.get("/metrics")

    answer = asyncio.run(ask())

    assert answer.status_code == 200
    assert series(answer.content) == {}
