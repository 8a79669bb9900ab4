"""Promotes and rolls back a running service under constant load, by the project's own commands.

Starts a bundle of its own (models fitted to noise, see ``arena.py``) with two gateway workers, calls it at a steady
rate, and runs ``deploy.promote`` and ``deploy.rollback`` against it. Times count from the moment ``roles.json`` moves
until every worker says, and every answer shows, the new version. Last line of stdout: one JSON object; exit code 1 when
a request failed or a change took more than ten seconds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.arena import make_bundle
from benchmarks.caller import Call
from benchmarks.chaos import Callers
from benchmarks.servers import clean, stop_what_was_started
from deploy.demo import environment, say, serving
from service.roles import read_roles
from service.settings import PREFIX, ROOT, Settings

MOST_S = 10.0
TOKEN = "of-the-benchmark-only"
_WARM = 300
_WARM_S = 60.0
_SETTLE_S = 2.0
_COMMAND_S = 120


class Moves:
    """Notes on the monotonic clock when ``roles.json`` became another file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.at: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        seen = self._path.stat().st_ino
        while not self._stop.wait(0.002):
            now = self._path.stat().st_ino
            if now != seen:
                self.at.append(time.monotonic())
                seen = now

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()


@dataclass(frozen=True)
class Change:
    """One promotion or rollback.

    Attributes:
        begin, moved, end: monotonic seconds: the command's start, the move of the roles, the end of what it did.
        version: that plays from then on.
        told_s: seconds of waiting until every worker said so, by the command's own word.
        exit_code: of the command, which is 1 when they did not.
        command_s: seconds of the whole command.
        workers: that were heard of; 0 where the service does not number them.
    """

    what: str
    begin: float
    moved: float
    end: float
    version: str
    told_s: float
    exit_code: int
    command_s: float
    workers: int

    def calls(self, calls: Sequence[Call]) -> list[Call]:
        """Requests that fell due while it went on, and until what followed."""
        return [c for c in calls if self.begin <= c.due < self.end]

    def seconds(self, calls: Sequence[Call]) -> float:
        """From the move until every worker said so, and no answer showed another version."""
        others = [c.done for c in self.calls(calls) if c.answer.get("model_version") not in (self.version, None)]
        shown = max((done - self.moved for done in others), default=0.0)
        return round(max(self.told_s, shown), 3)


def change(what: str, module: str, env: dict[str, str], url: str, models: Path, *words: str) -> Change:
    """Run one command to its end, and let the service go on for a moment."""
    begin = time.monotonic()
    with Moves(models / "roles.json") as moves:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", module, "--url", url, *words], cwd=ROOT, env=env,
            capture_output=True, text=True, check=False, timeout=_COMMAND_S,
        )  # fmt: skip
    command_s = round(time.monotonic() - begin, 2)
    if len(moves.at) != 1:
        msg = f"{what} moved the roles {len(moves.at)} times, not once:\n{done.stdout}{done.stderr}"
        raise SystemExit(msg)
    time.sleep(_SETTLE_S)
    line = json.loads(done.stdout.splitlines()[-1])
    version = read_roles(models).seats["primary"].version
    return Change(
        what, begin, moves.at[0], time.monotonic(), version, float(line["seconds"]), done.returncode, command_s,
        int(line["workers"] or 0),
    )  # fmt: skip


def run(*, rounds: int, rate: float, workers: int) -> dict[str, Any]:
    """Do everything and return what was found."""
    with tempfile.TemporaryDirectory(prefix="promotion-") as outer:
        home = Path(outer).resolve() / "home"
        home.mkdir()
        settings = Settings(state_dir=home / "state", models_dir=home / "models", clock="wall")
        say("a bundle of its own, and the service")
        bodies = home.parent / "requests.jsonl"
        make_bundle(settings, bodies)
        chosen = {"workers": str(workers), "admin_token": TOKEN}
        env = {**clean(environment(home)), **{PREFIX + k.upper(): v for k, v in chosen.items()}}
        with serving(env, home.parent / "serve.log") as url, Callers(url, bodies, rate) as callers:
            warm(callers)
            say(f"{rate:g} requests/s, {workers} gateway workers, {rounds} promotions and rollbacks")
            changes = []
            for _ in range(rounds):
                forced = ("--force", "--reason", "benchmark")
                changes.append(change("promote", "deploy.promote", env, url, settings.models_dir, *forced))
                shown(changes[-1], callers.calls)
                changes.append(change("rollback", "deploy.rollback", env, url, settings.models_dir))
                shown(changes[-1], callers.calls)
            callers.finish()
        return result(changes, callers.calls)


