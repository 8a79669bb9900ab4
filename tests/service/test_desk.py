"""What goes over the counter: statuses, headers, and no more at once than can be answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from starlette.responses import Response

from service.desk import Desk
from service.door import Door
from service.errors import BadRequest, TooLarge
from service.fakes import FakeRunner, MemoryLog
from service.wire import Taken
from tests.bundle import REQUEST, primary_contract
from tests.service.conftest import Stage

MakeStage = Callable[..., Stage]


def desk(stage: Stage, most: int = 64, batch_limit: int = 1000) -> Desk:
    """A desk before a stage."""
    door = Door(primary_contract(), stage.clock, batch_limit)
    return Desk(door, stage.router, MemoryLog(), stage.clock, most)


def body(value: Any = REQUEST) -> Taken:
    """A value as it arrives."""
    return Taken(orjson.dumps(value))


def read(response: Response) -> Any:
    """What it says."""
    return orjson.loads(bytes(response.body))


def test_an_answer_tells_how_long_its_stages_took(stage: MakeStage) -> None:
    response = asyncio.run(desk(stage()).predict(body()))

    parts = [part.split(";dur=") for part in response.headers["server-timing"].split(", ")]
    assert [name for name, _ in parts] == ["lookup", "validate", "primary", "post", "log", "total"]
    assert all(float(ms) >= 0 for _, ms in parts)
    assert set(read(response)) == {
        "request_id", "prediction", "role", "model_version", "confidence", "fallback_reason", "violations",
    }  # fmt: skip


def test_what_was_refused_on_arrival_stays_refused(stage: MakeStage) -> None:
    response = asyncio.run(desk(stage()).predict(Taken(b"", TooLarge(5))))

    assert (response.status_code, read(response)["problems"][0]["field"]) == (413, "body")


def crowd(*asked: Callable[[], Any]) -> list[Response]:
    """Ask all at once."""

    async def run() -> list[Response]:
        return list(await asyncio.gather(*(ask() for ask in asked)))

    return asyncio.run(run())


def test_more_than_the_limit_is_refused_with_the_time_to_come_back(stage: MakeStage) -> None:
    s = stage(primary=FakeRunner(lambda _: 0.3, delay_s=0.05))
    counter = desk(s, most=3)

    responses = crowd(*[lambda: counter.predict(body())] * 5)

    assert [r.status_code for r in responses] == [200, 200, 200, 429, 429]
    assert responses[-1].headers["retry-after"] == "1"
    assert "limit 3" in read(responses[-1])["error"]
    assert len(s.log.records) == 3


def test_there_is_room_again_when_some_have_left_however_they_left(stage: MakeStage) -> None:
    s = stage()
    counter = desk(s, most=1)

    statuses = [asyncio.run(counter.predict(taken)).status_code for taken in (body(), body({}), body(), Taken(b"{"))]

    assert statuses == [200, 422, 200, 400]
    assert asyncio.run(counter.predict(body())).status_code == 200


def test_a_batch_weighs_its_rows(stage: MakeStage) -> None:
    s = stage(primary=FakeRunner(lambda _: 0.3, delay_s=0.05))
    counter = desk(s, most=4)

    responses = crowd(
        lambda: counter.predict_batch(body([REQUEST] * 100)),
        lambda: counter.predict(body()),
        lambda: counter.predict_batch(body([REQUEST] * 64)),
    )

    assert [r.status_code for r in responses] == [200, 429, 429]
    assert len(read(responses[0])) == 100


def test_a_batch_heavier_than_the_limit_is_answered_when_it_comes_alone(stage: MakeStage) -> None:
    response = asyncio.run(desk(stage(), most=1).predict_batch(body([REQUEST] * 100)))

    assert (response.status_code, len(read(response))) == (200, 100)


def test_a_batch_keeps_its_order_and_tells_each_rows_error(stage: MakeStage) -> None:
    rows = [{**REQUEST, "request_id": str(i)} if i % 3 else {"origin": "nowhere"} for i in range(70)]

    answers = read(asyncio.run(desk(stage()).predict_batch(body(rows))))

    assert [a.get("request_id") for a in answers] == [str(i) if i % 3 else None for i in range(70)]
    assert {p["field"] for p in answers[0]["problems"]} >= {"origin", "distance"}


def test_one_callers_batch_leaves_others_their_turn(stage: MakeStage) -> None:
    s = stage(primary=FakeRunner(lambda _: 0.3, delay_s=0.02))
    counter = desk(s)
    order: list[str] = []

    async def run() -> None:
        async def batch() -> None:
            await counter.predict_batch(body([REQUEST] * 320))
            order.append("batch")

        async def single() -> None:
            await asyncio.sleep(0.01)
            await counter.predict(body())
            order.append("single")

        await asyncio.gather(batch(), single())

    asyncio.run(run())
    assert order == ["single", "batch"]


@pytest.mark.parametrize("labels", [{"request_id": "a", "label": 2, "known_at": "2013-10-01T00:00:00Z"}, [], [1]])
def test_labels_are_all_taken_or_none(stage: MakeStage, labels: Any) -> None:
    log = MemoryLog()
    s = stage()
    counter = Desk(Door(primary_contract(), s.clock, 10), s.router, log, s.clock, 4)

    response = counter.label(body(labels))

    assert (response.status_code, log.records) == (422, [])


def test_a_refusal_carries_its_headers() -> None:
    assert BadRequest([]).headers == {}
