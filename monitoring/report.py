"""Puts verdict and evidence on one page for people and into one file for machines."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from monitoring.evidence import Evidence, Version
from monitoring.measures import MEASURES
from monitoring.offline import Rehearsal
from monitoring.plots import plots
from monitoring.quality import Metric
from monitoring.verdict import Reason, Verdict

_NONE = "\u2013"
_TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Files:
    """Where the two reports were written."""

    page: Path
    data: Path


@dataclass(frozen=True)
class Companions:
    """Further pages in the report's folder.

    Attributes:
        pages: file name and what it shows.
        remarks: what was left out of them, and why.
    """

    pages: tuple[tuple[str, str], ...] = ()
    remarks: tuple[str, ...] = ()


def write_report(
    verdict: Verdict, evidence: Evidence, out: Path, companions: Companions | None = None, stem: str = "compare"
) -> Files:
    """Write ``<stem>.html`` and ``<stem>.json`` below ``out``; each appears in one rename."""
    out.mkdir(parents=True, exist_ok=True)
    files = Files(out / f"{stem}.html", out / f"{stem}.json")
    write(files.data, json.dumps(as_json(verdict, evidence), indent=1, allow_nan=False) + "\n")
    write(files.page, page(verdict, evidence, companions, stem))
    return files


def as_json(verdict: Verdict, evidence: Evidence) -> dict[str, Any]:
    """Return everything in the verdict and the evidence as plain JSON values; what is not finite becomes null."""
    whole: dict[str, Any] = {
        "verdict": asdict(verdict),
        "digest": verdict.digest,
        "offline": verdict.offline,
        "would_be": verdict.would_be,
        "headline": headline(verdict, evidence),
        "evidence": asdict(evidence),
    }
    whole["evidence"]["ledger"]["coverage"] = evidence.ledger.coverage
    whole["evidence"]["label_coverage"]["rate"] = evidence.label_coverage.rate
    out: dict[str, Any] = plain(whole)
    return out


def page(verdict: Verdict, evidence: Evidence, companions: Companions | None = None, stem: str = "compare") -> str:
    """Return the HTML page; it loads nothing from anywhere. Its numbers are in ``<stem>.json`` beside it."""
    return (
        templates()
        .get_template("compare.html")
        .render(
            verdict=verdict,
            evidence=evidence,
            headline=headline(verdict, evidence),
            plots={name: Markup(svg) for name, svg in plots(evidence).items()},
            in_words=in_words,
            advice=advice,
            better=better,
            versions=(("primary", verdict.primary), ("shadow", verdict.shadow)),
            notes=data_notes(evidence),
            companions=companions or Companions(),
            data_file=f"{stem}.json",
        )
    )


def templates() -> Environment:
    """The pages' templates and the ways in which they write numbers."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(
        count=lambda n: f"{n:,}",
        signed=lambda x: _NONE if x is None else _minus(f"{x:+.4f}"),
        fixed=lambda x, places=4: _NONE if x is None else _minus(f"{x:.{places}f}"),
        percent=lambda x, places=1: _NONE if x is None else f"{x:.{places}%}",
        points=lambda x: _NONE if x is None else _minus(f"{x:+.2%}"),
        odds=lambda e: f"{e:,.2f}" if e < 100 else _evidence(e),
        moment=lambda at: f"{at:%-d %b %Y, %H:%M}",
        short=lambda digest: digest[:12] if digest else _NONE,
    )
    return environment


def headline(verdict: Verdict, evidence: Evidence) -> str:
    """Say in one sentence what was decided and why."""
    shadow, primary = _name(verdict.shadow), _name(verdict.primary)
    found = evidence.performance
    if verdict.decision == "promote" and found is not None:
        return (
            f"{shadow[0].upper()}{shadow[1:]} is better than {primary}: over {found.blocks} blocks of time the "
            f"evidence for a gain is {_evidence(found.gain.combined)} (20 promotes).{_loss(evidence)}"
        )
    if verdict.decision == "hold" and evidence.rehearsal is not None:
        return _offline_headline(verdict, evidence, evidence.rehearsal)
    finding = _finding(verdict.deciding[0])
    opening = f"{primary} stays" if verdict.decision == "hold" else f"{shadow} must not replace {primary}"
    text = f"{opening[0].upper()}{opening[1:]}: {finding}.{_loss(evidence)}"
    more = len(verdict.deciding) - 1
    return text + (f" {more} further condition{'s are' if more > 1 else ' is'} not met." if more else "")


def _offline_headline(verdict: Verdict, evidence: Evidence, told: Rehearsal) -> str:
    primary = _name(verdict.primary)
    others = [reason for reason in verdict.deciding if reason.criterion != "offline"]
    why = f": {_finding(others[0])}" if others else ""
    return (
        f"{primary[0].upper()}{primary[1:]} stays: version {told.version} was asked afterwards, on logged values, and "
        f"that is not enough to promote. On those rows alone the verdict would be {verdict.would_be}{why}."
        f"{_loss(evidence)}"
    )


