"""A whole campaign on real data: promoted on its verdict, watched until it survived, and a planted bad one rejected.

A stale primary plays, a newer shadow rehearses, `compare` decides, `promote` moves the roles of the running service
while requests come, and the replay goes on until the watch ends. From the promotion on a scrambled copy of the
promoted model rehearses, which must be rejected and refused. In a folder of its own; stops what it started.
"""

from __future__ import annotations

import argparse
import json
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from deploy.demo import DemoFailed, emptied, environment, say, serving, step
from service.clock import clock_from, parse_instant
from service.errors import UnderstudyError
from service.models import FORMATS
from service.package import Signature, read_package, save_package
from service.roles import Seat, hold_roles, read_roles
from service.settings import PREFIX, ROOT, Settings

# How fast the clock runs while the roles move: a day in twelve seconds, so that the move falls into traffic.
_SPEED = "7200"
_LABELS = timedelta(hours=36)
_PLANTED_DAYS = 11
_LOOKS = 3
_PLANTED = "planted"


@dataclass(frozen=True)
class Campaign:
    """When the models stop learning (ISO dates, UTC), when traffic begins, and days of it until the first look."""

    primary_as_of: str
    shadow_as_of: str
    start: str
    days: int


@dataclass
class Traffic:
    """Replays stretches of time one after the other, and counts."""

    env: Mapping[str, str]
    clock: Path
    requests: int = 0
    failed: int = 0

    def now(self) -> datetime:
        """What the replay's clock says."""
        return clock_from(str(self.clock)).now()

    def days(self, title: str, url: str, count: int) -> None:
        """Send the next days; their labels go on coming for a day and a half, in which nobody asks."""
        self.counted(step(title, dict(self.env), *self._command(url, count)))

    def counted(self, line: Mapping[str, Any]) -> None:
        """Add what a replay says it did."""
        self.requests += int(line["predictions"])
        self.failed += int(line["failed"])

    def begun(self, url: str, count: int, log: Path) -> subprocess.Popen[str]:
        """Begin to send the next days, slowly; whoever asked goes on with something else."""
        command = [sys.executable, "-m", *self._command(url, count), "--speed", _SPEED]
        with log.open("w") as errors:
            return subprocess.Popen(
                command, cwd=ROOT, env=dict(self.env), stdout=subprocess.PIPE, stderr=errors, text=True
            )

    def _command(self, url: str, count: int) -> list[str]:
        start = self.now()
        end = start + timedelta(days=count)
        return ["monitoring.replay", "--url", url, "--start", start.isoformat(), "--end", end.isoformat(),
                "--labels-for", f"{_LABELS // timedelta(hours=1)}h"]  # fmt: skip


def run(home: Path, when: Campaign, raw: Path | None = None) -> dict[str, Any]:
    """Run the campaign and return its result.

    Args:
        home: folder of everything it makes; emptied first.
        raw: folder of the raw tables; None for the installed data package.

    Raises:
        DemoFailed: when a step fails, or ends in something else than promote, survived, and reject.
    """
    begun = time.monotonic()
    env = {**environment(emptied(home)), PREFIX + "ADMIN_TOKEN": secrets.token_hex(16)}
    clock = home / "state" / "clock"
    where = Settings(state_dir=home / "state", models_dir=home / "models", clock=str(clock))
    # Until the replay owns the clock, trainings stand at the wall clock.
    train_env, source = {**env, PREFIX + "CLOCK": "wall"}, ["--raw", str(raw)] if raw else []
    step("1/7 train an old primary, and the fallback", train_env, "training.train", "--as-of", when.primary_as_of,
         *source)  # fmt: skip
    step("2/7 train a newer model as shadow", train_env, "training.train", "--as-of", when.shadow_as_of, *source)
    clock.write_text(parse_instant(when.start).isoformat())
    traffic = Traffic(env, clock)
    say("3/7 serve: bentoml serve")
    with serving(env, home / "serve.log") as url:
        compared = rehearsed(traffic, url, when.days)
        promoted = promoted_in_traffic(traffic, url, home, where)
        watch, code = looked(env)
        planted = step("6/7 compare the planted one", env, "monitoring.compare_job")
    _, refused = ended(env, "7/7 promote the planted one, which must be refused", "deploy.promote")
    last = json.loads((where.state_dir / "reports" / "compare.json").read_text())
    return {
        "verdict": compared["verdict"],
        "promoted_version": promoted["promoted"],
        "promote_s": promoted["seconds"],
        "watch": watch["status"],
        "watch_checks": watch["checks"],
        "watch_exit": code,
        "planted_verdict": planted["verdict"],
        "planted_reason": last["verdict"]["reasons"][0]["criterion"],
        "planted_refused": refused != 0,
        "requests": traffic.requests,
        "failed_requests": traffic.failed,
        "seconds": round(time.monotonic() - begun, 1),
    }


