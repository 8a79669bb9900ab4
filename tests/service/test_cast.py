"""Who plays follows what the runners say; open breakers close on evidence; silent runners are ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from service.breaker import Breaker, Rules
from service.cast import Actor, Watch
from service.link import Link, LinkDown, RunnerRefused
from service.runners import RemoteRunner

HELLO = {"seated": True, "version": "1", "digest": "a", "features": ["x"], "base_rate": 0.3, "problem": ""}


class Scripted(Link):
    """A link whose runner answers as a test says."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        super().__init__(Path("nowhere"))
        self.answer = answer
        self.asked: list[Any] = []
        self.killed = 0
        self.there = True

    @property
    def connected(self) -> bool:
        return self.there

    async def call(self, rows: Sequence[Mapping[str, Any]], end: float, *, gently: bool = False) -> Mapping[str, Any]:
        self.asked += rows
        answer = self.answer()
        if isinstance(answer, Exception):
            raise answer
        if answer == "hang":
            await asyncio.sleep(60)
        return {"scores": [answer]}

    def kill(self) -> int | None:
        self.killed += 1
        return 4711


def make(answer: Callable[[], Any] = lambda: 0.3, *, hung_s: float = 0.05) -> tuple[Watch, Actor, Scripted]:
    """A watch on a scripted link, its actor without a runner yet."""
    link = Scripted(answer)
    actor = Actor("primary", None, Breaker(Rules()))
    return Watch(actor, link, RemoteRunner(link), ["x", "y"], hung_s=hung_s), actor, link


def break_it(actor: Actor) -> None:
    """Open the breaker."""
    for _ in range(20):
        ticket = actor.breaker.admit()
        if ticket:
            ticket.settle(0.0, failed=True)
    assert actor.breaker.state == "open"


def beats(watch: Watch, count: int) -> None:
    """Ask some times."""

    async def run() -> None:
        for _ in range(count):
            await watch.beat()

    asyncio.run(run())


def test_a_runner_that_says_it_has_a_model_plays() -> None:
    watch, actor, _ = make()

    watch.heard(HELLO)

    assert actor.runner is not None
    assert watch.ready


def test_one_without_a_seat_does_not_play() -> None:
    watch, actor, _ = make()
    watch.heard(HELLO)

    watch.heard({**HELLO, "seated": False, "version": None, "digest": None, "features": [], "base_rate": None})

    assert actor.runner is None
    assert not watch.ready


def test_a_model_of_features_the_definitions_lost_does_not_play(caplog: pytest.LogCaptureFixture) -> None:
    watch, actor, _ = make()

    with caplog.at_level(logging.ERROR):
        watch.heard({**HELLO, "features": ["x", "gone"]})

    assert actor.runner is None
    assert "(gone)" in caplog.text


def test_a_runner_that_went_away_still_plays_its_part() -> None:
    """Its calls fail and are counted; only an emptied seat is nobody's."""
    watch, actor, link = make()
    watch.heard(HELLO)

    watch.heard(None)
    link.there = False

    assert actor.runner is not None
    assert not watch.ready


def test_another_model_begins_with_a_clean_breaker() -> None:
    watch, actor, _ = make()
    watch.heard(HELLO)
    break_it(actor)
    watch.heard(HELLO)
    same = actor.breaker.state

    watch.heard({**HELLO, "digest": "b"})

    assert (same, actor.breaker.state) == ("open", "closed")


def test_the_safe_default_is_that_of_the_model_that_plays() -> None:
    rates: list[float] = []
    link = Scripted(lambda: 0.3)
    actor = Actor("primary", None, Breaker(Rules()))
    watch = Watch(actor, link, RemoteRunner(link), ["x"], hung_s=1, rated=rates.append)

    watch.heard(HELLO)
    watch.heard(HELLO)
    watch.heard({**HELLO, "digest": "b", "base_rate": 0.4})

    assert rates == [0.3, 0.4]


def test_three_good_answers_in_a_row_let_an_open_breaker_probe() -> None:
    watch, actor, _ = make()
    break_it(actor)

    beats(watch, 2)
    early = actor.breaker.state
    beats(watch, 1)

    assert (early, actor.breaker.state) == ("open", "half_open")


@pytest.mark.parametrize("bad", [7.5, None, float("nan"), RunnerRefused("no"), LinkDown("gone"), KeyError("scores")])
def test_anything_else_in_between_starts_the_count_again(bad: Any) -> None:
    answers = iter([0.3, 0.3, bad, 0.3, 0.3])
    watch, actor, _ = make(lambda: next(answers))
    break_it(actor)

    beats(watch, 5)

    assert actor.breaker.state == "open"


def test_it_asks_what_it_was_once_asked_well() -> None:
    watch, actor, link = make()
    actor.familiar = {"x": 5}

    beats(watch, 1)

    assert link.asked == [{"x": 5}]


def test_a_silent_runner_is_killed() -> None:
    watch, _, link = make(lambda: "hang")

    beats(watch, 1)

    assert link.killed == 1


def test_nobody_is_killed_when_that_is_switched_off() -> None:
    watch, _, link = make(lambda: "hang", hung_s=0)

    async def run() -> None:
        task = asyncio.create_task(watch.beat())
        await asyncio.sleep(0.3)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(run())
    assert link.killed == 0


def test_nobody_is_asked_while_nobody_is_there() -> None:
    watch, _, link = make()
    link.there = False

    beats(watch, 3)

    assert link.asked == []
