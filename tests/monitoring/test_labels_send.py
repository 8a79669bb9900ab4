"""Ground truth on its way to a running service."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from monitoring import labels_job, labels_send
from service.errors import StoreError
from tests.bundle import NOW, REQUEST, make_bundle
from tests.serving import served

KEPT, BUSY = 200, 429


class Door:
    """A stand-in for the service's endpoint that answers with the statuses it was given, then with KEPT."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.bodies: list[Any] = []
        self.tokens: list[str | None] = []
        self.waits: list[float] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                rows = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.bodies.append(rows)
                outer.tokens.append(self.headers["Authorization"])
                status = outer.statuses.pop(0) if outer.statuses else KEPT
                answer = json.dumps({"kept": len(rows)} if status == KEPT else {"error": "no such day"}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                if status == BUSY:
                    self.send_header("Retry-After", "7")
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                """Keep the test's output clean."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    made = Door()

    async def at_once(seconds: float) -> None:
        made.waits.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", at_once)
    thread = threading.Thread(target=made.server.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def labels(count: int) -> pd.DataFrame:
    known = pd.Timestamp("2013-11-01T00:00:00Z")
    return pd.DataFrame(
        {
            "request_id": [f"r{n}" for n in range(count)],
            "label": [float(n % 2) for n in range(count)],
            "known_at": known,
        }
    )


def send(door: Door, count: int, token: str = "") -> int:
    return labels_send.send(labels(count), door.url + "/", token, 4, lambda _: None)


def test_a_batch_is_no_larger_than_the_service_takes(door: Door) -> None:
    assert send(door, 10, "word") == 10

    assert [len(body) for body in door.bodies] == [4, 4, 2]
    assert door.bodies[0][1] == {"request_id": "r1", "label": 1, "known_at": "2013-11-01T00:00:00+00:00"}
    assert door.tokens == ["Bearer word"] * 3


@pytest.mark.parametrize(("busy", "waits"), [(BUSY, [7.0, 7.0, 7.0]), (503, [0.4, 0.8, 0.4])])
def test_a_busy_service_is_asked_again_when_it_says(door: Door, busy: int, waits: list[float]) -> None:
    door.statuses = [busy, busy, KEPT, busy]

    assert send(door, 8) == 8

    assert [body[0]["request_id"] for body in door.bodies] == ["r0", "r0", "r0", "r4", "r4"]
    assert door.tokens == [None] * 5
    assert door.waits == waits


def test_a_refusal_ends_it_with_the_reason_and_is_not_repeated(door: Door) -> None:
    door.statuses = [KEPT, 422]

    with pytest.raises(StoreError, match=r"answered 422: .*no such day"):
        send(door, 12)

    assert len(door.bodies) == 2


def test_a_service_that_stays_busy_is_given_up(door: Door) -> None:
    door.statuses = [503] * 20

    with pytest.raises(StoreError, match="answered 503"):
        send(door, 4)

    assert len(door.bodies) == labels_send._TRIES


def test_nobody_there_says_what_to_start(door: Door) -> None:
    with pytest.raises(StoreError, match=r"http://127\.0\.0\.1:1/labels cannot be reached .*make serve"):
        labels_send.send(labels(1), "http://127.0.0.1:1", "", 4, lambda _: None)


@pytest.mark.slow
def test_a_running_service_keeps_a_file_of_labels_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(tmp_path)
    later = (NOW + timedelta(days=3)).isoformat()
    own = bundle.settings.model_copy(update={"batch_limit": 8, "clock": later})
    monkeypatch.setattr(labels_job, "settings", lambda: own)
    with served(bundle, tmp_path, UNDERSTUDY_BATCH_LIMIT="8") as service:
        ids = [service.post("/predict", REQUEST)[1]["request_id"] for _ in range(20)]
        file = tmp_path / "labels.csv"
        file.write_text("request_id,label,at\n" + "".join(f"{one},1,{NOW.isoformat()}\n" for one in ids))
        told = []
        for _ in range(2):
            assert labels_job.main(["--file", str(file), "--url", service.url]) == 0
            told.append(json.loads(capsys.readouterr().out.splitlines()[-1]))

    assert [(one["written"], one["already"], one["to"]) for one in told] == [(20, 0, "service"), (0, 20, "service")]
    assert told[1]["coverage"] == 1.0
    assert sorted(line["request_id"] for line in service.records("labels")) == sorted(ids)
