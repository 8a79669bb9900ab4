"""How each criterion's value is read from the evidence, and how its outcome is put in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from monitoring.compare import LEAST_CALLS
from monitoring.evidence import Evidence, Latency
from monitoring.quality import Performance
from monitoring.statistics import Difference

# Below this many milliseconds two calls on a shared machine differ by scheduling, not by model.
LATENCY_SLACK_MS = 0.5
_NAMED = 3
# More evidence than this is not worth a number.
_MOST_EVIDENCE = 1e6
# What rows replayed from a log cannot show: nobody waited, nothing was sent, and everything asked was answered.
LIVE_ONLY = frozenset({"shadow_errors", "unaccounted", "coverage", "latency"})


@dataclass(frozen=True)
class Measured:
    """A value and the number of rows it rests on; None when it cannot be taken. ``detail`` names what it is about."""

    value: float | None
    rows: int
    detail: str = ""


@dataclass(frozen=True)
class Measure:
    """How a criterion's value is read from the evidence and put in words.

    Attributes:
        title: what it is, for people.
        section: where on the page its evidence is.
        read: takes it from the evidence.
        style: format of value and limit, as for :func:`format`.
        rows_are: what its rows are called.
        finding: what its failure means, as a clause about the shadow.
        advice: what to do then.
    """

    title: str
    section: str
    read: Callable[[Evidence], Measured]
    style: str
    rows_are: str
    finding: str
    advice: str


def like_for_like(calls: dict[str, Latency]) -> Latency | None:
    """The shadow calls to hold against the primary's."""
    single = calls.get("shadow_single")
    return single if single is not None and single.calls >= LEAST_CALLS else calls.get("shadow")


def _rate(*reasons: str) -> Callable[[Evidence], Measured]:
    return lambda evidence: Measured(evidence.ledger.rate(*reasons), evidence.ledger.sampled)


def _unaccounted(evidence: Evidence) -> Measured:
    ledger = evidence.ledger
    return Measured(ledger.unaccounted / ledger.sampled if ledger.sampled else None, ledger.sampled)


def _quality(read: Callable[[Performance], float | None]) -> Callable[[Evidence], Measured]:
    def measured(evidence: Evidence) -> Measured:
        found = evidence.performance
        return Measured(read(found), found.rows) if found else Measured(None, 0)

    return measured


def _metric(name: str, pick: Callable[[Difference], float | None]) -> Callable[[Evidence], Measured]:
    def read(found: Performance) -> float | None:
        metric = found.metric(name)
        return pick(metric.difference) if metric else None

    return _quality(read)


def _overconfidence(found: Performance) -> float | None:
    """Only what the shadow has beyond the primary counts: both suffer when the world moves."""
    both = found.overconfidence
    return None if both.shadow_low is None else min(both.shadow_low, both.shadow - both.primary)


def _too_good(found: Performance) -> float | None:
    metric = found.metric("log_loss")
    return metric.shadow / metric.primary if metric and metric.primary > 0 else None


def _slice_harm(evidence: Evidence) -> Measured:
    found = evidence.performance
    if found is None or not found.slices:
        return Measured(None, 0)
    named = [f"{s.column} {s.value} ({s.difference.value:+.4f})" for s in found.harmed[:_NAMED]]
    more = f" and {len(found.harmed) - _NAMED} more" if len(found.harmed) > _NAMED else ""
    rows = sum(s.difference.rows for s in found.harmed) or found.rows
    return Measured(float(len(found.harmed)), rows, ", ".join(named) + more)


def _lost(evidence: Evidence) -> Measured:
    found = evidence.lost_traffic
    if not found.differences:
        return Measured(None, found.lost)
    worst = found.differences[0]
    detail = f"{worst.what}: {worst.lost:.3f} on lost requests, {worst.kept:.3f} on kept ones"
    return Measured(worst.shift_low, found.lost, detail)


def _fading(evidence: Evidence) -> Measured:
    found = evidence.performance.fading if evidence.performance else None
    if found is None or evidence.performance is None:
        return Measured(None, 0)
    # A gain that only shrinks to what is still one is not a reason to wait.
    change = found.change_high if found.last < found.first / 2 else max(found.change_high, 0.0)
    detail = f"gain {found.first:+.4f} in the first third of the time, {found.last:+.4f} in the last"
    return Measured(change, evidence.performance.rows, detail)


