"""Puts a split's verdict and evidence on one page for people and into one file for machines."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup

from monitoring.report import plain, templates, write
from monitoring.split_evidence import SplitEvidence
from monitoring.split_plots import split_plots
from monitoring.split_verdict import PAGE, rule_of, shown
from monitoring.verdict import Reason, Verdict

_MINUS = str.maketrans("-", "\u2212")


def write_report(verdict: Verdict, evidence: SplitEvidence, out: Path) -> Path:
    """Write ``split.html`` and ``split.json`` below ``out``, each in one rename; returns the page."""
    out.mkdir(parents=True, exist_ok=True)
    write(out / "split.json", json.dumps(as_json(verdict, evidence), indent=1, allow_nan=False) + "\n")
    write(out / PAGE, page(verdict, evidence))
    return out / PAGE


def as_json(verdict: Verdict, evidence: SplitEvidence) -> dict[str, Any]:
    """Return everything as plain JSON values, shaped as a shadow campaign's; ``kind`` tells them apart."""
    whole = {
        "kind": "split",
        "verdict": asdict(verdict),
        "digest": verdict.digest,
        "headline": headline(verdict, evidence),
        "evidence": asdict(evidence),
    }
    found: dict[str, Any] = plain(whole)
    return found


def page(verdict: Verdict, evidence: SplitEvidence) -> str:
    """Return the HTML page; it loads nothing from anywhere."""
    template = templates().get_template("split.html")
    text: str = template.render(
        verdict=verdict,
        e=evidence,
        headline=headline(verdict, evidence),
        plots={name: Markup(svg) for name, svg in split_plots(evidence).items()},
        in_words=in_words,
        advice=advice,
        notes=data_notes(evidence),
        unit=unit(evidence),
        number=number,
    )
    return text


def summary(verdict: Verdict, evidence: SplitEvidence) -> str:
    """Lay the result out for a terminal, 100 columns wide."""
    e = evidence
    lines = [
        "",
        f"  {verdict.decision.upper()}  {_name(e.treatment.version)} in {e.split.slot} against "
        f"{_name(e.control.version)}, split {e.split.name}",
        f"  {headline(verdict, e)}",
        "",
        f"  {'share':>7} {'from':>17} {'answers':>10} {unit(e) + 's':>10} {'treated':>8} {'counted':>8} "
        f"{'control':>9} {'treatment':>9}",
    ]
    lines += [
        f"  {s.share:7.0%} {s.start:%Y-%m-%d %H:%M}{s.requests:12,} {s.drawn:10,} {s.treated:8,} {s.counted:8,} "
        f"{number(s.control):>9} {number(s.treatment):>9}"
        for s in e.stages
    ]
    lines += ["", *(f"  {reason.outcome:<8}{reason.message}" for reason in verdict.reasons), ""]
    lines += [f"  note: {n:,} {what}" for what, n in data_notes(e)]
    return "\n".join(lines) + "\n"


def headline(verdict: Verdict, evidence: SplitEvidence) -> str:
    """Say in one sentence what was decided and why."""
    e = evidence
    treatment, control = _name(e.treatment.version), _name(e.control.version)
    outcome = f"{e.metric} ({e.goal} is better)"
    if verdict.decision == "promote":
        opening = (
            f"{treatment[0].upper()}{treatment[1:]} changes {outcome} for the better: the evidence is "
            f"{shown(rule_of('gain'), e.gain)} (20 promotes)."
        )
    else:
        reason = verdict.deciding[0]
        rule = rule_of(reason.criterion)
        cause = rule.finding if reason.outcome == "fail" else f"{rule.title.lower()} cannot be said yet"
        start = f"{control} stays" if verdict.decision == "hold" else f"{treatment} must not replace {control}"
        opening = f"{start[0].upper()}{start[1:]}: {cause}."
    if e.difference is None:
        return opening
    between = f", 95 % interval at every look {number(e.low)} to {number(e.high)}" if e.low is not None else ""
    return (
        f"{opening} {outcome[0].upper()}{outcome[1:]}: treatment \u2212 control is {number(e.difference)} on "
        f"{e.counted:,} {unit(e)}s{between}."
    )


def advice(reason: Reason) -> str:
    """Say what an unmet condition means and what to do about it; empty when it holds."""
    if reason.outcome == "pass":
        return ""
    rule = rule_of(reason.criterion)
    text = reason.message.partition(": ")[2] if reason.outcome == "no_data" else f"{rule.finding}; {rule.advice}"
    return f"{text[:1].upper()}{text[1:]}."


def in_words(reason: Reason) -> tuple[str, str]:
    """Return a reason's value and limit as people read them."""
    rule = rule_of(reason.criterion)
    return shown(rule, reason.value), f"{reason.direction} {shown(rule, reason.limit)}"


def unit(evidence: SplitEvidence) -> str:
    """What one unit is called."""
    return "key" if evidence.split.key else "request"


def number(value: float | None) -> str:
    """A number of unknown size, in four digits."""
    return "\u2013" if value is None else f"{value:.4g}".translate(_MINUS)


def data_notes(evidence: SplitEvidence) -> list[tuple[str, int]]:
    """Everything unusual found in the logs, as (what, how many), only what was found."""
    notes = evidence.notes
    found = [
        ("damaged lines in the logs, left out", notes.damaged_lines),
        ("answers repeating a request id, left out", notes.duplicates),
        (f"requests without {evidence.split.key}, no part of the split", notes.keyless),
        ("answers of models that are not the split's, left out", notes.foreign),
        (f"{unit(evidence)}s too young for their outcome", notes.waiting),
        (f"{unit(evidence)}s whose outcome was due and did not come", notes.valueless),
        *notes.values.items(),
    ]
    if len(evidence.service_versions) > 1:
        found.append(
            (f"service versions answered: {', '.join(evidence.service_versions)}", len(evidence.service_versions))
        )
    return [(what, n) for what, n in found if n]


def _name(version: str | None) -> str:
    return f"version {version}" if version else "the treated model"
