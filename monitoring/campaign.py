"""Which rows a comparison is about: the stretch of traffic of the newest pair of models, and what was lost in it."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from monitoring.evidence import Ledger, Version


@dataclass(frozen=True)
class Campaign:
    """The rows of one pair of models.

    Attributes:
        frame: those rows, a subset of the paired frame.
        primary, shadow: the pair.
        other_versions: rows set aside, by the pair that was at work, as ``primary 1, shadow 2``.
    """

    frame: pd.DataFrame
    primary: Version
    shadow: Version
    other_versions: dict[str, int]


def newest_campaign(frame: pd.DataFrame) -> Campaign:
    """Cut the paired frame down to the newest pair of models.

    A dropped request names no shadow, so rows belong to a campaign by time: everything after the last row that
    another primary answered or another shadow scored.
    """
    answered = frame["role"].eq("primary") & frame["model_digest"].notna()
    scored = frame["shadow_digest"].notna()
    primary = _newest(frame, answered, "model_version", "model_digest")
    shadow = _newest(frame, scored, "shadow_version", "shadow_digest")
    foreign = (answered & _differs(frame["model_digest"], primary)) | (
        scored & _differs(frame["shadow_digest"], shadow)
    )
    if not foreign.any():
        return Campaign(frame, primary, shadow, {})
    ours = frame["at"] > frame.loc[foreign, "at"].max()
    aside = frame[~ours]
    pairs = (
        "primary "
        + aside["model_version"].where(answered[~ours]).fillna("none").astype(str)
        + ", shadow "
        + aside["shadow_version"].fillna("none").astype(str)
    )
    counts = {str(pair): int(n) for pair, n in pairs.value_counts().items()}
    return Campaign(frame[ours].reset_index(drop=True), primary, shadow, counts)


def valid_scores(scores: pd.Series) -> pd.Series:
    """Whether each score is a probability."""
    return scores.between(0.0, 1.0)


def is_scored(frame: pd.DataFrame) -> pd.Series:
    """Whether the shadow gave each row a valid score."""
    return frame["shadow_outcome"].eq("scored") & valid_scores(frame["shadow_prediction"])


def ledger(frame: pd.DataFrame) -> Ledger:
    """Account for every sampled request of a campaign; a line that claims a score without one is an invalid output."""
    asked = frame["shadow_sampled"].fillna(value=False).astype(bool)
    # Without the vectors, which are most of a frame.
    sampled = frame.loc[asked, ["shadow_outcome", "shadow_reason", "shadow_prediction"]]
    scored = is_scored(sampled)
    lined = sampled["shadow_outcome"].notna()
    lost = sampled[lined & ~scored]
    reasons = lost["shadow_reason"].where(lost["shadow_outcome"].ne("scored"), "invalid_output").fillna("unknown")
    return Ledger(
        sampled=len(sampled),
        scored=int(scored.sum()),
        dropped={str(reason): int(n) for reason, n in reasons.value_counts().items()},
        unaccounted=int((~lined).sum()),
    )


def _differs(digests: pd.Series, model: Version) -> pd.Series:
    return ~digests.isin([model.digest])


def _newest(frame: pd.DataFrame, which: pd.Series, version: str, digest: str) -> Version:
    rows = frame.loc[which, ["at", version, digest]]
    if rows.empty:
        return Version(None, None)
    last = rows.loc[rows["at"].idxmax()]
    return Version(None if pd.isna(last[version]) else str(last[version]), str(last[digest]))
