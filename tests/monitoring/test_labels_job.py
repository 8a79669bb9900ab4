"""Labels from a file: what is taken, what is set aside, and that a file may be given again."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import orjson
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from monitoring import export, labels_job, labels_log
from monitoring.labels import resolve
from monitoring.labels_sort import sort_labels
from service.clock import ManualClock
from service.desk import Desk
from service.door import Door
from service.prediction_log import SegmentLog
from service.routing import Router
from service.settings import Settings
from service.wire import Taken
from tests.bundle import primary_contract, settings_in
from tests.monitoring.jobs import Job, Ran
from tests.monitoring.logs import START, Logs, label_line, prediction_line

HOUR = timedelta(hours=1)
NOW = START + timedelta(days=3)


class LabelsJob(Job):
    """The job that takes labels."""

    def __call__(self, file: Path | None = None, *arguments: str) -> Ran:
        """Run it, with a file or without."""
        return self.run(*(("--file", str(file)) if file else ()), *arguments)


@pytest.fixture
def bundle(tmp_path: Path) -> Settings:
    """Ten predictions r0 to r9, an hour apart, and no label."""
    found = settings_in(tmp_path)
    vector = {spec.name: None for spec in primary_contract().fields} | {"origin": "EWR", "carrier": "AA"}
    Logs([prediction_line(f"r{i}", START + i * HOUR, vector, 0.5) for i in range(10)]).write(found.log_dir)
    return found.model_copy(update={"clock": NOW.isoformat()})


@pytest.fixture
def job(bundle: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> LabelsJob:
    monkeypatch.setattr(labels_job, "settings", lambda: bundle)
    return LabelsJob(labels_job.main, capsys)


def csv(folder: Path, *rows: str, head: str = "request_id,label,at", name: str = "labels.csv") -> Path:
    path = folder / name
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def hour(n: float) -> str:
    return (START + n * HOUR).isoformat()


def truth(bundle: Settings) -> dict[str, float]:
    found, _ = resolve(export.labels(bundle.log_dir).frame, labels_log.asked(bundle.log_dir))
    return dict(zip(found["request_id"], found["label"], strict=True))


def lines(bundle: Settings) -> int:
    return len(export.labels(bundle.log_dir).frame)


def kinds(last: dict[str, Any]) -> dict[str, int]:
    found: dict[str, int] = last["kinds"]
    return found


def test_a_file_becomes_the_label_log(bundle: Settings, job: LabelsJob, tmp_path: Path) -> None:
    code, last = job(csv(tmp_path, f"r0,1,{hour(5)}", f"r1,0,{hour(6)}"))

    assert code == 0
    assert (last["read"], last["written"], last["coverage"]) == (2, 2, 0.2)
    assert truth(bundle) == {"r0": 1.0, "r1": 0.0}


def test_the_same_file_again_writes_nothing(bundle: Settings, job: LabelsJob, tmp_path: Path) -> None:
    file = csv(tmp_path, f"r0,1,{hour(5)}", "r1,0,")
    job(file)

    code, last = job(file)

    assert code == 0
    assert (last["written"], last["already"]) == (0, 2)
    assert lines(bundle) == 2


def test_a_correction_is_appended_and_the_one_known_last_counts(
    bundle: Settings, job: LabelsJob, tmp_path: Path
) -> None:
    job(csv(tmp_path, f"r0,1,{hour(5)}"))

    _, later = job(csv(tmp_path, f"r0,0,{hour(9)}"))
    _, earlier = job(csv(tmp_path, f"r0,1,{hour(5)}"))

    assert (later["written"], later["corrected"]) == (1, 1)
    assert (earlier["written"], earlier["already"]) == (0, 1)
    assert lines(bundle) == 2
    assert truth(bundle) == {"r0": 0.0}


def test_two_labels_of_one_instant_are_neither_believed(bundle: Settings, job: LabelsJob, tmp_path: Path) -> None:
    job(csv(tmp_path, f"r0,1,{hour(5)}"))

    _, last = job(csv(tmp_path, f"r0,0,{hour(5)}", f"r1,0,{hour(5)}", f"r1,1,{hour(5)}"))

    assert kinds(last) == {"contradictory": 3}
    assert truth(bundle) == {"r0": 1.0}


def test_every_fault_is_counted_and_shown_by_its_line(bundle: Settings, job: LabelsJob, tmp_path: Path) -> None:
    rows = (
        f"r0,1,{hour(5)}", f"r0,1,{hour(6)}", f"ghost,1,{hour(5)}", f"r5,1,{hour(1)}", f"r1,2,{hour(5)}",
        f"r1,true,{hour(5)}", f"r1,,{hour(5)}", f",1,{hour(5)}", "r1,1,yesterday", f"r1,1,{hour(100)}", "r2,1.0,",
    )  # fmt: skip

    code, last = job(csv(tmp_path, *rows))

    assert code == 0
    assert kinds(last) == {
        "new": 2, "repeated": 1, "orphan": 1, "early": 1, "label": 3, "request_id": 1, "at": 1, "future": 1,
    }  # fmt: skip
    assert (last["written"], last["already"], last["orphan"], last["early"], last["refused"]) == (2, 1, 1, 1, 6)
    assert last["read"] == 11
    assert "line 5 (r1), line 6 (r1), line 7 (r1)" in job.out
    assert truth(bundle) == {"r0": 1.0, "r2": 1.0}


def test_strict_writes_nothing_when_a_line_is_set_aside(bundle: Settings, job: LabelsJob, tmp_path: Path) -> None:
    file = csv(tmp_path, f"r0,1,{hour(5)}", f"ghost,1,{hour(5)}")

    code, last = job(file, "--strict")

    assert code == 1
    assert (last["written"], last["orphan"], last["refused"], last["read"]) == (0, 1, 1, 2)
    assert lines(bundle) == 0


@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
@pytest.mark.parametrize("column", ["request_id", "label", "at"])
def test_a_cell_that_holds_a_list_is_a_fault_of_its_line(
    job: LabelsJob, tmp_path: Path, kind: str, column: str
) -> None:
    frame = pd.DataFrame({"request_id": ["r0", "r1"], "label": [1.0, 0.0], "at": [hour(5), hour(5)]})
    frame[column] = pd.Series([["a", "b"], ["c", "d"]])
    file = tmp_path / f"labels{kind}"
    if kind == ".parquet":
        frame.to_parquet(file)
    else:
        frame.to_json(file, orient="records", lines=True)

    code, last = job(file)

    assert code == 0
    assert kinds(last) == {column: 2}


@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
def test_other_kinds_of_file_say_the_same(bundle: Settings, job: LabelsJob, tmp_path: Path, kind: str) -> None:
    rows: list[dict[str, Any]] = [
        {"request_id": "r0", "label": 1, "at": hour(5)}, {"request_id": "r1", "label": 0.0, "at": hour(5)},
        {"request_id": "r2", "label": None, "at": hour(5)},
    ]  # fmt: skip
    file = tmp_path / f"labels{kind}"
    if kind == ".parquet":
        frame = pd.DataFrame(rows)
        frame.assign(at=pd.to_datetime(frame["at"], utc=True)).to_parquet(file)
    else:
        broken = [b"{oops", orjson.dumps({"request_id": 7, "label": True, "at": 1})]
        file.write_bytes(b"\n".join([*(orjson.dumps(row) for row in rows), *broken]))

    code, last = job(file)

    assert code == 0
    assert truth(bundle) == {"r0": 1.0, "r1": 0.0}
    assert kinds(last) == ({"new": 2, "label": 1} if kind == ".parquet" else {"new": 2, "request_id": 2, "label": 1})


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("labels.csv", b"id,truth\na,1\n", "has the columns id, truth; needs request_id, label"),
        ("labels.csv", b"request_id,label\nr0,1\nr1,1,2,3\n", "Expected 2 fields in line 3, saw 4"),
        ("labels.csv", b"", "cannot be read"),
        ("labels.csv", b"request_id,label\n\xff\xfe,1\n", "cannot be read"),
        ("labels.parquet", b"PAR1PAR1", "cannot be read"),
        ("labels.xlsx", b"", "ends in .xlsx; needs .csv, .jsonl or .parquet"),
        ("missing.csv", None, "No such file"),
    ],
)
def test_a_file_that_is_no_table_of_labels_changes_nothing(
    bundle: Settings, job: LabelsJob, tmp_path: Path, name: str, content: bytes | None, told: str
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)

    code, _ = job(file)

    assert code == 2
    assert told in job.err
    assert not (bundle.log_dir / "labels").exists() or lines(bundle) == 0


def test_without_a_file_it_says_how_much_truth_there_is(bundle: Settings, job: LabelsJob, tmp_path: Path) -> None:
    job(csv(tmp_path, *(f"r{i},{i % 2},{hour(i + 4)}" for i in range(8))))

    code, last = job()

    series = {
        family.name: family.samples[0].value
        for family in text_string_to_metric_families((bundle.state_dir / "monitoring" / "labels.prom").read_text())
    }
    assert code == 0
    assert (last["read"], last["written"], last["coverage"], last["mature_coverage"]) == (0, 0, 0.8, 0.8)
    assert series == {
        "understudy_label_coverage": 0.8, "understudy_labels_orphan": 0.0, "understudy_label_lag_seconds": 4 * 3600.0,
    }  # fmt: skip


def test_labels_that_cannot_be_kept_fail_the_job(
    bundle: Settings, job: LabelsJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SegmentLog, "append", lambda *_: False)

    code, last = job(csv(tmp_path, f"r0,1,{hour(5)}"))

    assert (code, last["written"]) == (1, 0)
    assert "1 labels could not be kept" in job.err


def test_the_service_and_the_job_agree(bundle: Settings, job: LabelsJob, tmp_path: Path) -> None:
    rows = [("r0", 1, 5), ("r1", 0, 5), ("r0", 0, 9), ("r2", 1, 7), ("r2", 1, 8), ("ghost", 1, 5), ("r9", 1, 2)]
    job(csv(tmp_path, *(f"{name},{label},{hour(at)}" for name, label, at in rows)))
    by_file = truth(bundle)
    for path in (bundle.log_dir / "labels").iterdir():
        path.unlink()
    log = SegmentLog(bundle.log_dir / "labels", 10**6)
    clock = ManualClock(NOW)
    # Labels never reach the router.
    counter = Desk(Door(primary_contract(), clock, 1000), cast(Router, None), log, clock, 64)
    posted = [{"request_id": name, "label": label, "known_at": hour(at)} for name, label, at in rows]

    assert counter.label(Taken(orjson.dumps(posted))).status_code == 200

    assert truth(bundle) == by_file == {"r0": 0.0, "r1": 0.0, "r2": 1.0}
    fields = {"request_id", "label", "known_at", "at", "seq"}
    assert {frozenset(orjson.loads(line)) for line in log_lines(bundle)} == {frozenset(fields)}


def log_lines(bundle: Settings) -> list[bytes]:
    return [line for path in (bundle.log_dir / "labels").iterdir() for line in path.read_bytes().splitlines()]


entries = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from([0.0, 1.0]), st.integers(0, 5)), max_size=20)


def frame_of(rows: list[tuple[str, float, int]]) -> pd.DataFrame:
    found = pd.DataFrame(rows, columns=["request_id", "label", "hour"])
    known = pd.to_datetime([START + n * HOUR for n in found["hour"]], utc=True).astype("datetime64[us, UTC]")
    return found.drop(columns="hour").assign(known_at=known, line=range(1, len(found) + 1), wrong="")


def log_of(rows: list[tuple[str, float, int]]) -> pd.DataFrame:
    return frame_of(rows).assign(at=pd.Timestamp(NOW))


@given(entries, entries)
@hypothesis_settings(deadline=None)
def test_sorting_twice_adds_nothing_and_never_changes_the_past(
    before: list[tuple[str, float, int]], coming: list[tuple[str, float, int]]
) -> None:
    asked = pd.DataFrame({"request_id": list("abc"), "at": pd.to_datetime([START] * 3, utc=True)})
    kept = [row for row in before if row[0] != "d"]

    first = sort_labels(frame_of(coming), log_of(kept), asked, NOW)
    written = [coming[line - 1] for line in first.wanted["line"]]
    second = sort_labels(frame_of(coming), log_of([*kept, *written]), asked, NOW)

    assert sum(first.counts.values()) == len(coming)
    assert first.counts.get("orphan", 0) == sum(name == "d" for name, _, _ in coming)
    assert second.wanted.empty
    # What is written is new, and contradicts nothing at its own instant.
    assert len(set(written)) == len(written)
    assert not {(name, at) for name, _, at in written} & {(name, at) for name, _, at in kept}


def test_one_line_of_the_log_is_what_the_service_writes(bundle: Settings, job: LabelsJob, tmp_path: Path) -> None:
    job(csv(tmp_path, f"r0,1,{hour(5)}"))

    line = orjson.loads(log_lines(bundle)[0])

    assert line == {
        "request_id": "r0", "label": 1.0, "known_at": "2013-10-01T17:00:00Z",
        "at": line["at"], "seq": 1,
    }  # fmt: skip
    assert datetime.fromisoformat(line["at"]) >= NOW
    assert set(label_line("r0", 1.0, START)) < set(line)
