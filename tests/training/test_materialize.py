"""Filling the online store: the difference, whenever it came, and nothing twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from feature_repo import features as definitions
from service.clock import parse_instant
from service.errors import DataError
from service.feature_store import repo_config
from service.features import OnlineLookup
from service.settings import ROOT, Settings
from tests.bundle import primary_contract, settings_in
from training.materialize import main
from training.store import apply, materialize, newest_rows, open_store

CONTRACT = primary_contract()
AT = parse_instant("2013-03-25")
PLANES = 3000


def tables(folder: Path, planes: int = PLANES) -> Settings:
    """Feature tables of a kind: few airports and many planes, three rows each."""
    settings = settings_in(folder)
    settings.features_dir.mkdir(parents=True)
    for view in CONTRACT.views:
        count = planes if view.keys == ("tailnum",) else 3
        rows = [
            {
                **dict.fromkeys(view.keys, f"k{key}"),
                **{name: float(key + step) for name in view.features},
                "event_timestamp": AT - timedelta(hours=3 * step, minutes=key % 60),
            }
            for key in range(count)
            for step in range(3)
        ]
        frame = pd.DataFrame(rows).astype({"event_timestamp": "datetime64[us, UTC]"})
        if "plane_last_arrival" in frame:
            frame["plane_last_arrival"] = frame["event_timestamp"]
        whole = [name for name in view.features if "departures" in name or "outcomes" in name]
        frame.astype(dict.fromkeys(whole, "int64")).to_parquet(settings.features_dir / f"{view.name}.parquet")
    return settings


def filled(settings: Settings, at: datetime = AT) -> int:
    """Materialize in this process; rows written."""
    store = open_store(settings)
    apply(store, settings)
    return sum(view.written for view in materialize(store, CONTRACT, at))


def content(settings: Settings) -> dict[str, list[Any]]:
    """Everything the online store holds for the keys of the tables."""
    lookup = OnlineLookup(repo_config(settings, reads_only=True), CONTRACT, vars(definitions))
    keys = [dict.fromkeys(("origin", "carrier", "route", "tailnum"), f"k{i}") for i in range(PLANES)]
    return {view.name: lookup.read_view(view, keys) for view in CONTRACT.views}


def change(settings: Settings, view: str, change: Any) -> None:
    """Rewrite one table."""
    path = settings.features_dir / f"{view}.parquet"
    change(pd.read_parquet(path)).to_parquet(path)


def test_twice_is_once(tmp_path: Path) -> None:
    settings = tables(tmp_path, planes=20)

    assert filled(settings) == 3 * 4 + 20
    before = content(settings)
    assert filled(settings) == 0
    assert content(settings) == before


def test_each_run_writes_what_became_known_since_the_last(tmp_path: Path) -> None:
    settings = tables(tmp_path, planes=20)

    assert filled(settings, AT - timedelta(hours=3)) == 3 * 4 + 20
    assert filled(settings, AT - timedelta(hours=2)) == 0
    assert filled(settings, AT - timedelta(minutes=10)) == 20 - 10  # the newest rows of planes k10 to k19
    assert filled(settings) == 3 * 4 + 10


def test_a_row_that_came_late_is_picked_up_and_one_that_is_old_changes_nothing(tmp_path: Path) -> None:
    settings = tables(tmp_path, planes=20)
    filled(settings)

    def late(table: pd.DataFrame) -> pd.DataFrame:
        newest, oldest = table["event_timestamp"].max(), table["event_timestamp"].min()
        k0 = table[table["origin"] == "k0"].head(1)
        k1 = table[table["origin"] == "k1"].head(1)
        return pd.concat([
            table,
            k1.assign(event_timestamp=newest - timedelta(seconds=30), origin_dep_delay_3h=77.0),
            k0.assign(event_timestamp=oldest - timedelta(days=1), origin_dep_delay_3h=88.0),
        ])  # fmt: skip

    change(settings, "origin_traffic", late)

    assert filled(settings) == 1
    traffic = content(settings)["origin_traffic"]
    assert traffic[1][1]["origin_dep_delay_3h"] == 77.0
    assert traffic[0][1]["origin_dep_delay_3h"] == 0.0


def test_a_corrected_value_of_the_same_moment_is_written(tmp_path: Path) -> None:
    settings = tables(tmp_path, planes=20)
    filled(settings)

    change(settings, "carrier_record", lambda t: t.assign(carrier_late_rate_7d=t["carrier_late_rate_7d"] / 10))

    assert filled(settings) == 2  # 0 / 10 is 0: the first key's value did not change
    assert filled(settings) == 0


def test_a_run_in_the_past_does_not_rewind_a_running_services_features(tmp_path: Path) -> None:
    settings = tables(tmp_path, planes=20)
    filled(settings)
    before = content(settings)

    assert filled(settings, AT - timedelta(hours=4)) == 0
    assert content(settings) == before


KILLED = """
import os, signal, sys
from pathlib import Path
import service.online_store as online
import training.store as store
from tests.training.test_materialize import filled, settings_in