def warm(callers: Callers) -> None:
    """Wait for a row of good answers: the first seconds warm up connections, not the service."""
    end = time.monotonic() + _WARM_S
    while time.monotonic() < end:
        last = callers.calls[-_WARM:]
        if len(last) == _WARM and all(c.status == 200 and c.answer.get("role") == "primary" for c in last):
            return
        time.sleep(0.05)
    raise SystemExit(f"the service does not answer as it should: {callers.calls[-1:]}")


def shown(one: Change, calls: Sequence[Call]) -> None:
    """Print one line on a change."""
    some = one.calls(calls)
    print(f"  {one.what:<9} to version {one.version}: {one.seconds(calls):5.2f} s until every worker plays it "
          f"(command {one.command_s:5.1f} s), {len(some):5} requests, {failed(some)} failed, "
          f"{sum(c.answer.get('role') != 'primary' for c in some)} not by the primary", flush=True)  # fmt: skip


def failed(calls: Sequence[Call]) -> int:
    """Requests without a 200."""
    return sum(c.status != 200 for c in calls)


def result(changes: Sequence[Change], calls: Sequence[Call]) -> dict[str, Any]:
    """The JSON object of the last line."""
    kinds = {what: [c for c in changes if c.what == what] for what in ("promote", "rollback")}
    found: dict[str, Any] = {}
    for what, some in kinds.items():
        found[f"{what}_failed"] = sum(failed(c.calls(calls)) for c in some)
    for what, some in kinds.items():
        found[f"{what}_s"] = max(c.seconds(calls) for c in some)
    during = [call for one in changes for call in one.calls(calls)]
    slowest = max((c.seconds for c in during if c.status), default=0.0)
    return {
        **found,
        "requests": len(during),
        "changes": len(changes),
        "not_by_primary": sum(c.answer.get("role") != "primary" for c in during),
        "worst_ms": round(slowest * 1000, 1),
        "from_start_s": round(max(c.moved - c.begin + c.seconds(calls) for c in changes), 2),
        "command_s": max(c.command_s for c in changes),
        "workers": min(c.workers for c in changes),
        "given_up": sum(c.exit_code != 0 for c in changes),
    }


def missed(found: dict[str, Any]) -> list[str]:
    """Every promise that was broken, one sentence each."""
    broken = [f"{name}={found[name]}, not 0" for name in ("promote_failed", "rollback_failed") if found[name]]
    for name in ("promote_s", "rollback_s"):
        if found[name] > MOST_S:
            broken.append(f"{name}={found[name]}: every worker must play it within {MOST_S:g} s")
    if found["given_up"]:
        broken.append(f"given_up={found['given_up']}: the command did not hear of every worker in time")
    return broken


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="make bench-promotion", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="promotions, each followed by a rollback")
    parser.add_argument("--rate", type=float, default=150.0, help="requests per second")
    parser.add_argument("--workers", type=int, default=2, help="gateway workers")
    args = parser.parse_args(argv)
    stop_what_was_started()
    warnings.simplefilter("ignore")
    try:
        found = run(rounds=args.rounds, rate=args.rate, workers=args.workers)
    except KeyboardInterrupt:
        print("promotion: stopped", file=sys.stderr)
        return 130
    broken = missed(found)
    print("\n".join(broken) or "every promise was kept", file=sys.stderr)
    print(json.dumps(found))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
