"""Compares the shadow with the primary from the logs: ``python -m monitoring.compare_job``.

Prints a summary for people and, as the last line, one JSON object: ``verdict, reasons, sampled, scored, dropped,
report``. Any verdict exits 0; without predictions or without a shadow it exits 1 and says what to do.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from monitoring import export
from monitoring.compare import Options, compare
from monitoring.criteria import default_criteria
from monitoring.evidence import Evidence
from monitoring.pairing import Paired, paired
from monitoring.report import Companions, better, data_notes, headline, write_report
from monitoring.verdict import Verdict, decide
from service.clock import clock_from
from service.contract import Contract, duration
from service.errors import UnderstudyError
from service.settings import settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison and return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except UnderstudyError as error:
        sys.stderr.write(f"compare: {error}\n")
        return 1
    return 0


def read_logs(log_dir: Path, contract: Contract) -> Paired:
    """Read the three logs below ``log_dir`` and join them."""
    return paired(export.predictions(log_dir, contract), export.shadow(log_dir), export.labels(log_dir))


def summary(verdict: Verdict, evidence: Evidence) -> str:
    """Lay the result out for a terminal, 100 columns wide."""
    ledger = evidence.ledger
    dropped = ", ".join(f"{n:,} {reason}" for reason, n in ledger.dropped.items()) or "0 dropped"
    lines = [
        "",
        f"  {verdict.decision.upper()}  shadow {_name(evidence.shadow.version, evidence.shadow.digest)}"
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

    contract = contracts(features)["primary"]
    criteria = default_criteria()
    criteria = criteria.model_copy(update={"plan": replace(criteria.plan, block=duration(options.block, "--block"))})
    asked = Options(
        maturity=duration(options.maturity, "--maturity"),
        plan=criteria.plan,
        now=clock_from(settings().clock).now(),
    )
    logs = read_logs(options.logs or settings().log_dir, contract)
    evidence = compare(logs, contract, asked)
    verdict = decide(evidence, criteria)
    out: Path = options.out or settings().state_dir / "reports"
    companions = Companions()
    if options.evidently:
        from monitoring.drift_report import write_drift_reports

        companions = write_drift_reports(logs.frame, contract, out)
    files = write_report(verdict, evidence, out, companions)
    sys.stdout.write(summary(verdict, evidence))
    sys.stdout.writelines(f"  note: {remark}\n" for remark in companions.remarks)
    sys.stdout.write(f"  report: {files.page}\n\n{_last_line(verdict, evidence, files.page)}\n")


def _last_line(verdict: Verdict, evidence: Evidence, report: Path) -> str:
    return json.dumps(
        {
            "verdict": verdict.decision,
            "reasons": [reason.message for reason in verdict.deciding],
            "sampled": evidence.ledger.sampled,
            "scored": evidence.ledger.scored,
            "dropped": sum(evidence.ledger.dropped.values()),
            "report": str(report),
        }
    )


def _name(version: str | None, digest: str | None) -> str:
    return f"version {version or '?'} ({(digest or 'no digest')[:12]})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="compare", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--logs", type=Path, help="folder of the logs (default: the service's)")
    parser.add_argument("--out", type=Path, help="folder for the reports (default: reports/ in the state folder)")
    parser.add_argument("--maturity", default="24h", help="age at which a label should have arrived (default 24h)")
    parser.add_argument("--block", default="1d", help="stretch of time whose rows depend on each other (default 1d)")
    parser.add_argument(
        "--no-evidently", dest="evidently", action="store_false", help="leave the Evidently reports out (saves 10 s)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
