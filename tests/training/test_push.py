"""Streaming rows: checked at the door, newest wins, a stream may be replayed."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from service.settings import Settings
from tests.bundle import NOW, STORED, settings_in, store_rows
from tests.online import found, lookup_in
from training import push

ROW = {**STORED["origin_traffic"], "event_timestamp": NOW.isoformat()}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    settings = settings_in(tmp_path, clock=NOW.isoformat())
    store_rows(settings, STORED)
    monkeypatch.setattr(push, "settings", lambda: settings)
    return settings


def pushed(settings: Settings, *rows: Any, view: str = "origin_traffic") -> int:
    path = settings.state_dir / "rows.jsonl"
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return push.main(["--view", view, "--file", str(path)])


def delay(settings: Settings) -> Any:
    return found(lookup_in(settings)).values["origin_traffic"]["origin_dep_delay_3h"]


def test_a_stream_is_pushed_and_may_be_replayed(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {**ROW, "origin_dep_delay_3h": float(m), "event_timestamp": (NOW - timedelta(minutes=m)).isoformat()}
        for m in (9, 5, 2, 7)
    ]

    assert pushed(settings, *rows) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"view": "origin_traffic", "pushed": 4}
    assert delay(settings) == 2.0
    assert pushed(settings, *rows[:1]) == 0
    assert delay(settings) == 2.0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**ROW, "origin_dep_delay_3h": 9999.0}, "are above 1500"),
        ({**ROW, "origin_dep_delay_3h": "late"}, "send Float64 values"),
        ({**ROW, "origin_departures_3h": 3.7}, "3.7 is not Int64; send Int64 values"),
        ({**ROW, "origin_departures_3h": True}, "True is not Int64"),
        ({**ROW, "origin_dep_delay_3h": "12"}, "'12' is not Float64"),
        ({**ROW, "origin": 7}, "7 is not String"),
        ({**ROW, "origin": "XXX"}, "are not one of EWR, JFK, LGA"),
        ({**ROW, "origin": None}, "have no key"),
        ({**ROW, "event_timestamp": "yesterday"}, "send UnixTimestamp values"),
        ({**ROW, "event_timestamp": (NOW + timedelta(hours=1)).isoformat()}, "check the writer's clock"),
        ({"origin": "EWR", "event_timestamp": NOW.isoformat()}, "origin_departures_3h: 1 rows are null"),
        ("{nonsense\n", "line 1 is not JSON"),
        ("[1]\n", "line 1 is not a JSON object"),
    ],
)
def test_a_bad_row_is_refused_by_name_and_nothing_is_written(
    settings: Settings, row: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {**ROW, "origin": "JFK", "origin_dep_delay_3h": 1.0}

    assert pushed(settings, row, good) == 2
    assert message in capsys.readouterr().err
    assert delay(settings) == STORED["origin_traffic"]["origin_dep_delay_3h"]
    (jfk,) = lookup_in(settings).read([{"origin": "JFK"}])
    assert "origin_traffic" not in jfk.values


def test_an_unknown_view_a_missing_file_and_a_missing_registry_are_named(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pushed(settings, ROW, view="trafic") == 2
    assert "there is no view trafic; known: origin_weather" in capsys.readouterr().err
    assert push.main(["--view", "origin_traffic", "--file", "/nowhere.jsonl"]) == 2
    assert "/nowhere.jsonl" in capsys.readouterr().err
    (tmp_path / "latin.jsonl").write_bytes("é".encode("latin-1"))
    assert push.main(["--view", "origin_traffic", "--file", str(tmp_path / "latin.jsonl")]) == 2
    assert "is not UTF-8 text" in capsys.readouterr().err
    for name in ("online.db", "online.db-wal", "online.db-shm"):
        (settings.state_dir / name).unlink(missing_ok=True)
    (settings.state_dir / "online.db").write_bytes(b"damaged" * 1000)
    assert pushed(settings, ROW) == 2
    assert "the online store cannot be used" in capsys.readouterr().err
    (settings.state_dir / "registry.db").write_bytes(b"damaged")
    assert pushed(settings, ROW) == 2
    assert "registry.db is empty or damaged" in capsys.readouterr().err
    monkeypatch.setattr(push, "settings", lambda: settings_in(tmp_path / "empty"))
    assert push.main(["--view", "origin_traffic"]) == 2
    assert "run `make train` first" in capsys.readouterr().err
