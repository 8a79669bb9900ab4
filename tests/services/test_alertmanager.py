"""A real failure of the running service reaches Slack and PagerDuty through a real Prometheus and Alertmanager."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.roles import read_roles
from tests.bundle import REQUEST, make_bundle
from tests.services.watching import (
    ALERTMANAGER,
    Mailbox,
    Prometheus,
    alertmanager,
    eventually,
    mailbox,
    program,
    prometheus,
)
from tests.serving import Served, served

pytestmark = pytest.mark.services


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Served]:
    with served(make_bundle(tmp_path / "served"), tmp_path / "served") as running:
        yield running


def alerts(address: str) -> list[dict[str, Any]]:
    """What an Alertmanager has."""
    with urllib.request.urlopen(f"{address}/api/v2/alerts", timeout=10) as answer:
        return list(json.load(answer))


def test_the_configuration_is_valid() -> None:
    done = subprocess.run([program("amtool"), "check-config", str(ALERTMANAGER)], capture_output=True, check=False)

    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


@pytest.mark.parametrize(
    ("labels", "receivers"),
    [("severity=critical", "pagerduty,slack"), ("severity=warning", "slack"), ("severity=other", "slack")],
)
def test_critical_pages_and_everything_is_told(labels: str, receivers: str) -> None:
    command = [program("amtool"), "config", "routes", "test", f"--config.file={ALERTMANAGER}", labels]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.stdout.strip() == receivers


def test_a_primary_that_is_gone_pages_tells_and_is_taken_back(live: Served, tmp_path: Path) -> None:
    for folder in ("alertmanager", "prometheus"):
        (tmp_path / folder).mkdir()
    with (
        mailbox() as box,
        alertmanager(tmp_path / "alertmanager", box.url) as manager,
        prometheus(
            tmp_path / "prometheus", live.url.removeprefix("http://"), "127.0.0.1:1", manager.removeprefix("http://")
        ) as watching,
    ):
        eventually(lambda: watching.total('understudy_runner_up{role="primary"}') == 1)
        package = live.bundle.settings.models_dir / read_roles(live.bundle.settings.models_dir).seats["primary"].package
        package.rename(package.with_name("away"))
        os.kill(live.process("primary"), 9)

        _is_told(box)
        _silences_what_follows(live, watching, manager, box)

        package.with_name("away").rename(package)
        os.kill(live.process("primary"), 9)
        eventually(lambda: [m for m in box.at("/pagerduty") if m["event_action"] == "resolve"])
        eventually(lambda: [m for m in box.at("/slack") if "[resolved] RunnerDown" in m["attachments"][0]["title"]])


def _is_told(box: Mailbox) -> None:
    (page, *_) = eventually(lambda: [m for m in box.at("/pagerduty") if m["event_action"] == "trigger"])
    (note, *_) = eventually(lambda: [m for m in box.at("/slack") if "RunnerDown" in m["attachments"][0]["title"]])
    message = note["attachments"][0]

    assert page["routing_key"] == "the-routing-key"
    assert page["payload"]["severity"] == "critical"
    assert page["payload"]["summary"] == "[critical] RunnerDown: The primary has no model that runs"
    assert page["links"] == [{"href": "https://example.com/understudy/docs/alerts.md#runnerdown", "text": "runbook"}]
    assert message["title"] == page["payload"]["summary"]
    assert message["title_link"] == page["links"][0]["href"]
    assert "the runner of the primary has been gone, or without a model" in message["text"]
    assert message["color"] == "danger"


def _silences_what_follows(live: Served, watching: Prometheus, manager: str, box: Mailbox) -> None:
    def fallback_share() -> list[dict[str, Any]]:
        for _ in range(5):
            assert live.post("/predict", REQUEST)[1]["role"] == "fallback"
        return [a for a in alerts(manager) if a["labels"]["alertname"] == "FallbackShare"]

    (silenced, *_) = eventually(fallback_share)

    assert "FallbackShare" in watching.firing()
    assert silenced["status"]["state"] == "suppressed"
    assert not [m for m in box.at("/slack") if "FallbackShare" in m["attachments"][0]["title"]]


def test_a_secret_is_never_in_the_configuration() -> None:
    text = ALERTMANAGER.read_text()

    assert yaml.safe_load(text)["receivers"]
    assert "hooks.slack.com" not in text
