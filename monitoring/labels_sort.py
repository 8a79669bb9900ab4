"""Sorts labels that came in a file: which are new, which correct another, and what is wrong with the rest. Pure.

``read = written + already + orphan + early + refused``: every line falls under exactly one kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pandas as pd

from monitoring.windows import TOLERANCE

NEW, CORRECTED = "new", "corrected"
# Already known, in the log or by an earlier line of the file.
KNOWN = ("already", "repeated")
REFUSED = ("request_id", "label", "at", "future", "contradictory")
IN_WORDS = {
    "new": "new",
    "corrected": "say otherwise than the log: kept beside it, the label known last counts",
    "already": "in the log already",
    "repeated": "repeat an earlier line of the file",
    "orphan": "of no prediction in the log",
    "early": "known before the prediction was made",
    "request_id": "without a request id of 1 to 128 visible ASCII characters",
    "label": "whose label is neither 0 nor 1",
    "at": "whose time is not ISO 8601",
    "future": "known after the clock's now",
    "contradictory": "contradict another label of the same instant: neither can be believed",
}


@dataclass(frozen=True)
class Sorted:
    """What became of a file's lines.

    Attributes:
        lines: as read, with ``kind``.
        wanted: those to be written, in the order they became known.
    """

    lines: pd.DataFrame
    wanted: pd.DataFrame

    @property
    def counts(self) -> dict[str, int]:
        """Lines by kind, kinds without any left out."""
        found = self.lines["kind"].value_counts()
        return {kind: int(found[kind]) for kind in IN_WORDS if kind in found}

    @property
    def faults(self) -> dict[str, int]:
        """Lines that somebody has to look at, by kind."""
        return {kind: n for kind, n in self.counts.items() if kind not in (NEW, CORRECTED, *KNOWN)}

    def examples(self, kind: str, most: int = 3) -> list[str]:
        """The first lines of a kind, in words."""
        found = self.lines[self.lines["kind"] == kind].head(most)
        return [
            f"line {n}" + (f" ({name})" if isinstance(name, str) else "")
            for n, name in zip(found["line"], found["request_id"], strict=True)
        ]


def sort_labels(lines: pd.DataFrame, log: pd.DataFrame, predictions: pd.DataFrame | None, now: datetime) -> Sorted:
    """Give every line its kind.

    Args:
        lines: what :func:`monitoring.labels_file.read_labels` returns.
        log: the label log's lines so far: ``request_id, label, known_at, at``.
        predictions: ``request_id, at``; None when they are not at hand, then nobody is an orphan or early.
        now: the clock's; labels known later are refused.
    """
    kind = pd.Series(lines["wrong"].to_numpy(dtype=object), lines.index)
    _mark(kind, lines["known_at"] > pd.Timestamp(now + TOLERANCE), "future")
    if predictions is not None:
        made = predictions.drop_duplicates("request_id").set_index("request_id")["at"]
        asked = lines["request_id"].map(made)
        _mark(kind, asked.isna(), "orphan")
        _mark(kind, lines["known_at"] < asked, "early")
    good = lines[kind == ""]
    kind.loc[good.index] = _against(good, log)
    wanted = lines[kind.isin((NEW, CORRECTED))].sort_values("known_at", kind="stable")
    return Sorted(lines.assign(kind=kind), wanted)


def _mark(kind: pd.Series, where: pd.Series, name: str) -> None:
    kind[where & (kind == "")] = name


def _against(lines: pd.DataFrame, log: pd.DataFrame) -> pd.Series:
    """Kinds of good lines beside the log.

    Log and file together make one history for each request. Lines in a row that say the same are one statement: what
    the log has one line of is known, of another the first line is wanted. Written or not, the history is the same, so
    a file given again adds nothing.
    """
    keys = ["request_id", "known_at"]
    valid = log[log["label"].isin((0.0, 1.0)) & log["request_id"].isin(lines["request_id"])]
    valid = valid.sort_values(["known_at", "at"], kind="stable", na_position="first")
    valid = valid.drop_duplicates([*keys, "label"], keep="last")
    there = _in(lines, valid, [*keys, "label"])
    kind = pd.Series("", lines.index, dtype=object)
    _mark(kind, there, "already")
    _mark(kind, lines.groupby(keys)["label"].transform("nunique") > 1, "contradictory")
    _mark(kind, _in(lines, valid, keys), "contradictory")
    open_ = lines[kind == ""]
    if open_.empty:
        return kind
    parts = [(False, valid), (True, open_)]
    history = pd.concat([part[[*keys, "label"]].assign(fresh=fresh) for fresh, part in parts if len(part)])
    history["place"] = [*([-1] * len(valid)), *open_.index]
    history = history.sort_values(keys, kind="stable")
    same = history["label"].eq(history["label"].shift()) & history["request_id"].eq(history["request_id"].shift())
    run = (~same).cumsum()
    known = (~history["fresh"]).groupby(run).transform("any")
    first = ~run.duplicated()
    begins = ~history["request_id"].duplicated()
    unheard = ~history["request_id"].isin(valid["request_id"])
    said = np.where(known, "already", np.where(~first, "repeated", np.where(begins & unheard, NEW, CORRECTED)))
    fresh = history["fresh"].to_numpy(dtype=bool)
    kind.loc[history["place"][fresh]] = said[fresh]
    return kind


def _in(lines: pd.DataFrame, other: pd.DataFrame, keys: list[str]) -> pd.Series:
    found = pd.MultiIndex.from_frame(lines[keys]).isin(pd.MultiIndex.from_frame(other[keys]))
    return pd.Series(found, lines.index)
