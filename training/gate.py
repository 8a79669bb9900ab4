"""Judges a candidate before anything of it is kept: against limits, and against the model it would follow.

The numbers come from the evaluation weeks. Quality is that of the model which has not seen them; what would be seated
is a refit with them, of which is asked that it answers, quickly, and much as the other did.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from service.errors import UnderstudyError
from service.progress import Say
from service.roles import Role, kind_of
from training.fitting import Fitted
from training.gate_measure import find_incumbent, measure
from training.gate_rules import LIMITS, Check, decide


class GateRefused(UnderstudyError):
    """A candidate broke a limit; nothing was registered or seated.

    Attributes:
        failed: the checks it failed.
    """

    def __init__(self, message: str, failed: Sequence[Check]) -> None:
        super().__init__(message)
        self.failed = tuple(failed)


def judge(folder: Path, models_dir: Path, fitted: Fitted, at: datetime, forced: str, say: Say) -> tuple[Check, ...]:
    """Measure and decide on a candidate, write ``<role>-<as_of>.json`` in a folder and return the failed checks.

    Args:
        forced: why the checks are to be passed over, "" when they are not.
    """
    limits = LIMITS[kind_of(fitted.role)]
    incumbent, missing = find_incumbent(models_dir, fitted.role)
    measured = measure(fitted, incumbent, limits, [missing] if missing else [])
    checks = decide(measured, limits)
    failed = tuple(check for check in checks if not check.passed)
    for note in measured.notes:
        say(f"gate: {fitted.role}: {note}")
    say(f"gate: {fitted.role}: {len(checks) - len(failed)} of {len(checks)} checks passed")
    plain = {
        "role": fitted.role,
        "as_of": at.isoformat(),
        "passed": not failed,
        "forced": forced or None,
        "against": measured.against and asdict(measured.against),
        "rows": measured.rows,
        "notes": measured.notes,
        "checks": [{**asdict(c), "value": c.value if math.isfinite(c.value) else None} for c in checks],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{fitted.role}-{at:%Y-%m-%dT%H%M}.json").write_text(json.dumps(plain, indent=1) + "\n")
    return failed


def require(failed: Mapping[Role, Sequence[Check]], folder: Path) -> None:
    """Refuse candidates that failed checks.

    Raises:
        GateRefused: with every failed check of every role.
    """
    found = [(role, check) for role, checks in failed.items() for check in checks]
    if found:
        lines = [f"  {role}: {check.message}" for role, check in found]
        msg = "\n".join(
            [
                f"the gate refused {' and '.join(role for role, checks in failed.items() if checks)}; nothing was "
                f"registered or seated",
                *lines,
                f"every number is in {folder}; mend data or estimator, or pass with --force-gate --reason TEXT",
            ]
        )
        raise GateRefused(msg, [check for _, check in found])
