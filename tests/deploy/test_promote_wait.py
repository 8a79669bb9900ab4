"""Waiting for a running service: every worker, in bounded time, and an exit code that says if not."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from deploy.promote_wait import wait_for
from service.settings import Settings
from tests.bundle import settings_in

TOKEN = "admin"
WANTED = {"primary": "b" * 64}


@contextmanager
def service(answers: Iterator[dict[str, Any]]) -> Iterator[str]:
    """A service whose admin route answers these, one after the other."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = self.headers["Authorization"] == f"Bearer {TOKEN}" and self.path == "/admin/roles"
            body = json.dumps(next(answers) if allowed else {}).encode()
            self.send_response(200 if allowed else 401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answer(digest: str, worker: int | None = None, workers: int = 2) -> dict[str, Any]:
    """What one worker says."""
    told: dict[str, Any] = {"worker": worker, "workers": workers} if worker is not None else {}
    running = {"version": "1", "digest": digest * 64}
    return {**told, "roles": {"primary": {"running": running, "connected": True, "problem": ""}}}


def endless(*first: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """These, and then the last two in turn."""
    yield from first
    while True:
        yield from first[-2:]


def where(folder: Path, token: str = TOKEN) -> Settings:
    """Settings with an admin token."""
    return settings_in(folder, admin_token=SecretStr(token))


def test_every_worker_must_have_said_so(tmp_path: Path) -> None:
    said: list[str] = []
    answers = [answer("a", 1), answer("b", 2), answer("b", 2), answer("a", 1), answer("b", 1), answer("b", 2)]

    with service(endless(*answers)) as url:
        waited = wait_for(url, where(tmp_path), WANTED, said.append)

    assert waited is not None
    assert (waited.everybody, waited.workers) == (True, 2)
    assert said[-1].startswith("every worker plays it after ")


def test_a_service_that_does_not_name_its_workers_must_say_so_many_times_in_a_row(tmp_path: Path) -> None:
    said: list[str] = []

    with service(endless(*[answer("b")] * 20, answer("a"), answer("b"), answer("b"))) as url:
        waited = wait_for(url, where(tmp_path), WANTED, said.append)

    assert waited is not None
    assert waited.everybody
    assert said[-1].endswith("(40 answers)")


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ((answer("a", 1), answer("a", 2)), "primary plays aaaaaaaaaaaa, not bbbbbbbbbbbb"),
        ((answer("b", 1), answer("b", 1)), "only 1 workers were heard of"),
    ],
)
def test_one_that_does_not_change_over_is_told_of_in_bounded_time(
    answers: tuple[dict[str, Any], ...], problem: str, tmp_path: Path
) -> None:
    said: list[str] = []

    with service(endless(*answers)) as url:
        waited = wait_for(url, where(tmp_path), WANTED, said.append, most_s=0.3)

    assert waited is not None
    assert not waited.everybody
    assert "does not play it everywhere after 0.3 s (limit 0.3 s): " in said[-1]
    assert problem in said[-1]


def test_a_wrong_token_is_named(tmp_path: Path) -> None:
    said: list[str] = []

    with service(endless(answer("b", 1))) as url:
        waited = wait_for(url, where(tmp_path, "wrong"), WANTED, said.append, most_s=0.2)

    assert waited is not None
    assert not waited.everybody
    assert "GET /admin/roles answers 401" in said[-1]


def test_without_a_token_nobody_is_asked(tmp_path: Path) -> None:
    said: list[str] = []

    waited = wait_for("http://127.0.0.1:9", where(tmp_path, ""), WANTED, said.append)

    assert waited is not None
    assert not waited.everybody
    assert "set UNDERSTUDY_ADMIN_TOKEN" in said[0]


def test_without_a_service_nobody_waits(tmp_path: Path) -> None:
    assert wait_for("", where(tmp_path), WANTED, lambda _: None) is None
