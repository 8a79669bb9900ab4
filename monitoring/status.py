"""The health of the bundle on one page, for people without Grafana: ``make status``.

Writes ``status.html`` and ``status.json`` below the reports. Last line: one JSON object with the state of each of the
seven tiles. Exit code 0 whatever it shows; 1 only with ``--strict`` and a tile in alarm; 2: the page cannot be made.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

from monitoring.report import plain, templates, write
from monitoring.status_facts import Facts, gather
from monitoring.status_tiles import Status, status
from service.clock import clock_from
from service.errors import UnderstudyError
from service.settings import Settings, settings

_WINDOWS = 14
_CALL_S = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the page and return the exit code."""
    parser = argparse.ArgumentParser(prog="make status", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="folder of the reports (default: reports/ in the state folder)")
    parser.add_argument("--url", default="", help="address of a running service to ask as well")
    parser.add_argument("--strict", action="store_true", help="exit 1 when a tile alarms")
    options = parser.parse_args(arguments)
    begun = time.perf_counter()
    try:
        own = settings()
        out: Path = options.out or own.state_dir / "reports"
        now = clock_from(own.clock).now()
        facts = gather(own, out)
        found = status(facts.measured, now, timedelta(days=own.status_stale_days))
        service = ask(options.url, own) if options.url else {}
        out.mkdir(parents=True, exist_ok=True)
        write(out / "status.json", as_json(found, facts, service))
        write(out / "status.html", page(found, facts, service))
    except (UnderstudyError, OSError) as error:
        sys.stderr.write(f"status: {error}\n")
        return 2
    for tile in found.tiles:
        sys.stdout.write(f"  {tile.state:<10} {tile.title:<46} {tile.number:<18} {tile.detail}\n")
    sys.stdout.writelines(f"  note: {problem}\n" for problem in facts.problems)
    last = {
        "tiles": {tile.name: tile.state for tile in found.tiles},
        "report": str(out / "status.html"),
        "seconds": round(time.perf_counter() - begun, 1),
    }
    sys.stdout.write(f"\n{json.dumps(last)}\n")
    return 1 if options.strict and found.alarms else 0


def as_json(found: Status, facts: Facts, service: dict[str, str]) -> str:
    """Return the tiles and what they rest on."""
    whole = {
        "now": found.now.isoformat(),
        "tiles": [
            {**asdict(tile), "age": None if tile.age is None else tile.age.total_seconds()} for tile in found.tiles
        ],
        "service": service,
        "split": facts.split,
        "ledger": asdict(facts.accounts) if facts.accounts else None,
        "problems": facts.problems,
    }
    return json.dumps(plain(whole), indent=1, default=str) + "\n"


def page(found: Status, facts: Facts, service: dict[str, str]) -> str:
    """Return the HTML page; it loads nothing from anywhere."""
    windows = [w for w in facts.measured.windows if w.rows][-_WINDOWS:]
    return templates().get_template("status.html").render(
        status=found, facts=facts, service=service, windows=list(reversed(windows)), aged=aged,
        worst=next((s for s in ("alarm", "attention", "no data") if any(t.state == s for t in found.tiles)), "ok"),
        open_watches=[w for w in facts.watches if w.get("status") == "open"],
    )  # fmt: skip


def aged(age: timedelta | None) -> str:
    """Say an age in words."""
    if age is None:
        return ""
    minutes = int(age.total_seconds() // 60)
    if minutes < -60:
        return "after the clock's now"
    if minutes < 1:
        return "now"
    if minutes < 60:
        return f"{minutes} min ago"
    return f"{minutes // 60} h ago" if minutes < 48 * 60 else f"{minutes // 1440} days ago"


def ask(url: str, own: Settings) -> dict[str, str]:
    """Ask a running service whether it is ready and who plays."""
    told = {"readyz": _get(f"{url.rstrip('/')}/readyz", "")}
    token = own.admin_token.get_secret_value().partition(",")[0].strip()
    told["roles"] = _get(f"{url.rstrip('/')}/admin/roles", token) if token else "not asked: no admin token is set"
    return told


def _get(url: str, token: str) -> str:
    if not url.startswith(("http://", "https://")):
        return f"no data: {url} is no http address"
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urlopen(Request(url, headers=headers), timeout=_CALL_S) as answer:
            text: Any = answer.read(4000).decode(errors="replace").strip()
            return f"{answer.status} {text}".strip()
    except (URLError, OSError, ValueError) as error:
        return f"no data: {error}"


if __name__ == "__main__":
    sys.exit(main())
