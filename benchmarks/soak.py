"""A million requests: what grows in the service's processes, and the longest time without any answer.

16 connections in a closed loop, everything on. The memory of every gateway worker and runner is read once a second;
growth is the median over the last tenth of the requests against the median over the second tenth, the first being
warm-up. Last line of stdout: one JSON object; exit code 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import memory
from benchmarks.servers import loader, ours, own_path, stop_what_was_started
from service.settings import ROOT

MOST_GROWTH = 5.0
MOST_STALL_MS = 50.0
CONNECTIONS = 16
# Room for the log lines of one request, of both logs.
BYTES_A_REQUEST = 4000


@dataclass
class Soak:
    """One run of a service in a folder: how far it is, and the memory seen on the way, in bytes by process."""

    folder: Path
    requests: int
    every_s: float = 1.0
    answered: int = 0
    samples: list[tuple[int, dict[str, int]]] = field(default_factory=list)

    def run(self, url: str, bodies: Path, seconds: float) -> dict[str, Any]:
        """Send all requests, for at most so many seconds, and return what was found."""
        command = loader(
            url, bodies, connections=CONNECTIONS, requests=self.requests, seconds=seconds, progress=self.every_s
        )
        pipe = subprocess.PIPE
        begun = time.monotonic()
        with subprocess.Popen(command, cwd=ROOT, env=own_path(), stdout=pipe, stderr=pipe, text=True) as load:
            reader = threading.Thread(target=self._follow, args=(load.stderr,))
            reader.start()
            try:
                # The load ends by itself; the second limit is for one that hangs.
                while load.poll() is None and time.monotonic() - begun < seconds + 30:
                    self._sample(time.monotonic() - begun)
                    time.sleep(self.every_s)
            finally:
                load.kill()
                reader.join()
            assert load.stdout is not None
            lines = load.stdout.read().splitlines()
        if load.returncode != 0 or not lines:
            msg = f"the load ended with exit code {load.returncode} after {self.answered} answers"
            raise SystemExit(msg)
        return self._result(json.loads(lines[-1]), url)

    def _follow(self, lines: Any) -> None:
        for line in lines:
            try:
                self.answered = json.loads(line)["answered"]
            except ValueError:
                print(line, end="", file=sys.stderr)

    def _sample(self, seconds: float) -> None:
        seen = memory(self.folder)
        self.samples.append((self.answered, seen))
        if len(self.samples) % 10 == 0:
            total = sum(seen.values()) / 2**20
            print(f"{self.answered:>10,} of {self.requests:,} answered   {self.answered / seconds:6.0f} /s   "
                  f"memory {total:6.0f} MB   logs {self.log_bytes() / 1e6:6.0f} MB", flush=True)  # fmt: skip

    def log_bytes(self) -> int:
        """Size of everything logged so far."""
        return sum(path.stat().st_size for path in (self.folder / "state" / "logs").rglob("*.jsonl"))

    def _result(self, load: Mapping[str, Any], url: str) -> dict[str, Any]:
        grown = growth(self.samples, load["answered"])
        with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
            text = answer.read().decode().splitlines()
        dropped = sum(float(line.rsplit(" ", 1)[1]) for line in text if line.startswith("understudy_log_dropped_total"))
        return {
            "requests": load["answered"],
            "rss_growth": max(grown.values(), default=None),
            "longest_stall_ms": load["stall_ms"],
            "non_200": load["non_200"],
            "rss_growth_by_process": grown,
            "rps": load["rps"],
            "p50_ms": load["p50"],
            "p99_ms": load["p99"],
            "max_ms": load["max"],
            "log_mb": round(self.log_bytes() / 1e6, 1),
            "log_dropped": dropped,
            "seconds": load["seconds"],
        }


def growth(samples: Sequence[tuple[int, Mapping[str, int]]], requests: int) -> dict[str, float]:
    """Growth of each process in percent, of those that lived through it all; empty without samples of both ends."""
    early = [seen for answered, seen in samples if 0.1 * requests <= answered < 0.2 * requests]
    late = [seen for answered, seen in samples if answered >= 0.9 * requests]
    if not early or not late:
        return {}
    lasting = set[str].intersection(*(set(seen) for seen in [*early, *late]))
    before, after = ({n: statistics.median(s[n] for s in some) for n in lasting} for some in (early, late))
    return {name: round(100 * (after[name] / before[name] - 1), 2) for name in sorted(lasting)}


def faults(result: Mapping[str, Any], requests: int) -> list[str]:
    """Every limit that a result misses, one sentence each."""
    found = []
    if result["requests"] < requests:
        found.append(f"requests={result['requests']}: {requests} were to be answered in the time given")
    if result["non_200"]:
        found.append(f"non_200={result['non_200']}, not 0")
    if result["rss_growth"] is None:
        found.append("rss_growth was not measured: too short, or a process did not live to the end")
    elif result["rss_growth"] > MOST_GROWTH:
        found.append(f"rss_growth={result['rss_growth']} % is above {MOST_GROWTH:g}")
    if result["longest_stall_ms"] > MOST_STALL_MS:
        found.append(f"longest_stall_ms={result['longest_stall_ms']} is above {MOST_STALL_MS:g}")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    from benchmarks.stage import prepared

    parser = argparse.ArgumentParser(prog="make soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--home", type=Path, help="folder to prepare in or to use again; default: a temporary one")
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=2400.0, help="longest time; features are fresh for 45 minutes")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    stop_what_was_started()
    with tempfile.TemporaryDirectory() if args.home is None else contextlib.nullcontext(args.home) as name:
        home = prepared(Path(name).resolve())
        if (free := shutil.disk_usage(home).free) < args.requests * BYTES_A_REQUEST:
            print(f"soak: {home} has {free / 1e9:.1f} GB free, the logs may need "
                  f"{args.requests * BYTES_A_REQUEST / 1e9:.1f}; choose another --home", file=sys.stderr)  # fmt: skip
            return 2
        folder = home / "run" / "soak"
        with ours(home, "soak") as url:
            result = Soak(folder, args.requests).run(url, home / "requests.jsonl", args.seconds)
        shutil.rmtree(folder)
    missed = faults(result, args.requests)
    for process, grown in result["rss_growth_by_process"].items():
        print(f"{process:24} {grown:+6.2f} %")
    print("\n".join(missed) or "every limit is kept", file=sys.stderr)
    print(json.dumps(result))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
