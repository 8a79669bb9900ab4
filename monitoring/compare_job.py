"""Compares each shadow with the primary from the logs: ``python -m monitoring.compare_job``.

Prints a summary for people and, as the last line, one JSON object: ``verdict, reasons, sampled, scored, dropped,
report`` of the first slot that has a campaign, and ``campaigns``: of each slot its ``verdict``, ``shadow``,
``campaign`` and ``report``. Any verdict exits 0; without predictions or without a shadow it exits 1 and says what to
do.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from monitoring import export
from monitoring.campaigns import gone, judge
from monitoring.compare import Options, compare
from monitoring.criteria import declared_criteria
from monitoring.evidence import Evidence
from monitoring.export import Export
from monitoring.maturity import matures
from monitoring.pairing import FIRST, Paired, paired, slots_in
from monitoring.report import Companions, better, data_notes, headline, write_report
from monitoring.verdict import Verdict
from service.clock import clock_from
from service.contract import Contract, duration
from service.errors import DataError, UnderstudyError
from service.settings import Settings, settings


@dataclass(frozen=True)
class Logs:
    """The three logs, read once for all slots."""

    predictions: Export
    shadow: Export
    labels: Export

    @property
    def slots(self) -> list[str]:
        """The slots to compare; the first one when none rehearsed, whose comparison says what to do."""
        return slots_in(self.predictions, self.shadow) or [FIRST]

    def of(self, slot: str) -> Paired:
        """Join them for one slot."""
        return paired(self.predictions, self.shadow, self.labels, slot)


@dataclass(frozen=True)
class Compared:
    """The comparison of one slot."""

    slot: str
    logs: Paired
    evidence: Evidence
    verdict: Verdict

    @property
    def stem(self) -> str:
        """File name of its reports, without the ending."""
        return stem_of(self.slot)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison and return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except UnderstudyError as error:
        sys.stderr.write(f"compare: {error}\n")
        return 1
    return 0


def stem_of(slot: str) -> str:
    """Return the file name of a slot's reports, without the ending."""
    return "compare" if slot == FIRST else f"compare-{slot}"


def open_logs(log_dir: Path, contract: Contract) -> Logs:
    """Read the three logs below ``log_dir``."""
    return Logs(export.predictions(log_dir, contract), export.shadow(log_dir), export.labels(log_dir))


def summary(verdict: Verdict, evidence: Evidence) -> str:
    """Lay the result out for a terminal, 100 columns wide."""
    ledger = evidence.ledger
    dropped = ", ".join(f"{n:,} {reason}" for reason, n in ledger.dropped.items()) or "0 dropped"
    lines = [
        "",
        f"  {verdict.decision.upper()}  {evidence.slot} {_name(evidence.shadow.version, evidence.shadow.digest)}"
        f" against primary {_name(evidence.primary.version, evidence.primary.digest)}",
        f"  {headline(verdict, evidence)}",
        "",
        f"  sampled {ledger.sampled:,} = scored {ledger.scored:,} + dropped ({dropped})"
        f" + unaccounted {ledger.unaccounted:,}",
    ]
    for entry in evidence.latency:
        lines.append(
            f"  {entry.name:<14} p50 {entry.p50:8.2f} ms   p95 {entry.p95:8.2f} ms   p99 {entry.p99:8.2f} ms"
            f"   {entry.calls:>9,} calls"
        )
    if evidence.performance:
        lines += ["", f"  {'':<33}{'primary':>9} {'shadow':>9} {'primary - shadow, 95 %':>32}   better"]
        for metric in evidence.performance.metrics:
            d = metric.difference
            interval = (
                f"{d.low:+.4f} to {d.high:+.4f}" if d.low is not None and d.high is not None else "too few blocks"
            )
            shown = f"{d.value:+.4f} ({interval})"
            lines.append(
                f"  {metric.title:<33}{metric.primary:>9.4f} {metric.shadow:>9.4f} {shown:>32}   {better(metric)}"
            )
    lines += ["", *(f"  {reason.outcome:<8}{reason.message}" for reason in verdict.reasons), ""]
    lines += [f"  note: {n:,} {what}" for what, n in data_notes(evidence)]
    return "\n".join(lines) + "\n"