def _loss(evidence: Evidence) -> str:
    gain = evidence.performance.metric("log_loss") if evidence.performance else None
    if gain is None or gain.difference.low is None or gain.difference.high is None:
        return ""
    d = gain.difference
    return (
        f" Log loss {gain.shadow:.4f} against {gain.primary:.4f} on {d.rows:,} labelled requests, a gain of "
        f"{_minus(f'{d.value:.4f}')} (95 % interval at every look: {_minus(f'{d.low:.4f}')} to "
        f"{_minus(f'{d.high:.4f}')})."
    )


def _evidence(e_value: float) -> str:
    return f"{e_value:,.0f}" if e_value < 1e6 else "above a million"


def advice(reason: Reason) -> str:
    """Say what an unmet condition means and what to do about it; empty when it holds."""
    if reason.outcome == "pass":
        return ""
    if reason.outcome == "no_data":
        return _sentence(reason.message.partition(": ")[2])
    measure = MEASURES[reason.criterion]
    about = f" ({reason.detail})" if reason.detail else ""
    return _sentence(f"{measure.finding}{about}; {measure.advice}")


def in_words(reason: Reason) -> tuple[str, str]:
    """Return a reason's value and limit as people read them."""
    style = MEASURES[reason.criterion].style
    value = _NONE if reason.value is None else _minus(format(reason.value, style))
    return value, f"{reason.direction} {_minus(format(reason.limit, style))}"


def better(metric: Metric) -> str:
    """Name the role a metric speaks for, by its interval."""
    low, high = metric.difference.low, metric.difference.high
    if low is None or high is None:
        return "too few blocks" if metric.difference.value else "no difference"
    if low <= 0 <= high:
        return "no clear difference"
    return "primary" if (low > 0) == metric.higher_is_better else "shadow"


def data_notes(evidence: Evidence) -> list[tuple[str, int]]:
    """Everything unusual found in the logs, as (what, how many), only what was found."""
    notes, labels = evidence.notes, evidence.notes.labels
    found = [(f"damaged lines in the {log} log, left out", n) for log, n in notes.damaged_lines.items()]
    found += [
        ("prediction lines repeating a request id, left out", notes.duplicate_predictions),
        ("shadow lines repeating a request id, left out", notes.duplicate_shadow),
        ("shadow lines without a prediction in the log, left out", notes.orphan_shadow),
        ("shadow lines of requests that were not sampled, left out", notes.unasked_shadow),
        ("labels that are neither 0 nor 1, left out", labels.invalid),
        ("labels sent again unchanged", labels.duplicates),
        ("requests with contradicting labels; the latest known counts", labels.contradictions),
        ("labels of requests that are not in the log, left out", labels.orphans),
        ("labels known before the prediction was made, left out", labels.early),
        ("predictions too young for a label, not scored", evidence.label_coverage.immature),
        ("old predictions without a label", evidence.label_coverage.mature - evidence.label_coverage.labelled),
        ("predictions dated later than the clock, left out", evidence.clock.predictions),
        ("labels dated later than the clock", evidence.clock.labels),
        ("sampled requests without a shadow record", evidence.ledger.unaccounted),
    ]
    found += [(f"predictions with {name} redacted: in none of its slices", n) for name, n in evidence.redacted.items()]
    found += _told(evidence.rehearsal)
    found += [(f"predictions while {pair} were at work, set aside", n) for pair, n in evidence.other_versions.items()]
    if len(evidence.service_versions) > 1:
        found += [(f"predictions answered by service version {v}", n) for v, n in evidence.service_versions.items()]
    return [(what, n) for what, n in found if n]


def _told(told: Rehearsal | None) -> list[tuple[str, int]]:
    if told is None:
        return []
    return [
        (f"predictions from version {told.version}'s training, left out: it may know their labels", told.trained_on),
        ("predictions without a value the model takes (redacted), left out", told.redacted),
        ("answers of the primary that do not come out again from the logged values", told.again - told.reproduced),
    ]


def _finding(reason: Reason) -> str:
    if reason.outcome == "no_data":
        return f"one thing cannot be said yet, {MEASURES[reason.criterion].title.lower()}"
    return MEASURES[reason.criterion].finding


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _name(version: Version) -> str:
    return f"version {version.version}" if version.version else "an unknown version"


def _minus(text: str) -> str:
    return text.replace("-", "\u2212")


def plain(value: Any) -> Any:
    """Turn dataclass dictionaries into JSON values; what is not finite becomes null."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write(path: Path, text: str) -> None:
    """Write a file that appears in one rename."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
