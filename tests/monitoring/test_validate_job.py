"""Logged vectors meet the suite that training rows meet, within production's tolerances."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from monitoring import validate_job
from tests.bundle import settings_in
from tests.monitoring.logs import START, Logs, campaign

DAYS = 3


@pytest.fixture(scope="module")
def logs() -> Logs:
    return campaign(600, days=DAYS)


def validated(
    logs: Logs, folder: Path, monkeypatch: pytest.MonkeyPatch, days: float = DAYS, window: str = "7d"
) -> tuple[int, Path]:
    """Write logs and validate them as of some days after their start; return exit code and page."""
    settings = settings_in(folder, clock=(START + timedelta(days=days)).isoformat())
    monkeypatch.setattr(validate_job, "settings", lambda: settings)
    code = validate_job.main(["--logs", str(logs.write(folder / "logs")), "--window", window])
    return code, settings.state_dir / "validation" / "vectors" / "index.html"


def spoiled(logs: Logs, share: float, **values: Any) -> Logs:
    """Logs in which the first records' vectors hold other values."""
    count = int(share * len(logs.predictions))
    changed = [{**line, "vector": {**line["vector"], **values}} for line in logs.predictions[:count]]
    return Logs([*changed, *logs.predictions[count:]], logs.shadow, logs.labels)


def last_line(said: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found


def test_good_vectors_pass_without_label(
    logs: Logs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, page = validated(logs, tmp_path, monkeypatch)

    result = last_line(capsys.readouterr().out)
    assert (code, result["failed"], result["rows"], result["docs"]) == (0, 0, 600, str(page))
    assert "humid" in page.read_text()
    assert "#section" in page.read_text()


def test_a_value_outside_is_borne_in_few_vectors_and_named_in_many(
    logs: Logs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few, _ = validated(spoiled(logs, 0.005, humid=500.0), tmp_path / "few", monkeypatch)
    many, _ = validated(spoiled(logs, 0.05, humid=500.0), tmp_path / "many", monkeypatch)

    said = capsys.readouterr()
    assert (few, many) == (0, 1)
    assert "validate: humid: 30 rows are not from 0 to 100 (r000000: 500.0, r000001: 500.0, r000002: 500.0)" in said.err
    assert last_line(said.out)["failed"] == 1


def test_a_lookup_that_finds_nothing_is_named(
    logs: Logs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = validated(spoiled(logs, 1.0, temp=None, precip=None), tmp_path, monkeypatch)

    said = capsys.readouterr().err
    assert code == 1
    assert "temp: 600 rows are null (at least 1 % must be known)" in said
    assert "precip: 600 rows are null (at least 80 % must be known)" in said


def test_only_the_window_counts_and_a_log_that_ended_is_stale(
    logs: Logs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = validated(logs, tmp_path / "day", monkeypatch, window="25h")
    assert (code, last_line(capsys.readouterr().out)["rows"]) == (0, 208)

    code, _ = validated(logs, tmp_path / "stale", monkeypatch, days=DAYS + 2)
    assert (code, last_line(capsys.readouterr().out)["failed"]) == (1, 1)

    code, _ = validated(Logs(), tmp_path / "none", monkeypatch)
    said = capsys.readouterr()
    assert (code, last_line(said.out)["rows"]) == (1, 0)
    assert "there are fewer than 100 rows (found 0)" in said.err


def test_a_window_that_is_none_is_refused(
    logs: Logs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, page = validated(logs, tmp_path, monkeypatch, window="soon")

    assert code == 2
    assert "--window: 'soon' is not a duration" in capsys.readouterr().err
    assert not page.exists()
