"""The skew audit: are served vectors those that training would have seen? ``make skew``.

Prints a summary, writes a page, and as its last line one JSON object: ``vectors, exact_share, worst_features`` and
more. Exits 1 when a value differs, a score cannot be reproduced, or a feature went missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

from monitoring.parity import FeatureParity
from monitoring.report import plain, templates, write
from monitoring.skew import Audit, audit
from service.errors import NotReady, UnderstudyError
from service.settings import settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the audit and return the exit code: 0 clean, 1 skew, 2 no audit possible."""
    parser = argparse.ArgumentParser(prog="make skew", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--logs", type=Path, help="folder of the logs (default: the service's)")
    parser.add_argument("--out", type=Path, help="folder for the page (default: reports/ in the state folder)")
    options = parser.parse_args(arguments)
    try:
        found = _audit(options.logs or settings().log_dir)
        if not found.parity.compared:
            why = (
                "the log does not hold their values"
                if found.parity.redacted
                else "the online store could never be asked"
            )
            msg = f"none of {found.parity.vectors} vectors can be compared: {why}"
            raise NotReady(msg)
    except UnderstudyError as error:
        sys.stderr.write(f"skew: {error}\n")
        return 2
    out: Path = options.out or settings().state_dir / "reports"
    out.mkdir(parents=True, exist_ok=True)
    write(out / "skew.json", json.dumps(plain(asdict(found)), indent=1, default=str) + "\n")
    write(out / "skew.html", page(found))
    write_series(settings().state_dir / "monitoring", found)
    sys.stdout.write(summary(found))
    sys.stdout.write(f"  report: {out / 'skew.html'}\n\n{json.dumps(last_line(found))}\n")
    return 0 if clean(found) else 1


def write_series(folder: Path, found: Audit) -> None:
    """Write the share of vectors that are not what training would have seen, for ``/jobs/metrics``."""
    registry = CollectorRegistry()
    share = Gauge(
        "understudy_skew_mismatch_share", "Share of compared vectors that differ from training's.", registry=registry
    )
    share.set(1 - found.parity.exact / found.parity.compared)
    folder.mkdir(parents=True, exist_ok=True)
    write_to_textfile(str(folder / "skew.prom"), registry)


def clean(found: Audit) -> bool:
    """Whether serving gave what training would have seen."""
    return (
        found.parity.exact == found.parity.compared
        and found.scores.equal == found.scores.compared
        and not _missing(found)
    )


def last_line(found: Audit) -> dict[str, Any]:
    """The result for machines."""
    parity, scores = found.parity, found.scores
    return {
        "vectors": parity.vectors,
        "compared": parity.compared,
        "exact_share": parity.exact_share,
        "worst_features": [_worst(feature) for feature in parity.worst[:5]],
        "unread": parity.unread,
        "redacted_features": _redacted(found),
        "scores": scores.compared,
        "scores_reproduced": scores.equal / scores.compared if scores.compared else None,
        "missing_features": _missing(found),
        "shifted_features": [shift.feature for shift in found.shifts if shift.alarm in ("shifted", "nulls")],
    }


def summary(found: Audit) -> str:
    """Lay the result out for a terminal, 100 columns wide."""
    parity, scores = found.parity, found.scores
    lines = [
        "",
        f"  {parity.exact:,} of {parity.compared:,} vectors are exactly what the offline store gives at their instant "
        f"({parity.exact / max(parity.compared, 1):.2%}).",
        f"  {scores.equal:,} of {scores.compared:,} predictions are reproduced from vector and model package."
        if scores.compared
        else "  No prediction was scored again: the package of no model that answered is here."
        if scores.unknown or not scores.redacted
        else "  No prediction was scored again: the log does not hold what the models take.",
    ]
    lines += [
        f"  {n:,} vectors of {view} were given an older row than was known." for view, n in parity.behind.items() if n
    ]
    lines += [
        f"  {n:,} vectors of {view} were given a row before it was known." for view, n in parity.ahead.items() if n
    ]
    if parity.unread:
        lines.append(f"  {parity.unread:,} vectors were made while the online store could not be asked.")
    if parity.redacted:
        names = ", ".join(_redacted(found))
        lines.append(f"  Not compared where the log does not hold them or what they are made from (redacted): {names}.")
    if scores.redacted:
        lines.append(f"  {scores.redacted:,} predictions could not be scored again for the same reason.")
    for feature in parity.worst:
        cause = feature.cause.text if feature.cause else ""
        lines.append(f"  {feature.feature:24}{feature.share:8.2%} differ   {cause}")
        lines += [
            f"      {e.request_id} at {e.at:%Y-%m-%d %H:%M}: served {e.served!r}, expected {e.expected!r}"
            for e in feature.examples[:1]
        ]
    lines.append("")
    alarms = [shift for shift in found.shifts if shift.alarm]
    if found.sample_of is None:
        lines.append("  No training sample of the model that answered is here: distributions were not compared.")
    elif not alarms:
        lines.append("  No feature is distributed otherwise than in training.")
    for shift in alarms:
        if shift.alarm in ("missing", "nulls"):
            text = f"null in {shift.serving_nulls:.1%} of vectors, in training {shift.training_nulls:.1%}"
        else:
            text = f"PSI {shift.psi:.3f}" + (f", KS {shift.ks:.3f}" if shift.ks is not None else "")
        lines.append(f"  {shift.feature:24} {shift.alarm:8} {text}")
    lines += [f"  note: {found.damaged_lines:,} damaged lines in the log, left out"] if found.damaged_lines else []
    return "\n".join(lines) + "\n"


def page(found: Audit) -> str:
    """Return the HTML page; it loads nothing from anywhere."""
    return templates().get_template("skew.html").render(
        audit=found, parity=found.parity, clean=clean(found), missing=_missing(found), redacted=_redacted(found),
        shifts={shift.feature: shift for shift in found.shifts},
    )  # fmt: skip


def _missing(found: Audit) -> list[str]:
    return [shift.feature for shift in found.shifts if shift.alarm == "missing"]


def _redacted(found: Audit) -> list[str]:
    return [feature.feature for feature in found.parity.features if feature.redacted]


def _worst(feature: FeatureParity) -> dict[str, Any]:
    return {
        "feature": feature.feature,
        "differing_share": round(feature.share, 6),
        "cause": feature.cause.kind if feature.cause else None,
    }


def _audit(log_dir: Path) -> Audit:
    # Reading the definitions imports Feast, which takes seconds: not before the arguments are known to be good.
    from feast import FeatureStore
    from feast.errors import FeastObjectNotFoundException
    from google.protobuf.message import DecodeError

    from feature_repo import features
    from service.definitions import contracts
    from service.feature_store import repo_config

    if not (settings().state_dir / "registry.db").exists():
        msg = f"{settings().state_dir} holds no feature registry; run `make train` first"
        raise NotReady(msg)
    contract = contracts(features)["primary"]
    try:
        store = FeatureStore(config=repo_config(settings(), offline=True))
        store.get_feature_service(contract.name)
    except (FeastObjectNotFoundException, DecodeError) as error:
        msg = f"{settings().state_dir / 'registry.db'} is empty or damaged ({error}); remove it and run `make train`"
        raise NotReady(msg) from error
    return audit(store, contract, log_dir, settings().models_dir)


if __name__ == "__main__":
    sys.exit(main())
