"""The load generator counts every answer once, hides no wait, stops by itself and sends nothing beyond loopback."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks.servers import loaded, loader, own_path
from tests.benchmarks.server import Reply, answering

STALL_S = 0.4


@pytest.fixture
def bodies(tmp_path: Path) -> Path:
    path = tmp_path / "bodies.jsonl"
    path.write_text('{"n":1}\n{"n":2}\n{"n":3}\n')
    return path


def stalling(number: int, _: bytes) -> Reply:
    """An answer at once, but for the twentieth."""
    return Reply(after_s=STALL_S if number == 20 else 0.0)


def test_bodies_go_round_and_every_answer_counts(bodies: Path) -> None:
    with answering(lambda *_: Reply()) as server:
        found = loaded(server.url, bodies, connections=1, requests=7)

    assert server.bodies == [b'{"n":%d}' % n for n in (1, 2, 3, 1, 2, 3, 1)]
    assert (found["requests"], found["non_200"], found["errors"]) == (7, 0, 0)


def test_a_closed_loop_has_one_request_under_way_per_connection(bodies: Path) -> None:
    with answering(lambda *_: Reply(after_s=0.005)) as server:
        found = loaded(server.url, bodies, connections=4, requests=100)

    assert server.most == 4
    assert len(server.bodies) == found["requests"] == 100


def test_answers_other_than_200_are_counted_by_status(bodies: Path) -> None:
    with answering(lambda _, body: Reply(status=503 if b"2" in body else 200)) as server:
        found = loaded(server.url, bodies, connections=1, requests=9)

    assert found["statuses"] == {"200": 6, "503": 3}
    assert found["non_200"] == 3


def test_a_connection_closed_on_a_request_is_an_error_and_replaced(bodies: Path) -> None:
    with answering(lambda number, _: Reply(status=0 if number == 5 else 200)) as server:
        found = loaded(server.url, bodies, connections=1, requests=10)

    assert (found["requests"], found["errors"], found["non_200"]) == (9, 1, 1)


def test_the_longest_time_without_an_answer_is_the_stall(bodies: Path) -> None:
    with answering(stalling) as server:
        found = loaded(server.url, bodies, connections=1, requests=100)

    assert 1000 * STALL_S <= found["stall_ms"] < 2000 * STALL_S
    assert found["max"] >= 1000 * STALL_S


def test_a_closed_loop_hides_the_requests_a_stall_kept_back(bodies: Path) -> None:
    with answering(stalling) as server:
        found = loaded(server.url, bodies, connections=1, requests=100)

    assert found["p90"] < 1000 * STALL_S / 4


def test_an_open_loop_counts_them_from_when_they_were_due(bodies: Path) -> None:
    with answering(stalling) as server:
        found = loaded(server.url, bodies, connections=1, requests=100, rate=200)

    # 80 fell due while the first of them was being answered: the middle one of those waited half of the stall.
    assert found["requests"] == 100
    assert 1000 * STALL_S / 4 < found["p50"] < 1000 * STALL_S
    assert found["rps"] == pytest.approx(200, rel=0.1)


def test_an_open_loop_keeps_its_rate(bodies: Path) -> None:
    with answering(lambda *_: Reply(after_s=0.02)) as server:
        found = loaded(server.url, bodies, connections=16, seconds=1.0, rate=300)

    assert found["rps"] == pytest.approx(300, rel=0.1)


def test_stages_are_read_from_server_timing(bodies: Path) -> None:
    with answering(lambda number, _: Reply(timing=f"lookup;dur={number}.5, log;dur=0.25")) as server:
        found = loaded(server.url, bodies, stages=True, connections=1, requests=5)

    assert found["stages"]["lookup"] | {"p90": 0, "p999": 0} == {
        "p50": 2.5, "p90": 0, "p99": 4.5, "p999": 0, "max": 4.5
    }  # fmt: skip
    assert found["stages"]["log"]["max"] == 0.25


def test_answers_of_the_warm_up_do_not_count(bodies: Path) -> None:
    with answering(lambda number, _: Reply(after_s=0.5 if number == 0 else 0.01)) as server:
        found = loaded(server.url, bodies, connections=1, seconds=1.0, warmup=0.3)

    assert found["max"] < 400
    assert found["answered"] == found["requests"] + 1


def test_it_ends_in_time_when_nothing_comes_back(bodies: Path) -> None:
    with answering(lambda *_: Reply(after_s=3.0)) as server:
        found = loaded(server.url, bodies, connections=2, seconds=0.5)

    assert (found["requests"], found["p99"]) == (0, None)


@pytest.mark.parametrize("url", ["http://192.0.2.1:80", "http://example.com", "https://127.0.0.1"])
def test_it_sends_nothing_beyond_loopback(bodies: Path, url: str) -> None:
    done = subprocess.run(loader(url, bodies), env=own_path(), capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert "not an http address on loopback" in done.stderr