def rehearsed(traffic: Traffic, url: str, days: int) -> dict[str, Any]:
    """Let the shadow rehearse until there is a verdict; a hold is looked at again after half as many days.

    Raises:
        DemoFailed: when the verdict is not promote in time.
    """
    compared: dict[str, Any] = {}
    for number in range(_LOOKS):
        more = days if number == 0 else max(days // 2, 1)
        traffic.days(f"4/7 replay {more} days", url, more)
        compared = step("4/7 compare", dict(traffic.env), "monitoring.compare_job")
        if compared["verdict"] != "hold":
            break
    if compared["verdict"] != "promote":
        msg = f"the campaign ended in {compared['verdict']}, not promote: {'; '.join(compared['reasons'])}"
        raise DemoFailed(msg)
    return compared


def promoted_in_traffic(traffic: Traffic, url: str, home: Path, where: Settings) -> dict[str, Any]:
    """Promote while requests come, seat the planted model in the slot that falls free, and let the days pass.

    Raises:
        DemoFailed: when the promotion or the replay fails.
    """
    days = max(_PLANTED_DAYS, int(where.watch_days) + 2)
    say(f"5/7 replay {days} days more; in their midst:")
    replay = traffic.begun(url, days, home / "replay.log")
    try:
        promoted = step("5/7 promote", dict(traffic.env), "deploy.promote", "--url", url)
        digest = plant(where)
        say(f"5/7 a scrambled copy of the promoted model rehearses now ({digest[:12]})")
        said, _ = replay.communicate()
    finally:
        if replay.poll() is None:
            replay.terminate()
            replay.wait(20)
    if replay.returncode != 0:
        msg = f"5/7 the replay ended with exit code {replay.returncode}; see {home / 'replay.log'}"
        raise DemoFailed(msg)
    traffic.counted(json.loads(said.splitlines()[-1]))
    return promoted


def plant(where: Settings) -> str:
    """Seat a copy of the primary as shadow that takes its inputs for one another; returns its digest.

    Each input is given the next one's values of its own kind (categories among categories, numbers among numbers):
    what a deployment does that mixes up its columns.

    Raises:
        UnderstudyError: when the primary's package cannot be read, or somebody else moves the roles.
    """
    roles = read_roles(where.models_dir)
    primary = roles.seats["primary"]
    files = read_package(where.models_dir / primary.package, primary.digest)
    signature = scrambled(Signature.parse(json.loads(files["signature.json"])))
    plain = {name: json.loads(files[f"{name}.json"]) for name in ("baseline", "record", "contract")}
    digest, folder = save_package(
        where.models_dir, files[FORMATS[signature.format].file], signature, plain["baseline"],
        {**plain["record"], _PLANTED: True}, plain["contract"], files["reference.parquet"],
    )  # fmt: skip
    seat = Seat(_PLANTED, digest, str(folder.relative_to(where.models_dir)))
    with hold_roles(where.models_dir, roles.revision, clock_from(where.clock)) as move:
        move({"shadow": seat}, "planted: a copy of the primary with its inputs mixed up")
    return digest


def scrambled(signature: Signature) -> Signature:
    """The same inputs in another order, each one's vocabulary reversed, while the model still expects the first."""
    names = signature.features
    kinds = [name in signature.categories for name in names]
    order = list(names)
    for kind in (True, False):
        places = [i for i, found in enumerate(kinds) if found is kind]
        for place, source in zip(places, [*places[1:], *places[:1]], strict=True):
            order[place] = names[source]
    vocabularies = {name: tuple(reversed(values)) for name, values in signature.categories.items()}
    return replace(signature, features=tuple(order), categories=vocabularies)


def looked(env: Mapping[str, str]) -> tuple[dict[str, Any], int]:
    """Look at the watch once; its last line and its exit code (3: the model was taken back).

    Raises:
        DemoFailed: when the look itself fails.
    """
    said, code = ended(env, "5/7 watch", "deploy.watch")
    if code not in (0, 3) or not said.strip():
        msg = f"the watch ended with exit code {code}: python -m deploy.watch"
        raise DemoFailed(msg)
    return dict(json.loads(said.splitlines()[-1])), code


def ended(env: Mapping[str, str], title: str, *command: str) -> tuple[str, int]:
    """Run a command that may fail; what it wrote to stdout, and its exit code."""
    say(f"{title}: python -m {' '.join(command)}")
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=dict(env), capture_output=True, text=True, check=False
    )
    print("".join(f"    {line}\n" for line in (done.stdout + done.stderr).splitlines()), end="", flush=True)
    return done.stdout, done.returncode


def missed(result: Mapping[str, Any]) -> list[str]:
    """What did not go as it must, one sentence each."""
    wanted = {"verdict": "promote", "watch": "survived", "planted_verdict": "reject", "planted_refused": True,
              "failed_requests": 0}  # fmt: skip
    return [f"{name} is {result[name]!r}, not {value!r}" for name, value in wanted.items() if result[name] != value]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Last line of stdout: one JSON object; exit code 1 when it did not go as it must."""
    parser = argparse.ArgumentParser(prog="make demo-promotion", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--home", type=Path, default=ROOT / "demo", help="folder of everything the demo makes")
    parser.add_argument("--raw", type=Path, help="folder of the raw tables; default: the installed data package")
    parser.add_argument("--primary-as-of", required=True)
    parser.add_argument("--shadow-as-of", required=True)
    parser.add_argument("--start", required=True, help="first day of traffic (ISO, UTC)")
    parser.add_argument("--days", type=int, default=14, help="days of traffic until the first look")
    args = parser.parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    try:
        when = Campaign(args.primary_as_of, args.shadow_as_of, args.start, args.days)
        result = run(args.home.resolve(), when, args.raw)
    except (DemoFailed, UnderstudyError) as error:
        print(f"demo-promotion: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo-promotion: stopped", file=sys.stderr)
        return 130
    wrong = missed(result)
    for sentence in wrong:
        print(f"demo-promotion: {sentence}", file=sys.stderr)
    print(json.dumps(result))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
