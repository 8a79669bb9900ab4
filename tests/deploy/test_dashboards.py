"""The committed dashboards are what the code makes, and have what Grafana and a reader need."""

from __future__ import annotations

import json
import re
from itertools import combinations
from typing import Any

import pytest
import yaml

from deploy.dashboards import FOLDER, rendered
from service.settings import ROOT

PAGES: dict[str, dict[str, Any]] = {path.name: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
PANELS = [
    pytest.param(page, panel, id=f"{page}: {panel['title']}")
    for page, content in PAGES.items()
    for panel in content["panels"]
    if panel["type"] != "row"
]


def test_the_files_are_what_the_code_makes() -> None:
    assert {path.name: path.read_text() for path in FOLDER.glob("*")} == rendered(), "run `make dashboards`"


def test_there_is_a_dashboard_for_everything_that_was_asked_for() -> None:
    assert set(PAGES) == {"service.json", "features.json", "predictions.json", "shadow.json", "quality.json"}


@pytest.mark.parametrize("page", sorted(PAGES))
def test_a_dashboard_can_be_addressed_and_pointed_at_another_prometheus(page: str) -> None:
    content = PAGES[page]
    variables = {variable["name"]: variable for variable in content["templating"]["list"]}

    assert content["uid"] == f"understudy-{page.removesuffix('.json')}"
    assert len(content["uid"]) <= 40
    assert content["editable"] is False
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    assert variables["instance"]["datasource"]["uid"] == "${datasource}"


@pytest.mark.parametrize("page", sorted(PAGES))
def test_panels_do_not_overlap_and_lie_on_the_grid(page: str) -> None:
    places = [(panel["title"], panel["gridPos"]) for panel in PAGES[page]["panels"]]

    assert len({panel["id"] for panel in PAGES[page]["panels"]}) == len(places)
    for title, place in places:
        assert place["x"] + place["w"] <= 24, title
        assert place["w"] > 0, title
        assert place["h"] > 0, title
    for (one, a), (other, b) in combinations(places, 2):
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, f"{one} lies on {other}"


@pytest.mark.parametrize(("page", "panel"), PANELS)
def test_a_panel_tells_what_to_look_for_and_in_which_unit(page: str, panel: dict[str, Any]) -> None:
    defaults = panel["fieldConfig"]["defaults"]

    assert len(panel["description"]) > 20
    assert panel["description"].endswith(".")
    assert defaults["unit"]
    assert defaults["thresholds"]["mode"] == "absolute"
    assert defaults["thresholds"]["steps"][0]["value"] is None
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


@pytest.mark.parametrize(("page", "panel"), PANELS)
def test_a_query_has_a_legend_and_uses_labels_its_result_has(page: str, panel: dict[str, Any]) -> None:
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for target in panel["targets"]:
        kept = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", target["expr"]))))
        aggregated = re.search(r"\b(sum|max|min|avg|count)\b", target["expr"])
        assert target["legendFormat"]
        assert target["datasource"]["uid"] == "${datasource}"
        if aggregated:
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= kept


def test_grafana_is_provisioned_with_what_compose_mounts() -> None:
    provisioning = ROOT / "deploy/grafana/provisioning"
    compose = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]
    (provider,) = yaml.safe_load((provisioning / "dashboards/understudy.yml").read_text())["providers"]
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    mounts = dict(mount.split(":")[:2] for mount in compose["grafana"]["volumes"])

    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    assert compose["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == (
        f"{provider['options']['path']}/service.json"
    )
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in compose
