"""Decides whether to train again, keeps the decision on record and trains nothing: ``make retrain-check``.

Last line: one JSON object. Exit code 0 whatever is decided; 2: nothing could be decided.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

from monitoring.retraining_facts import gather, read_decisions
from monitoring.retraining_rules import Decision, Facts, Limits, decide
from service.clock import clock_from
from service.errors import UnderstudyError
from service.journal import append_line
from service.roles import locked
from service.settings import Settings, settings

FILE = "decisions.jsonl"


def main(arguments: Sequence[str] | None = None) -> int:
    """Decide and return the exit code."""
    parser = argparse.ArgumentParser(prog="make retrain-check", description=(__doc__ or "").partition("\n")[0])
    parser.parse_args(arguments)
    try:
        own = settings()
        decision, fresh = check(own)
    except (UnderstudyError, OSError) as error:
        sys.stderr.write(f"retrain-check: {error}\n")
        return 2
    sys.stdout.write(summary(decision))
    record = folder(own.state_dir) / FILE
    sys.stdout.write(f"\n{json.dumps({**decision.plain(), 'recorded_now': fresh, 'record': str(record)})}\n")
    return 0


def check(own: Settings) -> tuple[Decision, bool]:
    """Decide and keep the decision; returns it and whether it is a new one.

    The same evidence gives the same decision, which is on record once.
    """
    folder(own.state_dir).mkdir(parents=True, exist_ok=True)
    with locked(folder(own.state_dir) / ".lock"):
        return settled(own, gather(own, clock_from(own.clock).now()))


def settled(own: Settings, facts: Facts) -> tuple[Decision, bool]:
    """Decide on facts, record it unless it is on record already, and write the series; the caller locks."""
    decision = decide(facts, limits_of(own))
    known, _ = read_decisions(folder(own.state_dir) / FILE)
    own_kind = [line for line in known if line.get("decision") in ("retrain", "wait", "no data")]
    fresh = not any(line.get("key") == decision.key for line in own_kind)
    if fresh:
        append_line(folder(own.state_dir) / FILE, json.dumps(decision.plain(), sort_keys=True))
    write_series(own.state_dir / "monitoring", decision)
    return decision, fresh


def limits_of(own: Settings) -> Limits:
    """The settings that bear on it."""
    return Limits(
        own.retrain_max_age_days, own.retrain_every_days, own.retrain_cooldown_days, own.label_complete,
        own.label_maturity_h / 24,
    )  # fmt: skip


def folder(state_dir: Path) -> Path:
    """Where the decisions are."""
    return state_dir / "retraining"


def summary(decision: Decision) -> str:
    """Lay the decision out for a terminal."""
    lines = ["", f"  {decision.decision.upper()}  at {decision.at:%Y-%m-%d %H:%M} UTC"]
    lines += [f"  {reason.outcome:<8} {reason.name:<11} {reason.text}" for reason in decision.reasons]
    return "\n".join(lines) + "\n"


def write_series(where: Path, decision: Decision) -> None:
    """Write the decision for ``/jobs/metrics``."""
    registry = CollectorRegistry()
    text = "Whether retraining is due (1) by the newest decision."
    Gauge("understudy_retraining_due", text, registry=registry).set(float(decision.decision == "retrain"))
    text = "When retraining was last decided on, by the bundle's clock."
    last = Gauge("understudy_retraining_decided_timestamp_seconds", text, registry=registry)
    last.set(decision.at.timestamp())
    where.mkdir(parents=True, exist_ok=True)
    write_to_textfile(str(where / "retraining.prom"), registry)


if __name__ == "__main__":
    sys.exit(main())
