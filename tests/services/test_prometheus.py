"""A real Prometheus scrapes the running service with the configuration that compose gives it."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.demo import answers, free_port
from service.settings import ROOT
from tests.bundle import REQUEST, make_bundle
from tests.serving import Served, served

pytestmark = pytest.mark.services
CONFIGURATION = ROOT / "deploy/prometheus/prometheus.yml"


def program(name: str) -> str:
    """Path of a server's program; its absence is a failure, not a reason to skip."""
    found = shutil.which(name)
    assert found, f"{name} is not installed; install the distribution's package `prometheus`"
    return found


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("scraped")
    with served(make_bundle(folder), folder) as running:
        yield running


@pytest.fixture(scope="module")
def prometheus(live: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prometheus with the project's configuration, pointed at the test's service and scraping often."""
    folder = tmp_path_factory.mktemp("prometheus")
    configuration = yaml.safe_load(CONFIGURATION.read_text())
    configuration["global"]["scrape_interval"] = "1s"
    configuration["scrape_configs"][0]["static_configs"][0]["targets"] = [live.url.removeprefix("http://")]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    port = free_port()
    command = [
        program("prometheus"), f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            live.wait_until(lambda: answers(f"{url}/-/ready"))
            yield url
        finally:
            process.terminate()
            process.wait(20)


def query(prometheus: str, expression: str) -> list[dict[str, Any]]:
    """Ask Prometheus for an instant vector."""
    address = f"{prometheus}/api/v1/query?query={urllib.parse.quote(expression)}"
    with urllib.request.urlopen(address, timeout=10) as answer:
        return list(json.load(answer)["data"]["result"])


def test_the_configuration_is_valid() -> None:
    done = subprocess.run(
        [program("promtool"), "check", "config", str(CONFIGURATION)], capture_output=True, check=False
    )

    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


def test_compose_scrapes_the_port_it_serves() -> None:
    compose = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
    (target,) = yaml.safe_load(CONFIGURATION.read_text())["scrape_configs"][0]["static_configs"][0]["targets"]

    name, port = target.split(":")
    assert name in compose["services"]
    assert port in compose["services"][name]["command"]


def test_a_real_prometheus_reads_every_series_of_the_service(live: Served, prometheus: str) -> None:
    for i in range(20):
        live.post("/predict", REQUEST if i % 4 else {**REQUEST, "carrier": "ZZ"})
    live.post("/predict", b"{")

    def seen() -> bool:
        found = query(prometheus, "sum(understudy_predictions_total)")
        return bool(found) and float(found[0]["value"][1]) >= 20

    end = time.monotonic() + 30
    while not seen() and time.monotonic() < end:
        time.sleep(0.5)

    def total(expression: str) -> float:
        (entry,) = query(prometheus, f"sum({expression})")
        return float(entry["value"][1])

    assert total('up{job="understudy"}') == 1
    assert total('understudy_predictions_total{role="primary",confidence="normal"}') == 15
    assert total('understudy_fallbacks_total{reason="features_invalid"}') == 5
    assert total('understudy_feature_violations_total{feature="carrier_record",kind="missing"}') == 5
    assert total('understudy_requests_total{endpoint="predict",status="400"}') == 1
    assert total("understudy_shadow_sampled_total") == 20
    assert total('understudy_stage_seconds_count{stage="lookup"}') == 20
    assert total('understudy_feature_age_seconds_count{view="origin_weather"}') == 20


def test_the_configuration_names_no_machine(tmp_path: Path) -> None:
    assert "127.0.0.1" not in CONFIGURATION.read_text()
    assert "localhost" not in CONFIGURATION.read_text()
