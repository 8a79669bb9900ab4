"""Scores logged vectors with a model that was not there, into records like a shadow's: ``<state>/rehearsals/...``.

Rows are taken in the order logged and written in whole segments that appear in one rename. A run that was killed goes
on where it was; one that finished has nothing left to do: same model and same rows, same records.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import orjson
import pandas as pd

from service.contract import Contract
from service.errors import PackageError
from service.package import PackagedModel, load_package
from service.roles import locked
from service.runners import is_probability

BATCH, SEGMENT = 2_000, 20_000
_OPTIONS = orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z | orjson.OPT_SERIALIZE_NUMPY
_PREFIX = "vector."


@dataclass(frozen=True)
class Store:
    """Where one model's records are; its digest is part of the path, so two models never share a folder."""

    folder: Path

    @classmethod
    def of(cls, state_dir: Path, model: PackagedModel) -> Store:
        """The place below the state folder."""
        return cls(state_dir / "rehearsals" / model.version / model.digest[:16])

    def scored(self) -> pd.DataFrame:
        """What is there: ``request_id, primary_again``, one row per request."""
        segments = sorted(str(path) for path in (self.folder / "shadow").glob("*.jsonl"))
        if not segments:
            return pd.DataFrame({"request_id": pd.Series(dtype=object), "primary_again": pd.Series(dtype="float64")})
        with duckdb.connect() as connection:
            found: pd.DataFrame = connection.execute(
                "SELECT request_id, first(primary_again) AS primary_again FROM read_json(?, "
                "format='newline_delimited', ignore_errors=true, columns={request_id: 'VARCHAR', "
                "primary_again: 'DOUBLE'}) WHERE request_id IS NOT NULL GROUP BY request_id",
                [segments],
            ).df()
        return found.assign(primary_again=found["primary_again"].astype("float64"))

    def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Add one segment."""
        folder = self.folder / "shadow"
        number = len(list(folder.glob("*.jsonl")))
        path = folder / f"{number:05d}.jsonl"
        temporary = folder / f".{path.name}.partial"
        with temporary.open("wb") as file:
            file.writelines(orjson.dumps(record, option=_OPTIONS) for record in records)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def marks(frame: pd.DataFrame, contract: Contract, takes: Sequence[str]) -> pd.DataFrame:
    """Tell which logged vectors are not whole: columns ``null`` and ``stale``, one row per prediction.

    Args:
        frame: predictions (see :func:`monitoring.export.predictions`).
        takes: the features the model takes.
    """
    stale = pd.Series(False, index=frame.index)
    for view in contract.views:
        column = f"event_time.{view.name}"
        if view.max_staleness is not None and set(view.features) & set(takes) and column in frame:
            stale |= (frame["at"] - frame[column]).gt(view.max_staleness)
    return pd.DataFrame({"null": frame[[f"{_PREFIX}{name}" for name in takes]].isna().any(axis=1), "stale": stale})


def rehearse(
    model: PackagedModel, frame: pd.DataFrame, marked: pd.DataFrame, store: Store, models_dir: Path
) -> Iterator[int]:
    """Score the rows whose records are missing; yields how many rows each batch had, as they are done.

    The primary's package, where it is still there, is asked again on its own rows: that its answers come out as logged
    shows that these vectors are what models were given.

    Args:
        frame: predictions to replay, one row per request.
        marked: columns of bool, same rows: what is the matter with each vector.
    """
    (store.folder / "shadow").mkdir(parents=True, exist_ok=True)
    with locked(store.folder / ".lock"):
        missing = ~frame["request_id"].isin(store.scored()["request_id"])
        rows = frame[missing].sort_values(["at", "request_id"], kind="stable")
        yield len(frame) - len(rows)
        primaries: dict[str, PackagedModel | None] = {}
        records: list[dict[str, Any]] = []
        for start in range(0, len(rows), BATCH):
            part = rows.iloc[start : start + BATCH]
            records += _batch(model, part, marked.loc[part.index], primaries, models_dir)
            if len(records) >= SEGMENT or start + BATCH >= len(rows):
                store.write(records)
                records = []
            yield len(part)


def _batch(
    model: PackagedModel,
    part: pd.DataFrame,
    marked: pd.DataFrame,
    primaries: dict[str, PackagedModel | None],
    models_dir: Path,
) -> list[dict[str, Any]]:
    vectors = _vectors(part)
    again = _again(part, vectors, primaries, models_dir)
    kinds = [[name for name, is_so in zip(marked.columns, row, strict=True) if is_so] for row in marked.to_numpy()]
    requests = zip(part["request_id"], (at.to_pydatetime() for at in part["at"]), strict=True)
    return [
        _record(model, str(request_id), at, score, reason, marks, second)
        for (request_id, at), (score, reason), marks, second in zip(
            requests, _scores(model, vectors), kinds, again, strict=True
        )
    ]


def _vectors(part: pd.DataFrame) -> list[dict[str, Any]]:
    names = [name for name in part.columns if name.startswith(_PREFIX)]
    plain = part[names].astype(object)
    columns = [name.removeprefix(_PREFIX) for name in names]
    values = plain.mask(plain.isna(), None).itertuples(index=False, name=None)
    return [dict(zip(columns, row, strict=True)) for row in values]


def _scores(model: PackagedModel, vectors: list[dict[str, Any]]) -> list[tuple[float | None, str | None]]:
    """Scores and, where there is none, why: what a shadow's record calls ``error`` or ``invalid_output``."""
    try:
        found: list[float | None] = list(model.score(vectors))
    except Exception:  # one bad row fails a batch; asked alone it fails alone
        if len(vectors) == 1:
            return [(None, "error")]
        return [each for row in vectors for each in _scores(model, [row])]
    if len(found) != len(vectors):
        return [(None, "error")] * len(vectors)
    return [(s, None if is_probability(s) else "invalid_output") for s in found]


def _again(
    part: pd.DataFrame, vectors: list[dict[str, Any]], primaries: dict[str, PackagedModel | None], models_dir: Path
) -> list[float | None]:
    out: list[float | None] = [None] * len(part)
    answered = part["model_digest"].where(part["role"].eq("primary")).to_numpy(dtype=object)
    for digest in {d for d in answered if isinstance(d, str)}:
        if digest not in primaries:
            primaries[digest] = _package(models_dir, digest)
        first = primaries[digest]
        if first is None:
            continue
        places = np.flatnonzero(answered == digest)
        for place, (score, reason) in zip(places, _scores(first, [vectors[i] for i in places]), strict=True):
            out[place] = score if reason is None else None
    return out


def _package(models_dir: Path, digest: str) -> PackagedModel | None:
    try:
        return load_package(models_dir / "packages" / digest[:16], "", digest)
    except PackageError:
        return None


def _record(
    model: PackagedModel,
    request_id: str,
    at: datetime,
    score: float | None,
    reason: str | None,
    marked: list[str],
    again: float | None,
) -> dict[str, Any]:
    return {
        "request_id": request_id,
        "at": at,
        "outcome": "scored" if reason is None else "dropped",
        "reason": reason,
        "model_version": model.version,
        "model_digest": model.digest,
        "prediction": score,
        "latency_ms": None,
        "batch": None,
        "offline": True,
        "marks": marked,
        "primary_again": again,
    }
