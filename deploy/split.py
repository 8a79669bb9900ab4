"""Opens, raises and ends an A/B split: ``python -m deploy.split --share 5``.

The share goes up in steps, 1, 5, 25, 50 %, each after the one before has run long enough on enough requests without
an alarm; ``--force --reason`` overrules that, on the record. Lowering it, or ending with 0, is always allowed.
Prints what was checked and, as the last line, one JSON object: ``split, share, revision, slot, key, checks``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from monitoring.split_evidence import SplitEvidence
from monitoring.split_job import gather
from monitoring.split_verdict import ARMS, breaches
from service.clock import clock_from
from service.contract import Contract, duration
from service.errors import NotReady, UnderstudyError
from service.roles import read_roles
from service.settings import Settings, settings
from service.split import Goal, Split
from service.split_file import SplitState, move_split, outlived, read_split, read_split_history

STEPS = (0.01, 0.05, 0.25, 0.5)


class SplitRefused(UnderstudyError):
    """The split was not moved; the message names value, limit and fix."""


@dataclass(frozen=True)
class Wish:
    """What the command was asked for; None keeps what is, or takes the default when a split opens.

    Attributes:
        share: of units to treat, 0 to 1; 0 ends the split.
        file: outcomes, for a split whose outcome is not in the label log.
    """

    share: float
    slot: str | None = None
    key: str | None = None
    metric: str | None = None
    goal: Goal | None = None
    window: timedelta | None = None
    force: bool = False
    reason: str = ""
    file: Path | None = None


@dataclass(frozen=True)
class Check:
    """One condition of a move, with its number."""

    name: str
    holds: bool
    message: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Move the split, and return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        wish = _wish(options)
        from feature_repo import features
        from service.definitions import contracts

        state, checks = move(settings(), contracts(features)["primary"], wish)
    except UnderstudyError as error:
        sys.stderr.write(f"split: {error}\n")
        return 1
    for check in checks:
        print(f"  {'ok    ' if check.holds else 'FAILED'} {check.message}")
    print(f"==> {_told(state)}")
    split = state.split
    print(
        json.dumps(
            {
                "split": split.name if split else None,
                "share": split.share if split else 0.0,
                "revision": state.revision,
                "slot": split.slot if split else None,
                "key": split.key if split else None,
                "checks": [{"name": c.name, "holds": c.holds, "message": c.message} for c in checks],
            }
        )
    )
    return 0


def move(where: Settings, contract: Contract, wish: Wish) -> tuple[SplitState, list[Check]]:
    """Do what was asked, if nothing speaks against it; what was checked and what is moved is one revision.

    Raises:
        SplitRefused: when a check fails and is not overruled, or the request contradicts the running split.
        SplitMoved: when somebody else moved the split meanwhile.
        NotReady: when a file cannot be read, or nobody plays a needed role.
    """
    if wish.force and not wish.reason:
        raise SplitRefused("--force needs --reason: say why, it stays in the history")
    now = clock_from(where.clock).now()
    state = read_split(where.models_dir)
    over = outlived(state.split, where.models_dir) if state.split else ""
    before = None if over else state.split
    if wish.share == 0:
        if state.split is None:
            raise SplitRefused("no split runs, so none can end")
        return _move(where, state, None, wish, now, []), []
    if before is None:
        after = _opened(where, contract, wish, now)
        checks = [_step(0.0, wish.share)]
        if state.split is not None:
            checks.insert(0, Check("ended", True, f"the split before, {state.split.name}, has ended: {over}"))
    else:
        after = _raised(before, wish)
        checks = [_step(before.share, wish.share)]
        if wish.share > before.share:
            checks += _ready(where, contract, before, wish.file, now)
    failed = [check.message for check in checks if not check.holds]
    if failed and not wish.force:
        raise SplitRefused("; ".join(failed) + ". Overrule with FORCE=1 REASON=...")
    return _move(where, state, after, wish, now, checks), checks


def _move(
    where: Settings, state: SplitState, after: Split | None, wish: Wish, now: datetime, checks: list[Check]
) -> SplitState:
    plain = tuple({"name": c.name, "holds": c.holds, "message": c.message} for c in checks)
    forced = wish.force and not all(check.holds for check in checks)
    return move_split(
        where.models_dir, state.revision, after, at=now, reason=wish.reason, forced=forced, checks=plain
    )  # fmt: skip


def _opened(where: Settings, contract: Contract, wish: Wish, now: datetime) -> Split:
    slot, key = wish.slot or "shadow", wish.key or ""
    names = [spec.name for spec in contract.request_fields]
    if key and key not in names:
        msg = f"KEY={key} is no field of the request; choose one of {', '.join(names)}, or none for each request alone"
        raise SplitRefused(msg)
    if key and key in {name.strip() for name in where.redact.split(",")}:
        raise SplitRefused(f"KEY={key} is redacted (UNDERSTUDY_REDACT), and the log's split_unit would give it away")
    if slot in ("primary", "fallback"):
        raise SplitRefused(f"SHADOW={slot}: the treated are answered by a shadow slot, not by {slot}")
    if wish.goal is None:
        msg = f"say which {wish.metric or 'label'} is better, GOAL=higher or GOAL=lower, before the split opens"
        raise SplitRefused(msg)
    seats = {str(role): seat for role, seat in read_roles(where.models_dir).seats.items()}
    for role in ("primary", slot):
        if role not in seats:
            msg = f"nobody plays {role} in {where.models_dir / 'roles.json'}; run `make train` first"
            raise NotReady(msg)
    control, treatment = seats["primary"].digest, seats[slot].digest
    if control == treatment:
        raise SplitRefused(f"primary and {slot} are the same model ({control[:12]}); there is nothing to compare")
    taken = {m.after.name for m in read_split_history(where.models_dir) if m.after}
    stem = f"{seats['primary'].version}-{seats[slot].version}-{now:%Y%m%d}"
    name = next(n for n in (stem, *(f"{stem}-{i}" for i in range(2, len(taken) + 3))) if n not in taken)
    window = wish.window if wish.window is not None else timedelta(days=7)
    return Split(
        name, slot, key, wish.share, control, treatment, wish.metric or "label", wish.goal,
        window.total_seconds(), now,
    )  # fmt: skip


def _raised(before: Split, wish: Wish) -> Split:
    fixed = {
        "SHADOW": (wish.slot, before.slot), "KEY": (wish.key, before.key), "METRIC": (wish.metric, before.metric),
        "GOAL": (wish.goal, before.goal),
        "WINDOW": (None if wish.window is None else wish.window.total_seconds(), before.window_s),
    }  # fmt: skip
    for name, (wanted, has) in fixed.items():
        if wanted is not None and wanted != has:
            msg = f"{name}={wanted} differs from the running split's {has!r}; end it first: `make split SHARE=0`"
            raise SplitRefused(msg)
    return replace(before, share=wish.share)


def _step(before: float, after: float) -> Check:
    allowed = [*(s for s in STEPS if s <= before), *[s for s in STEPS if s > before][:1]]
    steps = ", ".join(f"{s:.0%}" for s in STEPS)
    said = f"from {before:.0%} to {after:.0%}"
    if after in allowed and after != before:
        return Check("step", True, f"a step {said}")
    return Check("step", False, f"{said} is not one step of {steps}")


def _ready(where: Settings, contract: Contract, before: Split, file: Path | None, now: datetime) -> list[Check]:
    """Whether the present share has run long enough, and without an alarm."""
    moves = reversed(read_split_history(where.models_dir))
    since = next((m.at for m in moves if m.revision == before.revision), before.opened)
    hours, least = (now - since) / timedelta(hours=1), where.split_step_hours
    checks = [Check("hours", hours >= least, f"{hours:,.1f} h at {before.share:.0%} (at least {least:g} h)")]
    try:
        found = _found(where, contract, before, file, now)
    except NotReady as error:
        return [*checks, Check("requests", False, f"no request was split at {before.share:.0%}: {error}")]
    count = sum(stage.requests for stage in found.stages if stage.revision == before.revision)
    enough = where.split_step_requests
    checks.append(Check("requests", count >= enough, f"{count:,} requests at {before.share:.0%} (at least {enough:,})"))
    return [*checks, *_alarms(found, before)]


def _alarms(found: SplitEvidence, before: Split) -> list[Check]:
    stopping = breaches(found) if found.declared else breaches(found, ARMS)
    if stopping:
        return [Check(reason.criterion, False, reason.message) for reason in stopping]
    harm = (
        f"harm {found.harm:.2f} (at most 20)" if found.declared else f"harm not looked at: no FILE= of {before.metric}"
    )
    said = (
        f"no alarm: sample ratio e-value {found.sample_ratio:.2f} (at most 100), {harm}, failures and latency in limits"
    )
    return [Check("alarms", True, said)]


def _found(where: Settings, contract: Contract, before: Split, file: Path | None, now: datetime) -> SplitEvidence:
    # Without the file of outcomes the label log stands in, and only the arms are looked at.
    metric = "" if file is not None or before.metric == "label" else "label"
    return gather(
        where.log_dir, where.models_dir, contract, now, name=before.name, metric=metric, file=file,
        maturity=timedelta(hours=where.label_maturity_h),
    )  # fmt: skip


def _told(state: SplitState) -> str:
    split = state.split
    if split is None:
        return "the split has ended; everybody is answered by the primary. Judge it: `make split-verdict`"
    unit = f"every {split.key}" if split.key else "every request"
    return f"split {split.name}: {split.share:.0%} of {unit} to {split.slot}, within a second. `make split-verdict`"


def _wish(options: argparse.Namespace) -> Wish:
    if not (math.isfinite(options.share) and 0 <= options.share <= 100):
        msg = f"SHARE={options.share:g} is no percentage; give one of 0, {', '.join(f'{s * 100:g}' for s in STEPS)}"
        raise SplitRefused(msg)
    return Wish(
        share=round(options.share / 100, 9),
        slot=options.shadow or None,
        key=options.key or None,
        metric=options.metric or None,
        goal=options.goal or None,
        window=duration(options.window, "WINDOW") if options.window else None,
        force=options.force,
        reason=options.reason.strip(),
        file=options.file,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="split", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--share", type=float, required=True, help="percent of units to treat: 1, 5, 25, 50; 0 ends it")
    parser.add_argument("--shadow", default="", help="slot whose model answers the treated (default shadow)")
    parser.add_argument("--key", default="", help="request field whose value stays in one arm (default: each request)")
    parser.add_argument("--metric", default="", help="outcome: label, or the name of a file's values (default label)")
    parser.add_argument("--goal", default="", choices=("", "higher", "lower"), help="which is better (no default)")
    parser.add_argument("--window", default="", help="time after a key's first request that counts (default 7d)")
    parser.add_argument("--file", type=Path, help="outcomes so far, for the check of harm")
    parser.add_argument("--force", action="store_true", help="overrule the checks; needs --reason")
    parser.add_argument("--reason", default="", help="why; kept in the history")
    return parser


if __name__ == "__main__":
    sys.exit(main())
