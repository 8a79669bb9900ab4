"""Watches a promoted model for some days and takes it back on a critical breach: ``python -m deploy.watch``.

One look per call, as often as one likes; a watch that is killed, or runs twice at once, takes a model back once. Prints
every check and, as the last line, one JSON object. Exit code 3: a critical breach, and what was done about it is told.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from deploy.moves import MoveRefused, done_moves, mirror, named, playable, reverted_at
from deploy.promote import told
from deploy.rollback import rollback
from deploy.watch_checks import judge
from deploy.watch_facts import live
from deploy.watch_open import close_ended, opened
from deploy.watch_record import Watch, folder, write_watch
from monitoring import export
from monitoring.labels import resolve
from monitoring.maturity import matures
from service.clock import clock_from
from service.contract import Contract
from service.errors import ContractError, PackageError, UnderstudyError
from service.package import PackagedModel
from service.progress import Say
from service.roles import RolesMoved, locked, read_roles
from service.settings import Settings, settings

BREACH = 3


def look(where: Settings, contracts: Mapping[str, Contract], say: Say, maturity: timedelta) -> tuple[Watch | None, int]:
    """Look once at the promotion that stands; returns its watch (None: nothing to watch) and the exit code.

    Args:
        maturity: age at which a label should have arrived.

    Raises:
        NotReady: when roles, history or a record cannot be read.
    """
    folder(where.state_dir).mkdir(parents=True, exist_ok=True)
    with locked(folder(where.state_dir) / ".lock"):
        # What is judged and what is moved is one revision.
        revision = read_roles(where.models_dir).revision
        ended = close_ended(where, say)
        watch = opened(where, contracts["primary"])
        if watch is None or watch.status != "open":
            done = ended or watch
            return done, BREACH if ended is not None and ended.status == "reverted" else 0
        return _look(where, contracts, watch, say, maturity, revision)


def _look(
    where: Settings, contracts: Mapping[str, Contract], watch: Watch, say: Say, maturity: timedelta, revision: int
) -> tuple[Watch, int]:
    now = clock_from(where.clock).now()
    models, missing = _models(where, contracts, watch)
    log = export.predictions(where.log_dir, contracts["primary"]).frame
    truth, _ = resolve(export.labels(where.log_dir).frame, log.drop_duplicates("request_id"))
    until = min(now, watch.ends)
    facts = live(
        log, truth, watch.expected, promoted=watch.promoted.digest, since=watch.opened, until=until,
        mature=min(now - maturity, watch.ends), models=models,
    )  # fmt: skip
    watch = watch.looked(now, facts.requests, judge(watch.expected, facts))
    over = now >= watch.ends + maturity
    code = 0
    if watch.breaches:
        why_not = _no_way_back(where, watch, missing, late=over)
        watch, code = _breach(where, contracts, watch, now, say, revision, why_not), BREACH
        if why_not and over:
            watch = watch.ended("breached", now, f"{_numbers(watch)} ({why_not})")
    elif over:
        watch = watch.ended("survived", now, f"{facts.requests:,} requests without a critical breach")
    write_watch(where.state_dir, watch)
    return watch, code


def _models(
    where: Settings, contracts: Mapping[str, Contract], watch: Watch
) -> tuple[tuple[PackagedModel, PackagedModel] | None, str]:
    """Both models, or why the one to go back to cannot play."""
    try:
        replaced, _ = playable(where, watch.replaced, contracts)
    except (PackageError, ContractError) as error:
        return None, str(error)
    try:
        return (playable(where, watch.promoted, contracts)[0], replaced), ""
    except (PackageError, ContractError):
        return None, ""


def _breach(
    where: Settings,
    contracts: Mapping[str, Contract],
    watch: Watch,
    now: datetime,
    say: Say,
    revision: int,
    why_not: str,
) -> Watch:
    """Take the model back, unless that would be no way back."""
    if why_not:
        say(f"NOT taken back, {why_not}: decide by hand (`make rollback TO=... REASON=...`)")
        return watch
    reason = f"watch of revision {watch.revision}: {_numbers(watch)}"
    try:
        rollback(where, contracts, say, reason=reason, kind="revert", expected=revision)
    except (RolesMoved, MoveRefused) as error:
        say(f"somebody else moved the roles meanwhile ({error}); the next look sees how they are")
        return watch
    say(f"taken back: primary is {named(watch.replaced)} again; {reason}")
    return watch.ended("reverted", now, _numbers(watch))


def _numbers(watch: Watch) -> str:
    return "; ".join(check.message for check in watch.breaches)


def _no_way_back(where: Settings, watch: Watch, missing: str, *, late: bool) -> str:
    if late:
        return "the watch is over"
    if missing:
        return f"the model to go back to cannot play ({missing})"
    at = reverted_at(done_moves(where), watch.replaced.digest)
    if at is not None:
        return f"{named(watch.replaced)}, the model to go back to, was itself taken back at {at:%Y-%m-%d %H:%M}"
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Look once, or until the watch ends, and return the exit code."""
    options = _parser().parse_args(arguments)
    where = settings()
    from feature_repo import features
    from service.definitions import contracts

    known = contracts(features)
    try:
        maturity = matures(options.maturity, where.label_maturity_h)
        while True:
            watch, code = look(where, known, told, maturity)
            show(where, watch)
            if code == BREACH or watch is None or watch.status != "open" or not options.follow:
                break
            time.sleep(options.every)
        # A look that was killed after it moved the roles left the mirrors behind.
        mirrors = mirror(where, told)
    except UnderstudyError as error:
        sys.stderr.write(f"watch: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("watch: stopped\n")
        return 130
    print(json.dumps(last_line(where, watch, mirrors.aliases)))
    return code


def show(where: Settings, watch: Watch | None) -> None:
    """Print a watch for people."""
    if watch is None:
        print("==> nothing to watch: the primary plays by no promotion")
        return
    for check in watch.checks:
        told(f"{check.outcome:<8}{check.message}" + ("" if check.critical else " (only told of)"))
    print(f"==> watch of revision {watch.revision}, {named(watch.promoted)}: {watch.status}"
          + (f", {watch.why}" if watch.why else f" until {watch.ends:%Y-%m-%d %H:%M}"), flush=True)  # fmt: skip


def last_line(where: Settings, watch: Watch | None, aliases: str) -> dict[str, object]:
    """What the command says to machines."""
    if watch is None:
        return {"status": "none", "aliases": aliases}
    record: Path = folder(where.state_dir) / f"{watch.revision}.json"
    return {
        "status": watch.status,
        "revision": watch.revision,
        "promoted": watch.promoted.version,
        "requests": watch.looks[-1].requests if watch.looks else 0,
        "checks": {check.name: check.outcome for check in watch.checks},
        "breaches": [check.message for check in watch.breaches],
        "aliases": aliases,
        "record": str(record),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make watch", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--follow", action="store_true", help="look again and again until the watch ends")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two looks (default 60)")
    parser.add_argument("--maturity", help="age at which a label should have arrived, as 36h (default: the setting)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