def _run(options: argparse.Namespace) -> None:
    # Reading the definitions imports Feast, which takes seconds: not before the arguments are known to be good.
    from feature_repo import features
    from service.definitions import contracts

    asked, contract = settings(), contracts(features)["primary"]
    log_dir: Path = options.logs or asked.log_dir
    out: Path = options.out or asked.state_dir / "reports"
    every, left_out = _compare_all(open_logs(log_dir, contract), contract, asked, options, log_dir.parent / "campaigns")
    reports = {}
    for each in every:
        companions = _companions(each, every, contract, out, evidently=options.evidently)
        remarks = (*companions.remarks, *gone(asked.models_dir, each.evidence))
        companions = replace(companions, remarks=remarks)
        reports[each.slot] = write_report(each.verdict, each.evidence, out, companions, each.stem).page
        sys.stdout.write(summary(each.verdict, each.evidence))
        sys.stdout.writelines(f"  note: {remark}\n" for remark in remarks)
        sys.stdout.write(f"  report: {reports[each.slot]}\n")
    sys.stdout.writelines(f"  note: {why}\n" for why in left_out)
    sys.stdout.write(f"\n{json.dumps(_last_line(every, reports))}\n")


def _compare_all(
    logs: Logs, contract: Contract, asked: Settings, options: argparse.Namespace, records: Path
) -> tuple[list[Compared], list[str]]:
    maturity = matures(options.maturity, asked.label_maturity_h)
    criteria = declared_criteria(asked, duration(options.block, "--block"))
    how = Options(maturity=maturity, plan=criteria.plan, now=clock_from(asked.clock).now())
    every: list[Compared] = []
    left_out: list[str] = []
    for slot in logs.slots:
        joined = logs.of(slot)
        try:
            found = compare(joined, contract, how)
        except DataError as error:
            left_out.append(f"{slot}: {error}")
            continue
        hours = maturity.total_seconds() / 3600
        judged = judge(records, found, criteria, hours, asked.campaign_days, f"{stem_of(slot)}.html")
        every.append(Compared(slot, joined, *judged))
    if not every:
        raise DataError("; ".join(left_out))
    return every, left_out


def _companions(
    each: Compared, every: Sequence[Compared], contract: Contract, out: Path, *, evidently: bool
) -> Companions:
    others = tuple((f"{o.stem}.html", f"The campaign in slot {o.slot}") for o in every if o.slot != each.slot)
    if not evidently:
        return Companions(others)
    from monitoring.drift_report import write_drift_reports

    if each.slot == FIRST:
        made = write_drift_reports(each.logs.frame, contract, out)
        return replace(made, pages=made.pages + others)
    made = write_drift_reports(each.logs.frame, contract, out / each.slot)
    return replace(made, pages=tuple((f"{each.slot}/{name}", what) for name, what in made.pages) + others)


def _last_line(every: Sequence[Compared], reports: dict[str, Path]) -> dict[str, Any]:
    first = every[0]
    ledger = first.evidence.ledger
    return {
        "verdict": first.verdict.decision,
        "reasons": [reason.message for reason in first.verdict.deciding],
        "sampled": ledger.sampled,
        "scored": ledger.scored,
        "dropped": sum(ledger.dropped.values()),
        "report": str(reports[first.slot]),
        "campaigns": {
            each.slot: {
                "verdict": each.verdict.decision,
                "shadow": each.evidence.shadow.version,
                "campaign": each.evidence.campaign,
                "report": str(reports[each.slot]),
            }
            for each in every
        },
    }


def _name(version: str | None, digest: str | None) -> str:
    return f"version {version or '?'} ({(digest or 'no digest')[:12]})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="compare", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--logs", type=Path, help="folder of the logs (default: the service's)")
    parser.add_argument("--out", type=Path, help="folder for the reports (default: reports/ in the state folder)")
    parser.add_argument("--maturity", help="age at which a label should have arrived, as 36h (default: the setting)")
    parser.add_argument("--block", default="1d", help="stretch of time whose rows depend on each other (default 1d)")
    parser.add_argument(
        "--no-evidently", dest="evidently", action="store_false", help="leave the Evidently reports out (saves 10 s)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