store.BATCH, seen, real = 50, [], online._packed

def packed(values):
    seen.append(1)
    if len(seen) == 425:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(values)

online._packed = packed
filled(settings_in(Path(sys.argv[1])))
"""


def test_a_killed_run_is_finished_by_the_next_with_nothing_lost_or_doubled(tmp_path: Path) -> None:
    settings, other = tables(tmp_path / "killed"), tables(tmp_path / "whole")
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path / "killed")]
    killed = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    kept = sum(at is not None for at, _ in content(settings)["plane_record"])
    assert kept == 400  # 12 rows of other views, then whole batches only

    rest = filled(settings)
    filled(other)

    assert rest == PLANES - kept
    assert content(settings) == content(other)


def test_of_equal_event_times_the_row_created_last_is_the_newest(tmp_path: Path) -> None:
    settings = tables(tmp_path, planes=2)
    store = open_store(settings)
    apply(store, settings)
    view = store.get_feature_view("origin_traffic")
    view.batch_source.created_timestamp_column = "created"

    def twice(table: pd.DataFrame) -> pd.DataFrame:
        one, two = table.assign(created=AT), table.assign(created=AT + timedelta(hours=1), origin_dep_delay_3h=5.0)
        return pd.concat([two, one])

    change(settings, "origin_traffic", twice)

    assert newest_rows(view, AT)["origin_dep_delay_3h"].tolist() == [5.0] * 3


@pytest.mark.parametrize("fault", ["missing", "damaged", "column"])
def test_a_table_that_cannot_be_read_is_named_and_nothing_stored_is_lost(fault: str, tmp_path: Path) -> None:
    settings = tables(tmp_path, planes=20)
    filled(settings)
    before = content(settings)
    path = settings.features_dir / "route_record.parquet"
    if fault == "missing":
        path.unlink()
    elif fault == "damaged":
        path.write_bytes(path.read_bytes()[:100])
    else:
        change(settings, "route_record", lambda t: t.drop(columns="route_late_rate_14d"))

    with pytest.raises(DataError, match=r"feature table of route_record: .*route_record.parquet cannot be read"):
        filled(settings)

    assert content(settings) == before


def test_the_command_prints_rows_and_true_ages(
    prepared: Settings, raw_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("training.materialize.settings", lambda: prepared)

    assert main(["--as-of", "2013-03-25", "--raw", str(raw_folder)]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert main(["--as-of", "2013-03-25", "--raw", str(raw_folder)]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])

    assert first["written"] > 1000
    assert again["written"] == 0
    assert 0 <= first["views"]["origin_weather"]["age_s"] <= 3600
    assert main(["--as-of", "2013-03-25", "--raw", "/nowhere"]) == 2
    assert "/nowhere" in capsys.readouterr().err
