"""The replay sends the past exactly as it became known."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from feature_repo import features as definitions
from monitoring.feed import Feed
from monitoring.replay import Plan, bodies, load_rows, main, replay, steps
from service.clock import FileClock, ManualClock
from service.door import Door, request_model
from service.errors import NotReady
from service.feature_store import repo_config
from service.features import OnlineLookup
from service.settings import Settings
from tests.bundle import NOW, STORED, parsed_request, primary_contract, settings_in, store_rows

CONTRACT = primary_contract()
TIME = "datetime64[us, UTC]"


def minutes(count: int) -> datetime:
    return NOW + timedelta(minutes=count)


@pytest.fixture
def prepared(tmp_path: Path) -> Settings:
    """Prepared tables: one row a minute for two hours, each view's value known every ten minutes."""
    settings = settings_in(tmp_path)
    settings.features_dir.mkdir(parents=True)
    for view, row in STORED.items():
        rows = [{**row, "event_timestamp": minutes(m)} for m in range(-30, 120, 10)]
        if view == "origin_traffic":
            rows = [{**r, "origin_departures_3h": i} for i, r in enumerate(rows)]
        frame = pd.DataFrame(rows).astype({"event_timestamp": TIME})
        frame.astype({c: float for c in frame if frame[c].isna().all()}).to_parquet(
            settings.features_dir / f"{view}.parquet"
        )
    asked = [
        {
            **parsed_request(scheduled_departure=minutes(m + 120)),
            "request_id": f"r{m:03d}",
            "event_timestamp": minutes(m),
            "label": float(m % 2) if m % 10 else None,
            "label_known_at": minutes(m + 45) if m % 10 else None,
        }
        for m in range(120)
    ]
    times = dict.fromkeys(["event_timestamp", "label_known_at", "scheduled_departure"], TIME)
    pd.DataFrame(asked).astype(times).to_parquet(settings.state_dir / "rows.parquet")
    store_rows(settings, {})
    return settings


def plan(url: str = "", *, end: int = 60, until: int = 90, step: int = 5) -> Plan:
    return Plan(url, minutes(0), minutes(end), minutes(until), timedelta(minutes=step), 0.0, 8)


@given(length=st.integers(1, 500), step=st.integers(1, 60))
def test_steps_cover_the_span_without_gap_or_overlap(length: int, step: int) -> None:
    found = list(steps(NOW, minutes(length), timedelta(minutes=step)))

    assert found[0][0] < NOW
    assert found[-1][1] == minutes(length)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(found))


def test_rows_become_requests_the_door_accepts(prepared: Settings) -> None:
    rows = load_rows(prepared, plan())

    sent = bodies(rows.assign(tailnum=None), CONTRACT)

    door = Door(CONTRACT, ManualClock(NOW), 10)
    assert len(sent) == 60
    for body in sent:
        request = door.one(body)
        assert request["tailnum"] is None
        assert set(json.loads(body)) == set(request_model(CONTRACT).model_fields)


def test_the_feed_holds_at_any_moment_exactly_what_was_known_then(prepared: Settings) -> None:
    feed = Feed(prepared, CONTRACT)
    lookup = OnlineLookup(repo_config(prepared), CONTRACT, vars(definitions))
    feed.begin(minutes(-5))

    for now in range(-5, 118, 7):
        feed.push(minutes(now))
        (stored,) = lookup.read([parsed_request()])
        newest = (now + 30) // 10
        assert stored.values["origin_traffic"]["origin_departures_3h"] == newest
        assert stored.event_times["origin_traffic"] == minutes(newest * 10 - 30)


def test_a_new_replay_sees_nothing_of_an_earlier_one(prepared: Settings) -> None:
    path = prepared.features_dir / "plane_record.parquet"
    table = pd.read_parquet(path)
    newcomer = table.tail(1).assign(tailnum="N-LATER", event_timestamp=pd.Timestamp(minutes(100)))
    pd.concat([table, newcomer.astype(table.dtypes)]).to_parquet(path)
    lookup = OnlineLookup(repo_config(prepared), CONTRACT, vars(definitions))
    Feed(prepared, CONTRACT).begin(minutes(110))
    assert "plane_record" in lookup.read([parsed_request(tailnum="N-LATER")])[0].values

    Feed(prepared, CONTRACT).begin(minutes(-15))

    (known, unknown) = lookup.read([parsed_request(), parsed_request(tailnum="N-LATER")])
    assert set(known.event_times.values()) == {minutes(-20)}
    assert "plane_record" not in unknown.values


