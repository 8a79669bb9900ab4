"""What running services answer, and count of it."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Contender:
    """A running service: its address and the requests it takes."""

    name: str
    url: str
    bodies: Path


def agree(some: Sequence[Contender], count: int = 100) -> None:
    """Ask all the same requests.

    Raises:
        SystemExit: when two of them answer differently: then they do not serve the same.
    """
    scores = [[_score(c.url, body) for body in c.bodies.read_bytes().splitlines()[:count]] for c in some]
    worst = max(max(row) - min(row) for row in zip(*scores, strict=True))
    print(f"{count} requests asked of all: answers differ by at most {worst:.1e}", flush=True)
    if worst > 1e-9:
        raise SystemExit("the services do not give the same answers")


def _score(url: str, body: bytes) -> float:
    request = urllib.request.Request(f"{url}/predict", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        found = json.load(answer)
    return float(found["prediction"] if isinstance(found, dict) else found)


def metrics(url: str) -> dict[str, float]:
    """The values of a service's metrics, by series as it is written."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return {series: float(value) for series, value in re.findall(r"^([^#\s].*) (\S+)$", text, re.M)}


def normal_share(url: str) -> float:
    """Share of ours' answers that the primary gave with normal confidence."""
    found = {name: n for name, n in metrics(url).items() if name.startswith("understudy_predictions_total{")}
    shares = {name: n / sum(found.values()) for name, n in found.items()}
    for name, share in sorted(shares.items()):
        print(f"    {share:8.3%} of ours: {name.partition('{')[2][:-1]}")
    return round(sum(s for name, s in shares.items() if '"normal"' in name and '"primary"' in name), 5)
