"""Moves a shadow to primary on a current verdict: ``python -m deploy.promote``.

Refuses without a ``promote`` verdict about exactly the models that play, unless ``--force --reason``; either way the
history keeps who, when, why and on which verdict. Prints what was checked and, as the last line, one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.moves import (
    NOT_SLOTS,
    Check,
    Mirrors,
    MoveRefused,
    align_registry,
    cooling,
    done_moves,
    mirror,
    named,
    playable,
    reverted_at,
    seat_of,
)
from deploy.promote_checks import Asked, Found, checks, read_verdict, verdict_file
from deploy.promote_wait import Waited, wait_for
from service import VERSION
from service.clock import clock_from
from service.contract import Contract
from service.errors import UnderstudyError
from service.progress import Say
from service.roles import Kind, Role, Roles, Seat, hold_roles, read_roles
from service.settings import Settings, settings


@dataclass(frozen=True)
class Wish:
    """What was asked for.

    Attributes:
        slot: whose model is to be promoted.
        verdict: the file to go by; None for the slot's own, or the split's.
        split: go by the verdict on the A/B split instead of the campaign's.
        force: promote whatever the verdict says; needs a reason.
    """

    slot: str = "shadow"
    verdict: Path | None = None
    force: bool = False
    reason: str = ""
    split: bool = False


@dataclass(frozen=True)
class Promoted:
    """What a promotion did.

    Attributes:
        kind: ``force`` when a check was overruled.
        verdict: digest of the verdict it rests on; None when it was forced.
    """

    roles: Roles
    promoted: Seat
    replaced: Seat
    kind: Kind
    verdict: str | None
    checks: tuple[Check, ...]


def promote(where: Settings, contracts: Mapping[str, Contract], wish: Wish, say: Say) -> Promoted:
    """Check, and move the roles; what was checked and what is moved is one revision.

    Args:
        contracts: those of the definitions, by feature service.

    Raises:
        MoveRefused: when a check fails and is not overruled.
        NotReady: when nobody plays a needed role, or the roles cannot be read.
        PackageError, ContractError: when the candidate cannot play; no force overrules that.
        RegistryFailed: when MLflow is away; nothing was moved.
        RolesMoved: when somebody else moved the roles meanwhile.
    """
    if wish.force and not wish.reason:
        raise MoveRefused("FORCE=1 needs REASON=...: say why, it stays in the history")
    if wish.slot in NOT_SLOTS:
        raise MoveRefused(f"SHADOW={wish.slot} is no shadow slot; name the slot whose model is to be promoted")
    clock = clock_from(where.clock)
    # Before anything is decided: a half of the truth that cannot follow is no time to move it.
    align_registry(where, say)
    roles = read_roles(where.models_dir)
    replaced, candidate = seat_of(roles, "primary"), seat_of(roles, wish.slot)
    if replaced.digest == candidate.digest:
        raise MoveRefused(f"primary and {wish.slot} are the same model ({candidate.digest[:12]}); nothing to promote")
    _, changed = playable(where, candidate, contracts)
    if changed:
        listed = "; ".join(changed)
        raise MoveRefused(f"the definitions no longer fit {named(candidate)} ({listed}); train anew, see `make plan`")
    found = read_verdict(wish.verdict or verdict_file(where.state_dir / "reports", wish.slot, split=wish.split))
    checked = _checked(where, contracts["primary"], found, replaced, candidate, wish.slot)
    failed = [check for check in checked if not check.holds]
    if failed and not wish.force:
        raise MoveRefused("; ".join(check.message for check in failed) + ". Overrule with FORCE=1 REASON=...")
    kind: Kind = "force" if failed else "promote"
    digest = None if failed else found.digest
    (slot,) = (role for role in roles.seats if role == wish.slot)
    moves: dict[Role, Seat | None] = {"primary": candidate, slot: None}
    with hold_roles(where.models_dir, roles.revision, clock) as move:
        after = move(moves, _why(wish, failed, digest), kind=kind, verdict=digest)
    return Promoted(after, candidate, replaced, kind, digest, tuple(checked))


def _checked(
    where: Settings, contract: Contract, found: Found, replaced: Seat, candidate: Seat, slot: str
) -> list[Check]:
    now, history = clock_from(where.clock).now(), done_moves(where)
    used = {move.verdict: move.revision for move in history if move.verdict}
    checked = checks(found, Asked(replaced, candidate, slot, contract.digest, VERSION, now, used))
    waits, at = cooling(where, history, candidate.digest, now), reverted_at(history, candidate.digest)
    if waits and at is not None:
        # Only a campaign that began after the revert knows what the revert taught.
        newer = found.verdict is not None and found.verdict.opened >= at
        said = f"{named(candidate)} {waits}"
        advice = "judged anew since" if newer else "wait, or let a campaign that opens after that judge it"
        checked.append(Check("cooldown", newer, f"{said}: {advice}"))
    return checked


def _why(wish: Wish, failed: Sequence[Check], digest: str | None) -> str:
    if not failed:
        return wish.reason or f"verdict {str(digest)[:12]}"
    return f"{wish.reason} (overruled: {', '.join(check.name for check in failed)})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Promote, bring the mirrors up, wait for the service, and return the exit code."""
    options = _parser().parse_args(arguments)
    where = settings()
    try:
        from feature_repo import features
        from service.definitions import contracts

        wish = Wish(options.shadow or "shadow", options.verdict, options.force, options.reason.strip(), options.split)
        done = promote(where, contracts(features), wish, told)
    except UnderstudyError as error:
        sys.stderr.write(f"promote: {error}\n")
        return 1
    for check in done.checks:
        told(f"{'ok    ' if check.holds else 'FAILED'} {check.message}")
    print(f"==> primary is now {named(done.promoted)}, it was {named(done.replaced)}; `make rollback` takes it back")
    waited = wait_for(options.url, where, {"primary": done.promoted.digest}, told)
    mirrors = mirror(where, told)
    watched = _open_watch(where)
    print(json.dumps(last_line(done, wish.slot, mirrors, waited, watched)))
    return 0 if waited is None or waited.everybody else 1


def last_line(done: Promoted, slot: str, mirrors: Mirrors, waited: Waited | None, watched: str) -> dict[str, object]:
    """What the command says to machines."""
    return {
        "promoted": done.promoted.version,
        "replaced": done.replaced.version,
        "slot": slot,
        "revision": done.roles.revision,
        "kind": done.kind,
        "verdict": done.verdict,
        "overruled": [check.name for check in done.checks if not check.holds],
        "aliases": mirrors.aliases,
        "bentos": dict(mirrors.bentos),
        "seconds": waited.seconds if waited else None,
        "workers": waited.workers if waited else None,
        "watch": watched,
    }


def told(text: str) -> None:
    """Show one line of what is going on."""
    print(f"  {text}", flush=True)


def _open_watch(where: Settings) -> str:
    from deploy.watch_open import open_newest

    try:
        return open_newest(where)
    except UnderstudyError as error:
        told(f"the watch opens with the next `make watch`: {error}")
        return ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make promote", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shadow", default="", help="slot whose model is promoted (default shadow)")
    parser.add_argument("--verdict", type=Path, help="file of the verdict to go by (default: the slot's own)")
    parser.add_argument("--split", action="store_true", help="go by the verdict on the A/B split (make split-verdict)")
    parser.add_argument("--url", default="", help="running service to wait for; needs the setting admin_token")
    parser.add_argument("--force", action="store_true", help="overrule the verdict; needs --reason")
    parser.add_argument("--reason", default="", help="why; kept in the history")
    return parser


if __name__ == "__main__":
    sys.exit(main())
