"""The short way to the desk: the usual requests take it, and what is unusual goes BentoML's way."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable, MutableMapping
from typing import Any

import orjson
import pytest

from service.desk import Desk
from service.fakes import FakeRunner
from service.lane import Lane
from tests.bundle import REQUEST
from tests.service.conftest import Stage
from tests.service.test_desk import desk

MakeStage = Callable[..., Stage]
Message = MutableMapping[str, Any]
LIMIT = 10_000


class Behind:
    """What stands behind the lane: keeps the paths that reach it."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    async def __call__(self, scope: Any, _: Any, __: Any) -> None:
        """Answer nothing."""
        self.paths.append(scope["path"] if "path" in scope else scope["type"])


def asked(
    counter: Desk, scope: dict[str, Any] | None = None, *messages: Message, headers: dict[str, str] | None = None
) -> tuple[list[Message], Behind]:
    """Send messages along the lane; returns what was sent back, and what stood behind."""
    behind, sent, coming = Behind(), [], list(messages)

    async def receive() -> Message:
        return coming.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    full = {"type": "http", "method": "POST", "path": "/predict", "headers": raw, **(scope or {})}
    asyncio.run(Lane(behind, desk=lambda: counter, body_limit=LIMIT)(full, receive, send))
    return sent, behind


def body(value: Any = REQUEST, *, more: bool = False) -> Message:
    """A body as the server hands it on."""
    return {"type": "http.request", "body": orjson.dumps(value), "more_body": more}


def told(sent: list[Message]) -> tuple[int, Any]:
    """Status and parsed answer."""
    return sent[0]["status"], orjson.loads(sent[1]["body"])


def test_a_prediction_is_answered_before_bentoml_sees_it(stage: MakeStage) -> None:
    sent, behind = asked(desk(stage()), None, body({**REQUEST, "request_id": "a"}))

    status, answer = told(sent)
    assert (status, answer["request_id"], answer["role"], behind.paths) == (200, "a", "primary", [])
    assert {name for name, _ in sent[0]["headers"]} == {b"content-length", b"content-type", b"server-timing"}


def test_batches_and_labels_take_it_too(stage: MakeStage) -> None:
    label = {"request_id": "a", "label": 1, "known_at": "2013-10-01T18:00:00+00:00"}

    assert len(told(asked(desk(stage()), {"path": "/predict_batch"}, body([REQUEST] * 3))[0])[1]) == 3
    assert told(asked(desk(stage()), {"path": "/labels"}, body(label))[0])[1] == {"received": 1, "kept": 1}


@pytest.mark.parametrize(
    "scope",
    [
        {"method": "GET"}, {"method": "OPTIONS"}, {"path": "/predict/"}, {"path": "/metrics"}, {"path": "/admin/roles"},
        {"headers": [(b"origin", b"https://elsewhere.example")]}, {"type": "lifespan"},
    ],
    ids=["get", "options", "slash", "other", "admin", "browser", "lifespan"],
)  # fmt: skip
def test_everything_else_goes_bentomls_way(stage: MakeStage, scope: dict[str, Any]) -> None:
    sent, behind = asked(desk(stage()), scope, body())

    assert (len(behind.paths), sent) == (1, [])


def test_a_body_in_pieces_is_read_whole(stage: MakeStage) -> None:
    whole = orjson.dumps(REQUEST)
    pieces = [{"type": "http.request", "body": whole[i : i + 40], "more_body": True} for i in range(0, len(whole), 40)]

    sent, _ = asked(desk(stage()), None, *pieces, {"type": "http.request"})

    assert told(sent)[0] == 200


def test_a_body_above_the_limit_is_refused(stage: MakeStage) -> None:
    sent, _ = asked(desk(stage()), None, body("x" * 6000, more=True), body("x" * 6000))

    assert (told(sent)[0], told(sent)[1]["problems"][0]["field"]) == (413, "body")


def test_a_body_above_the_limit_is_let_go_at_once(stage: MakeStage) -> None:
    chunk = b"x" * (LIMIT - 1)
    counter = desk(stage())
    gc.collect()
    gc.disable()
    try:
        before = sys.getrefcount(chunk)
        sent, _ = asked(counter, None, {**body(more=True), "body": chunk}, {**body(), "body": b"xx"})
        assert told(sent)[0] == 413
        # Not when the collector comes by.
        assert sys.getrefcount(chunk) == before
    finally:
        gc.enable()


def test_whoever_goes_away_within_a_request_is_told_nothing(stage: MakeStage) -> None:
    made = stage()

    sent, _ = asked(desk(made), None, body(more=True), {"type": "http.disconnect"})

    assert (sent, made.log.records) == ([], [])


def test_a_fault_of_ours_is_a_500_that_tells_no_details(stage: MakeStage, caplog: pytest.LogCaptureFixture) -> None:
    counter = desk(stage())
    counter._router = None  # type: ignore[assignment]  # a fault nobody foresaw

    status, answer = told(asked(counter, None, body())[0])

    assert (status, set(answer)) == (500, {"error", "problems"})
    assert "NoneType" not in answer["error"]
    assert "NoneType" in caplog.text


def test_the_callers_trace_is_handed_on(stage: MakeStage) -> None:
    made = stage(primary=FakeRunner(lambda _: 0.5))
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    asked(desk(made), None, body(), headers={"traceparent": parent})

    assert [seen.traceparent for seen in made.seen_trips] == [parent]
