"""Reading the logs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest

from monitoring import export
from service.prediction_log import SegmentLog
from tests.monitoring.logs import START, Logs, campaign, contract, line_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return campaign(40).write(tmp_path)


def append(folder: Path, log: str, raw: bytes) -> None:
    with sorted((folder / log).glob("*.jsonl"))[-1].open("ab") as file:
        file.write(raw)


def test_every_contract_field_becomes_one_column_of_its_type(folder: Path) -> None:
    frame = export.predictions(folder, contract()).frame

    kinds = {"float": "float64", "int": "Int64", "str": "object"}
    for spec in contract().fields:
        assert str(frame[f"vector.{spec.name}"].dtype) == kinds[spec.dtype], spec.name
    for spec in contract().keys:
        assert f"request.{spec.name}" in frame


def test_values_come_back_as_written(tmp_path: Path) -> None:
    logs = campaign(40)
    logs.predictions[3]["vector"]["carrier"] = "01"
    logs.predictions[3]["vector"]["dep_hour"] = 2**53 + 1

    frame = export.predictions(logs.write(tmp_path), contract()).frame

    row = frame.iloc[3]
    assert row["vector.carrier"] == "01"
    assert row["vector.dep_hour"] == 2**53 + 1
    assert row["prediction"] == logs.predictions[3]["prediction"]
    assert row["at"] == pd.Timestamp(logs.predictions[3]["at"])
    assert row["ms.primary"] == logs.predictions[3]["stages_ms"]["primary"]
    assert pd.isna(row["ms.fallback"])
    assert row["event_time.origin_weather"] == pd.Timestamp(logs.predictions[3]["at"]) - timedelta(minutes=20)


def test_a_column_null_in_every_row_keeps_its_type(tmp_path: Path) -> None:
    logs = campaign(10)
    for line in logs.predictions:
        line["vector"].update(temp=None, dep_hour=None, carrier=None)

    frame = export.predictions(logs.write(tmp_path), contract()).frame

    assert [str(frame[f"vector.{n}"].dtype) for n in ("temp", "dep_hour", "carrier")] == ["float64", "Int64", "object"]


def test_lines_the_service_itself_writes_are_read(tmp_path: Path) -> None:
    logs, log = campaign(25), SegmentLog(tmp_path / "predictions", 5000)
    for line in logs.predictions:
        assert log.append(line)
    log.close()

    read = export.predictions(tmp_path, contract())

    assert len(list((tmp_path / "predictions").iterdir())) > 1
    assert read.frame["request_id"].tolist() == [line["request_id"] for line in logs.predictions]
    assert read.damaged_lines == 0


def test_violations_become_a_count(tmp_path: Path) -> None:
    logs = campaign(3)
    logs.predictions[1]["violations"] = [{"feature": "temp", "kind": "null", "message": "m"}] * 2

    frame = export.predictions(logs.write(tmp_path), contract()).frame

    assert frame["violations"].tolist() == [0, 2, 0]


def test_a_torn_last_line_is_counted_and_the_rest_is_read(folder: Path) -> None:
    append(folder, "predictions", line_of(campaign(1).predictions[0])[:-40])

    read = export.predictions(folder, contract())

    assert (len(read.frame), read.damaged_lines) == (40, 1)


@pytest.mark.parametrize(
    "damage",
    [b"\xff\xfe\x00 noise\n", b"[1, 2]\n", b"17\n", b"null\n", b"{}\n", b'{"request_id": "a"} trailing\n'],
)
def test_any_damaged_line_is_counted_in_every_log(folder: Path, damage: bytes) -> None:
    for log in ("predictions", "shadow", "labels"):
        append(folder, log, damage)

    reads = [export.predictions(folder, contract()), export.shadow(folder), export.labels(folder)]

    assert [(len(read.frame), read.damaged_lines) for read in reads] == [(40, 1)] * 3


def test_blank_lines_are_no_damage(folder: Path) -> None:
    append(folder, "labels", b"\n\n")

    assert export.labels(folder).damaged_lines == 0


def test_a_label_that_is_no_number_is_damage_not_a_zero(folder: Path) -> None:
    append(folder, "labels", line_of({"request_id": "r000001", "label": "late", "known_at": START, "at": START}))

    read = export.labels(folder)

    assert (len(read.frame), read.damaged_lines) == (40, 1)


@pytest.mark.parametrize("written", ["2013-10-01T14:00:00+02:00", "2013-10-01T12:00:00Z", "2013-10-01T12:00:00"])
def test_times_are_instants_and_without_an_offset_utc(tmp_path: Path, written: str) -> None:
    logs = Logs(labels=[{"request_id": "a", "label": 1, "known_at": written, "at": START}])

    frame = export.labels(logs.write(tmp_path)).frame

    assert frame.loc[0, "known_at"] == pd.Timestamp(START)


@pytest.mark.parametrize("make", [lambda folder: None, lambda folder: Logs().write(folder, segments=1)])
def test_missing_or_empty_logs_give_empty_frames_with_every_column(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    full = export.predictions(campaign(2).write(tmp_path / "full"), contract()).frame
    make(tmp_path / "none")

    empty = export.predictions(tmp_path / "none", contract())

    assert empty.frame.dtypes.to_dict() == full.dtypes.to_dict()
    assert len(empty.frame) == empty.damaged_lines == 0
    assert export.shadow(tmp_path / "none").frame.empty
    assert export.labels(tmp_path / "none").frame.empty


def test_an_empty_segment_beside_full_ones_is_read(folder: Path) -> None:
    (folder / "shadow" / "20131001T120000-9-00000.jsonl").touch()

    assert len(export.shadow(folder).frame) == 40
