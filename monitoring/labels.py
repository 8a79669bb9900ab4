"""Which label counts: one per request, with everything unusual about the others counted."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class LabelNotes:
    """What was found in the label log.

    Attributes:
        lines: whole lines read.
        invalid: lines whose label is neither 0 nor 1; left out.
        duplicates: further lines that repeat the label that counts.
        contradictions: requests with lines that disagree; the latest known counts.
        orphans: requests labelled that no prediction in the log asked about.
        early: labels known before the prediction was made; left out, the answer could have been known to it.
    """

    lines: int = 0
    invalid: int = 0
    duplicates: int = 0
    contradictions: int = 0
    orphans: int = 0
    early: int = 0


def resolve(lines: pd.DataFrame, predictions: pd.DataFrame) -> tuple[pd.DataFrame, LabelNotes]:
    """Pick for each request the label with the latest ``known_at``, then the last written.

    Args:
        lines: every line of the label log, in the order written: ``request_id, label, known_at, at``.
        predictions: one row per request: ``request_id, at``.

    Returns:
        A frame ``request_id, label, known_at`` with at most one row per prediction, and the counts.
    """
    valid = lines[lines["label"].isin((0.0, 1.0))]
    # A stable sort keeps the order written within equal times; a line without receipt time sorts before others.
    ordered = valid.sort_values(["known_at", "at"], kind="stable", na_position="first")
    last = ordered.drop_duplicates("request_id", keep="last").set_index("request_id")
    counting = ordered["request_id"].map(last["label"])
    agrees = ordered["label"].to_numpy(dtype=float) == counting.to_numpy(dtype=float)
    made_at = predictions.set_index("request_id")["at"]
    asked = last[last.index.isin(made_at.index)]
    early = asked["known_at"] < made_at.reindex(asked.index)
    notes = LabelNotes(
        lines=len(lines),
        invalid=len(lines) - len(valid),
        duplicates=int(agrees.sum()) - len(last),
        contradictions=int(ordered.loc[~agrees, "request_id"].nunique()),
        orphans=len(last) - len(asked),
        early=int(early.sum()),
    )
    return asked.loc[~early, ["label", "known_at"]].reset_index(), notes
