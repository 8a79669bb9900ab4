"""What the gate asks of a candidate: its numbers, the limits they are held against, and each verdict. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from service.roles import Role

Direction = Literal["at least", "at most"]


@dataclass(frozen=True)
class Limits:
    """What a candidate must keep. "Excess" is log loss minus that of always answering the rate, in nats.

    Source of the defaults: ten trainings on the reference data, as of March to December, each compared with every
    earlier one; the worst figure among these honest ones is in brackets.

    Attributes:
        slice_rows: fewest rows of a slice that is judged by itself.
        slice_outcomes: fewest rows of either outcome in a slice whose AUC is judged.
        auc: least AUC (0.691).
        excess: greatest excess over all rows (-0.041).
        slice_excess: and within a slice (0.027).
        ece: greatest expected calibration error (0.058).
        spread: least standard deviation of the answers (0.119).
        refit_psi: greatest PSI from the evaluated model's answers to the refit one's (0.124).
        worse_log_loss, worse_auc: how much worse than the incumbent on the same rows (0.003, 0.002).
        slice_worse_log_loss, slice_worse_auc: and within a slice (0.036, 0.048).
        shift_psi: greatest PSI from the incumbent's answers to the candidate's on the same rows (0.263).
        baseline_psi: how much further than the incumbent itself, on these rows, from the incumbent's training
            baseline, in PSI (0.343). The distance alone says nothing: the season makes it 1.0 for a good model.
        slower: greatest ratio of the times to score one row.
        quick_ms: a time that is not held against anybody.
        slow_ms: greatest time when there is no incumbent; an answer has 50 ms in all.
    """

    slice_rows: int = 300
    slice_outcomes: int = 50
    auc: float = 0.65
    excess: float = 0.0
    slice_excess: float = 0.1
    ece: float = 0.1
    spread: float = 0.01
    refit_psi: float = 0.5
    worse_log_loss: float = 0.01
    worse_auc: float = 0.02
    slice_worse_log_loss: float = 0.06
    slice_worse_auc: float = 0.1
    shift_psi: float = 0.5
    baseline_psi: float = 0.5
    slower: float = 5.0
    quick_ms: float = 4.0
    slow_ms: float = 10.0


# The fallback knows the request only, so a season it cannot see passes for its own error (worst honest figures: AUC
# 0.620, excess 0.038 and 0.129 in a slice, calibration error 0.137).
FALLBACK = Limits(auc=0.58, excess=0.1, slice_excess=0.25, ece=0.2)
LIMITS: Mapping[Role, Limits] = {"primary": Limits(), "shadow": Limits(), "fallback": FALLBACK}


@dataclass(frozen=True)
class Check:
    """One number against its limit; a number that could not be had (NaN) fails."""

    name: str
    value: float
    limit: float
    direction: Direction
    passed: bool
    message: str


@dataclass(frozen=True)
class Slice:
    """The rows of one value of one column; differences are None where they cannot be had."""

    name: str
    rows: int
    excess: float
    worse_log_loss: float | None
    worse_auc: float | None


@dataclass(frozen=True)
class Against:
    """A candidate compared with its incumbent; see :class:`Limits`.

    The differences in quality are None when the incumbent learned from days the evaluated model has not seen.
    """

    name: str
    rows: int
    worse_log_loss: float | None
    worse_auc: float | None
    shift_psi: float
    baseline_psi: float | None
    latency_ms: float


@dataclass(frozen=True)
class Measured:
    """What is known of a candidate; NaN where its answers do not allow it.

    Attributes:
        unusable: answers, of either of its two models, that are no probability.
        notes: what could not be compared, and why.
    """

    rows: int
    unusable: int
    spread: float
    auc: float
    excess: float
    ece: float
    refit_psi: float
    latency_ms: float
    slices: tuple[Slice, ...]
    against: Against | None
    notes: tuple[str, ...]


def decide(measured: Measured, limits: Limits) -> tuple[Check, ...]:
    """Hold measured numbers against limits. Pure."""
    return tuple(_decide(measured, limits))


def _decide(m: Measured, limits: Limits) -> Iterator[Check]:
    yield _check(
        "unusable_answers", m.unusable, 0, "at most", "answers of its two models that are no number from 0 to 1"
    )
    if m.unusable:
        return
    yield _check("spread", m.spread, limits.spread, "at least", "standard deviation; a constant tells nothing")
    yield _check("auc", m.auc, limits.auc, "at least", "how well it ranks the outcomes of the evaluation weeks")
    yield _check("excess", m.excess, limits.excess, "at most", "log loss above that of always answering the rate")
    yield _check("ece", m.ece, limits.ece, "at most", "mean gap between its probabilities and the rates that came true")
    yield _check(
        "refit_psi", m.refit_psi, limits.refit_psi, "at most", "how unlike the evaluated model the refit answers"
    )
    slow = max(limits.quick_ms, limits.slower * m.against.latency_ms) if m.against else limits.slow_ms
    yield _check("latency_ms", m.latency_ms, slow, "at most", _beside(m.against))
    for part in m.slices:
        yield _check(f"excess[{part.name}]", part.excess, limits.slice_excess, "at most", f"in {part.rows} rows")
    if m.against:
        yield from _compare(m.against, m.slices, limits)


def _compare(found: Against, slices: Sequence[Slice], limits: Limits) -> Iterator[Check]:
    told = f"than {found.name} on the same rows"
    yield _check(
        "shift_psi",
        found.shift_psi,
        limits.shift_psi,
        "at most",
        f"how unlike {found.name} it answers on the same rows; see why",
    )
    if found.baseline_psi is not None:
        about = f"further from the training baseline {told}; see why"
        yield _check("baseline_psi", found.baseline_psi, limits.baseline_psi, "at most", about)
    whole = Slice("", found.rows, 0, found.worse_log_loss, found.worse_auc)
    for part in (whole, *slices):
        where = f"[{part.name}]" if part.name else ""
        loss, auc = limits.slice_worse_log_loss, limits.slice_worse_auc
        if not part.name:
            loss, auc = limits.worse_log_loss, limits.worse_auc
        for name, value, limit in (("log_loss", part.worse_log_loss, loss), ("auc", part.worse_auc, auc)):
            if value is not None:
                yield _check(f"worse_{name}{where}", value, limit, "at most", f"worse {told}, in {part.rows} rows")


def _check(name: str, value: float, limit: float, direction: Direction, about: str) -> Check:
    passed = value >= limit if direction == "at least" else value <= limit
    return Check(name, value, limit, direction, passed, f"{name} is {value:.4g} ({direction} {limit:.4g}): {about}")


def _beside(found: Against | None) -> str:
    return f"median time for one row; {found.name} takes {found.latency_ms:.2f}" if found else "median time for one row"
