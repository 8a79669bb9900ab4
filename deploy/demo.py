"""The whole loop on real data, in its own folder: train, serve, replay, label, compare, audit. Stops what it started.

Dates come from the command line: an older primary, a newer shadow, and the stretch of traffic they share.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.settings import ROOT

READY_S = 120
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Stretch:
    """When the demo's models stop learning and which traffic they meet (ISO dates, UTC)."""

    primary_as_of: str
    shadow_as_of: str
    start: str
    end: str


class DemoFailed(Exception):
    """A step of the demo failed; the message says which and where its output is."""


def environment(home: Path) -> dict[str, str]:
    """The environment in which every step runs: its own state, its own models, its own clock."""
    return {
        **os.environ,
        "UNDERSTUDY_STATE_DIR": str(home / "state"),
        "UNDERSTUDY_MODELS_DIR": str(home / "models"),
        "UNDERSTUDY_CLOCK": str(home / "state" / "clock"),
        "BENTOML_HOME": str(home / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "DO_NOT_TRACK": "1",
        "PYTHONPATH": str(ROOT),
    }


def step(title: str, env: dict[str, str], *command: str) -> dict[str, Any]:
    """Run one command to its end, show what it prints, and return the JSON object of its last line.

    Raises:
        DemoFailed: when it exits with an error.
    """
    say(f"{title}: python -m {' '.join(command)}")
    process = subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    last = ""
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if last:
                print(f"    {last}", flush=True)
            last = line.rstrip()
        code = process.wait()
    finally:
        if process.stdout is not None:
            process.stdout.close()
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
    if code != 0:
        if last:
            print(f"    {last}", flush=True)
        msg = f"{title} ended with exit code {code}: python -m {' '.join(command)}"
        raise DemoFailed(msg)
    return dict(json.loads(last))


def free_port() -> int:
    """Return a port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(env: dict[str, str], log: Path, bento: str = ".", cwd: Path = ROOT) -> Iterator[str]:
    """Run ``bentoml serve`` on loopback until the block ends; yields its address.

    Args:
        log: where its output goes.
        bento: what to serve: ``.`` for the folder ``cwd``, or a Bento.

    Raises:
        DemoFailed: when it ends or does not get ready; its output is in ``log``.
    """
    port = free_port()
    command = [str(BIN / "bentoml"), "serve", bento, "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=cwd, env=env, stdout=output, stderr=subprocess.STDOUT, process_group=0)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(process, url, log)
            yield url
        finally:
            stop(process)


def wait_until_ready(process: subprocess.Popen[Any], url: str, log: Path) -> None:
    """Return when the service answers /readyz."""
    end = time.monotonic() + READY_S
    while time.monotonic() < end:
        if process.poll() is not None:
            tail = "\n".join(log.read_text().splitlines()[-5:])
            msg = f"bentoml serve ended with exit code {process.returncode}; {log} ends with:\n{tail}"
            raise DemoFailed(msg)
        if answers(f"{url}/readyz"):
            return
        time.sleep(0.3)
    msg = f"bentoml serve was not ready after {READY_S} s; see {log}"
    raise DemoFailed(msg)


def answers(url: str) -> bool:
    """Whether a GET on loopback comes back with 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def stop(process: subprocess.Popen[Any], patience_s: float = 20.0) -> None:
    """End the service and every process of its group: asked first, so that the shadow's queue drains.

    A second Ctrl-C while it drains must not leave it running, so nothing interrupts this.
    """
    before = {number: signal.signal(number, signal.SIG_IGN) for number in STOPPING}
    try:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def emptied(home: Path) -> Path:
    """Make an empty folder of the demo's own.

    Raises:
        DemoFailed: when the folder holds something that no demo made.
    """
    mark = home / ".understudy-demo"
    if home.exists() and any(home.iterdir()) and not mark.exists():
        msg = f"{home} is not empty and no demo made it; choose another --home"
        raise DemoFailed(msg)
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    mark.touch()
    return home


def run(home: Path, when: Stretch, raw: Path | None = None) -> dict[str, Any]:
    """Run the loop and return its result.

    Args:
        home: folder of everything it makes; emptied first.
        raw: folder of the raw tables; None for the installed data package.
    """
    begun = time.monotonic()
    env = environment(emptied(home))
    # Until the replay owns the clock, trainings stand at the wall clock.
    train_env = {**env, "UNDERSTUDY_CLOCK": "wall"}
    source = ["--raw", str(raw)] if raw else []
    step("1/6 train primary and fallback", train_env, "training.train", "--as-of", when.primary_as_of, *source)
    step("2/6 train a newer model as shadow", train_env, "training.train", "--as-of", when.shadow_as_of, *source)
    (home / "state" / "clock").write_text(f"{when.start}T00:00:00+00:00")
    say("3/6 serve: bentoml serve")
    with serving(env, home / "serve.log") as url:
        replayed = step("4/6 replay", env, "monitoring.replay", "--url", url, "--start", when.start, "--end", when.end)
    compared = step("5/6 compare", env, "monitoring.compare_job")
    if compared["sampled"] != compared["scored"] + compared["dropped"]:
        msg = f"the shadow's ledger does not add up: {compared['sampled']} sampled, {compared['scored']} scored, "
        raise DemoFailed(msg + f"{compared['dropped']} dropped")
    audited = step("6/6 audit the served vectors", env, "monitoring.skew_job")
    return {
        "predictions": replayed["predictions"],
        "failed": replayed["failed"],
        "sampled": compared["sampled"],
        "scored": compared["scored"],
        "dropped": compared["dropped"],
        "verdict": compared["verdict"],
        "exact_share": audited["exact_share"],
        "report": compared["report"],
        "seconds": round(time.monotonic() - begun, 1),
    }


def say(text: str) -> None:
    """Tell what happens next."""
    print(f"==> {text}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Last line of stdout: one JSON object."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--home", type=Path, default=ROOT / "demo", help="folder of everything the demo makes")
    parser.add_argument("--raw", type=Path, help="folder of the raw tables; default: the installed data package")
    parser.add_argument("--primary-as-of", required=True)
    parser.add_argument("--shadow-as-of", required=True)
    parser.add_argument("--start", required=True)
    parser.add_argument("--end", required=True)
    args = parser.parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    try:
        when = Stretch(args.primary_as_of, args.shadow_as_of, args.start, args.end)
        result = run(args.home.resolve(), when, args.raw)
    except DemoFailed as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: stopped", file=sys.stderr)
        return 130
    say(f"verdict: {result['verdict']}; page: {result['report']}")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