def _latency(evidence: Evidence) -> Measured:
    """Ratio of the p95s beyond the slack; on shadow calls of a single row where there are enough of them."""
    calls = {entry.name: entry for entry in evidence.latency}
    primary, shadow = calls.get("primary"), like_for_like(calls)
    if primary is None or shadow is None or primary.p95 <= 0:
        return Measured(None, 0)
    beyond = max(0.0, shadow.p95 - LATENCY_SLACK_MS) / primary.p95
    return Measured(beyond, min(primary.calls, shadow.calls), f"p95 {shadow.p95:.2f} ms against {primary.p95:.2f} ms")


def _disagreement(evidence: Evidence) -> Measured:
    if not evidence.agreement:
        return Measured(None, 0)
    found = evidence.agreement[0]
    floor = "not measured" if found.noise is None else f"{found.noise:.2%}"
    return Measured(found.disagreement, found.rows, f"at threshold {found.threshold:g}; the primary's own: {floor}")


MEASURES: dict[str, Measure] = {
    "offline": Measure(
        "Scores given afterwards, on logged values", "offline",
        lambda e: Measured(float(e.offline), e.ledger.scored), ".0%", "scored requests",
        "replayed rows say nothing of the shadow's latency, its errors or the freshness of what it is served",
        "seat it as a shadow and let it rehearse on live requests",
    ),
    "declared": Measure(
        "Criteria other than those the campaign opened under", "data",
        lambda e: Measured(float(e.standing.changed) if e.standing else None, e.predictions), ".0f", "predictions",
        "the criteria are not those declared when the campaign opened",
        "judge it by those (put settings and options back), or open a new campaign with another shadow",
    ),
    "age": Measure(
        "Age of the campaign in days of the clock", "data",
        lambda e: Measured(e.days, e.predictions), ".1f", "predictions",
        "the campaign has expired without a verdict",
        "train a newer shadow; or raise UNDERSTUDY_CAMPAIGN_DAYS to let this one go on",
    ),
    "invalid_outputs": Measure(
        "Invalid outputs of the shadow, share of sampled requests", "losses",
        _rate("invalid_output"), ".2%", "sampled requests",
        "the shadow gives answers that are not probabilities",
        "find the inputs it cannot score and train again",
    ),
    "auc_harm": Measure(
        "AUC lost, lower bound of the interval", "quality",
        _metric("auc", lambda d: d.low), "+.4f", "labelled pairs",
        "the shadow ranks clearly worse",
        "check the encoding of its inputs, then train another",
    ),
    "overconfidence": Measure(
        "Overconfidence (1 minus calibration slope), lower bound, beyond the primary's at most", "quality",
        _quality(_overconfidence), "+.2f", "labelled pairs",
        "the shadow is surer than it is right",
        "calibrate it",
    ),
    "log_loss_harm": Measure(
        "Log-loss gain, upper bound of the interval", "quality",
        _metric("log_loss", lambda d: d.high), "+.4f", "labelled pairs",
        "the shadow's probabilities are clearly worse",
        "train another",
    ),
    "slice_harm": Measure(
        "Slices served worse, false discoveries controlled", "slices",
        _slice_harm, ",.0f", "labelled pairs", "the shadow is clearly worse for some slice",
        "see the slices: those requests would be served worse",
    ),
    "lost_rows_differ": Measure(
        "Distance of lost from kept requests in standard deviations, lower bound over all compared", "losses",
        _lost, ".2f", "lost requests",
        "the requests the shadow lost are not like those it scored",
        "stop the losses and run on",
    ),
    "too_good": Measure(
        "Shadow's log loss over the primary's", "quality",
        _quality(_too_good), ".2f", "labelled pairs",
        "the shadow is better than is plausible",
        "look for the label among its inputs",
    ),
    "gain_fades": Measure(
        "Change of the gain from the first to the last third of the time, upper bound", "quality",
        _fading, "+.4f", "labelled pairs",
        "the shadow's gain does not last",
        "look for labels among what it was trained on, or train it on newer data",
    ),
    "duration": Measure(
        "Days of clock time since the campaign opened", "data",
        lambda e: Measured(e.days, e.predictions), ".1f", "predictions",
        "the campaign is too young",
        "let the shadow run on: no week is like one day of it",
    ),
    "paired_rows": Measure(
        "Requests with both scores and a mature label", "quality",
        lambda e: Measured(float(e.performance.rows), e.performance.rows) if e.performance else Measured(0.0, 0),
        ",.0f", "labelled pairs", "too few requests have both scores and a label",
        "let the shadow run on, or deliver the labels",
    ),
    "blocks": Measure(
        "Independent blocks of time with labels", "quality",
        lambda e: Measured(float(e.performance.blocks), e.performance.rows) if e.performance else Measured(0.0, 0),
        ",.0f", "labelled pairs", "the labels span too short a time",
        "let the shadow run on: rows of one block say little about the next",
    ),
    "label_coverage": Measure(
        "Mature predictions with a label", "data",
        lambda e: Measured(e.label_coverage.rate, e.label_coverage.mature), ".1%", "mature predictions",
        "too many labels are missing",
        "find out why labels are missing: those that arrive may not be like the rest",
    ),
    "shadow_errors": Measure(
        "Errors and timeouts of the shadow, share of sampled requests", "losses",
        _rate("error", "timeout"), ".2%", "sampled requests", "the shadow fails too often",
        "read the shadow runner's log",
    ),
    "unaccounted": Measure(
        "Sampled requests without a shadow record", "losses", _unaccounted, ".2%", "sampled requests",
        "sampled requests are missing from the shadow log",
        "look for killed processes or a full disk in the campaign",
    ),
    "coverage": Measure(
        "Sampled requests the shadow scored", "losses",
        lambda e: Measured(e.ledger.coverage, e.ledger.sampled), ".1%", "sampled requests",
        "the shadow scored too few of its requests",
        "see what was dropped and why: give the shadow more room (processor, queue, batch, timeout), or sample less",
    ),
    "latency": Measure(
        f"Shadow's p95 latency over the primary's, the first {LATENCY_SLACK_MS:g} ms free", "latency",
        _latency, ".2f", "calls", "the shadow is too slow",
        "make the model smaller, or give its runner more room",
    ),
    "score_correlation": Measure(
        "Rank correlation of both scores", "scores",
        lambda e: Measured(e.scores.rank_correlation, e.scores.rows) if e.scores else Measured(None, 0),
        ".2f", "pairs", "the shadow's scores hardly resemble the primary's",
        "check the encoding of its inputs",
    ),
    "disagreement": Measure(
        "Requests decided otherwise, beyond the primary's own noise", "scores",
        _disagreement, ".1%", "pairs", "the shadow decides too many requests otherwise",
        "look at the disagreements: so many changed decisions need somebody's consent",
    ),
    "calibration_harm": Measure(
        "Calibration gain, primary's error minus the shadow's", "quality",
        _metric("ece", lambda d: d.value), "+.4f", "labelled pairs",
        "the shadow's probabilities are off",
        "calibrate it",
    ),
    "accuracy_harm": Measure(
        "Right decisions lost, lower bound of the interval", "quality",
        _metric("accuracy", lambda d: d.low), "+.4f", "labelled pairs",
        "the shadow decides clearly worse",
        "see the decisions: a better log loss is not better for them",
    ),
    "gain": Measure(
        "Evidence for a gain (e-value; 20 is reached without one in at most 5 % of campaigns)", "quality",
        _quality(lambda p: min(p.gain.combined, _MOST_EVIDENCE)), ",.1f", "labelled pairs",
        "there is no evidence that the shadow is better",
        "run on, or train a better one",
    ),
    "log_loss_margin": Measure(
        "Log-loss gain, estimate", "quality",
        _metric("log_loss", lambda d: d.value), "+.4f", "labelled pairs",
        "the shadow's probabilities look worse",
        "run on",
    ),
    "auc_margin": Measure(
        "AUC lost, estimate", "quality",
        _metric("auc", lambda d: d.value), "+.4f", "labelled pairs",
        "the shadow seems to rank worse",
        "run on",
    ),
}  # fmt: skip