class Recorder:
    """A stand-in service that notes, per request, what the clock said and what the store held."""

    def __init__(self, settings: Settings, fail: int = 0) -> None:
        self.clock = FileClock(settings.state_dir / "clock")
        self.lookup = OnlineLookup(repo_config(settings), CONTRACT, vars(definitions))
        self.seen: dict[str, tuple[datetime, int]] = {}
        self.labels: dict[str, tuple[datetime, datetime]] = {}
        self.fail = fail

    async def predict(self, request: web.Request) -> web.Response:
        body = await request.json()
        if self.fail:
            return web.json_response({"error": "no"}, status=422)
        (stored,) = self.lookup.read([body])
        self.seen[body["request_id"]] = (self.clock.now(), stored.values["origin_traffic"]["origin_departures_3h"])
        return web.json_response({"role": "primary", "confidence": "normal"})

    async def label(self, request: web.Request) -> web.Response:
        rows = await request.json()
        for row in rows:
            self.labels[row["request_id"]] = (self.clock.now(), datetime.fromisoformat(row["known_at"]))
        return web.json_response({"kept": len(rows)})

    async def metrics(self, _: web.Request) -> web.Response:
        return web.Response(text="")


def run(settings: Settings, what: Plan, *, fail: int = 0) -> tuple[Recorder, dict[str, Any]]:
    """Replay against a recorder on loopback."""
    clock = settings.state_dir / "clock"
    clock.write_text(NOW.isoformat())
    recorder = Recorder(settings, fail)

    async def go() -> dict[str, Any]:
        app = web.Application()
        app.add_routes(
            [
                web.post("/predict", recorder.predict),
                web.post("/labels", recorder.label),
                web.get("/metrics", recorder.metrics),
            ]
        )
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        try:
            target = Plan(
                f"http://127.0.0.1:{port}", what.start, what.end, what.until, what.step, what.speed, what.concurrency
            )
            return await replay(target, settings, clock)
        finally:
            await runner.cleanup()

    return recorder, asyncio.run(go())


def test_every_request_is_sent_once_within_a_step_of_falling_due_and_sees_only_what_was_known(
    prepared: Settings,
) -> None:
    recorder, result = run(prepared, plan())

    assert (result["predictions"], result["failed"]) == (60, 0)
    assert sorted(recorder.seen) == [f"r{m:03d}" for m in range(60)]
    for m in range(60):
        at, value = recorder.seen[f"r{m:03d}"]
        assert timedelta(0) <= at - minutes(m) < timedelta(minutes=5)
        known = int((at - minutes(-30)) / timedelta(minutes=10))
        assert value == known


def test_labels_come_when_they_become_known_and_only_those_known_by_the_end(prepared: Settings) -> None:
    recorder, result = run(prepared, plan())

    expected = {f"r{m:03d}" for m in range(60) if m % 10 and m + 45 <= 90}
    assert set(recorder.labels) == expected
    assert result["labels"] == len(expected)
    for delivered, known in recorder.labels.values():
        assert timedelta(0) <= delivered - known < timedelta(minutes=5)


def test_refused_requests_are_counted_and_a_hopeless_replay_stops(prepared: Settings) -> None:
    with pytest.raises(NotReady, match="the first 20 requests all failed"):
        run(prepared, plan(), fail=1)


@pytest.fixture
def no_clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Settings as a user has them who forgot the clock file."""
    from service.settings import settings

    monkeypatch.setenv("UNDERSTUDY_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("UNDERSTUDY_CLOCK", "wall")
    settings.cache_clear()
    yield
    settings.cache_clear()


def test_a_replay_without_a_clock_file_says_how_to_get_one(no_clock: None, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--start", "2013-10-01", "--end", "2013-10-02"])

    assert code == 2
    assert "UNDERSTUDY_CLOCK=wall is not a clock file" in capsys.readouterr().err


def test_a_span_without_requests_is_refused(prepared: Settings) -> None:
    far = Plan("", datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 1, 2, tzinfo=UTC), NOW, timedelta(1), 0, 1)

    with pytest.raises(NotReady, match="holds no request from 2020-01-01 00:00 to 2020-01-02 00:00"):
        load_rows(prepared, far)


def test_unprepared_tables_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="run `make train` first"):
        load_rows(settings_in(tmp_path), plan())
