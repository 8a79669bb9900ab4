"""Runs `bentoml serve` on a test's bundle and gives a small client to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from deploy.demo import environment, serving
from service.clock import write_clock
from tests.bundle import NOW, Bundle

PATIENCE_S = 60
# A deadline that a busy test machine can keep: the tests are about what happens, not how fast.
ADMIN = "admin-token-of-the-tests"
PATIENT = {
    "UNDERSTUDY_DEADLINE_MS": "1000",
    "UNDERSTUDY_FALLBACK_RESERVE_MS": "500",
    "UNDERSTUDY_ADMIN_TOKEN": ADMIN,
    # Tests count what shadows do; the ones about the noise floor ask for it.
    "UNDERSTUDY_NOISE_SAMPLE": "0",
}


@dataclass(frozen=True)
class Served:
    """A running service."""

    url: str
    bundle: Bundle

    def post(self, path: str, body: Any, media_type: str = "application/json") -> tuple[int, Any]:
        """POST a JSON value (or raw bytes); returns status and parsed answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": media_type, **_credentials(path)})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")

    def get(self, path: str, *, ok_only: bool = True) -> Any:
        """GET a text, or with ``ok_only=False`` its status."""
        try:
            asked = urllib.request.Request(self.url + path, headers=_credentials(path))
            with urllib.request.urlopen(asked, timeout=30) as answer:
                return answer.read().decode() if ok_only else answer.status
        except urllib.error.HTTPError as error:
            if ok_only:
                raise
            return error.code

    def json(self, path: str) -> Any:
        """GET a JSON value."""
        return json.loads(self.get(path))

    def headers(self, path: str, body: Any) -> dict[str, str]:
        """POST a JSON value; returns the answer's headers, their names in lower case."""
        return self.asked(path, body, {})[1]

    def asked(self, path: str, body: Any, headers: dict[str, str]) -> tuple[Any, dict[str, str]]:
        """POST a JSON value with more headers; returns the parsed answer and its headers, names in lower case."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json", **headers}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer), {name.lower(): value for name, value in answer.headers.items()}

    def series(self, name: str) -> float:
        """Sum of a metric over its labels."""
        lines = [line for line in self.get("/metrics").splitlines() if line.startswith((name + "{", name + " "))]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def records(self, log: str) -> list[dict[str, Any]]:
        """Every record of a log so far, in the order of its segments."""
        folder = self.bundle.settings.log_dir / log
        return [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]

    def wait_for(self, log: str, wanted: Callable[[dict[str, Any]], bool], count: int = 1) -> list[dict[str, Any]]:
        """Wait until a log holds ``count`` wanted records and return them."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            found[:] = [r for r in self.records(log) if wanted(r)]
            return len(found) >= count

        self.wait_until(there)
        return found

    def wait_for_runner(self, role: str) -> None:
        """Wait until a role's runner is connected; the service is ready before its shadows are."""
        self.wait_until(lambda: bool(self.json("/admin/roles")["roles"][role]["connected"]))

    def wait_until(self, done: Callable[[], bool]) -> None:
        """Return when ``done`` is true; fail after a minute."""
        end = time.monotonic() + PATIENCE_S
        while not done():
            assert time.monotonic() < end, f"waited {PATIENCE_S} s in vain"
            time.sleep(0.1)

    def process(self, role: str, default: int | None = None) -> int:
        """Process id of a role's runner."""
        home = f"BENTOML_HOME={self.bundle.settings.state_dir.parent / 'bentoml'}".encode()
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                mine = home in (folder / "environ").read_bytes().split(b"\0")
                if mine and b"--service-name" in words and role.encode() in words:
                    return int(folder.name)
        assert default is not None, f"no process of {role} found"
        return default


def _credentials(path: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {ADMIN}"} if path.startswith("/admin") else {}


@contextlib.contextmanager
def served(bundle: Bundle, folder: Path, **variables: str) -> Iterator[Served]:
    """Serve a bundle made below ``folder`` until the block ends, the clock standing at NOW."""
    write_clock(bundle.settings.state_dir / "clock", NOW)
    with serving({**environment(folder), **PATIENT, **variables}, folder / "serve.log") as url:
        yield Served(url, bundle)


def load(url: str, count: int, width: int, bodies: list[bytes]) -> list[tuple[int, Any]]:
    """Send ``count`` requests, ``width`` at a time; returns status and answer of each."""

    async def run() -> list[tuple[int, Any]]:
        results: list[tuple[int, Any]] = []
        todo = iter(range(count))
        headers = {"Content-Type": "application/json"}
        async with aiohttp.ClientSession() as session:

            async def work() -> None:
                for i in todo:
                    async with session.post(f"{url}/predict", data=bodies[i % len(bodies)], headers=headers) as answer:
                        results.append((answer.status, await answer.json()))

            await asyncio.gather(*(work() for _ in range(width)))
        return results

    return asyncio.run(run())
