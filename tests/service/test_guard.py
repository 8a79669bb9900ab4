"""Only who may comes in, only JSON of an allowed size, and answers carry the headers they should."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

import pytest
import uvicorn
from pydantic import SecretStr, ValidationError

from service.errors import NotReady
from service.guard import Guard, Message, Receive, Scope, Send
from service.settings import Settings

PREDICT, NEXT, ADMIN = "predict-token-1", "predict-token-2", "admin-token"
JSON = {"content-type": "application/json"}


def bearer(token: str, scheme: str = "Bearer") -> dict[str, str]:
    """A header that carries a token."""
    return {"authorization": f"{scheme} {token}"}


@dataclass
class Inner:
    """The app behind the guard: answers 200 to all, and remembers who came."""

    paths: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            self.paths.append("lifespan")
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.paths.append(scope["path"])
        self.bodies.append(body)
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})


@dataclass
class Told:
    """An answer."""

    status: int
    headers: dict[str, str]
    body: bytes
    taken: int

    @property
    def problem(self) -> str:
        """The text of a refusal."""
        said = json.loads(self.body)
        assert set(said) == {"error", "problems"}
        return str(said["error"])


@dataclass
class House:
    """An app with a guard before it."""

    predict: str = ""
    admin: str = ""
    limit: int = 1000
    inner: Inner = field(default_factory=Inner)
    refused: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.guard = Guard(
            self.inner,
            predict_token=SecretStr(self.predict),
            admin_token=SecretStr(self.admin),
            body_limit=self.limit,
            refused=lambda endpoint, status: self.refused.append((endpoint, status)),
        )

    def ask(self, method: str, path: str, *headers: dict[str, str], body: list[bytes] | None = None) -> Told:
        """Send one request through the guard."""
        lines = [(name.encode(), value.encode("latin-1")) for part in headers for name, value in part.items()]
        scope: dict[str, Any] = {"type": "http", "method": method, "path": path, "headers": lines}
        parts = list(body or [b"{}"])
        said: list[Message] = []
        taken = 0

        async def receive() -> Message:
            nonlocal taken
            taken += 1
            part = parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(parts)}

        async def send(message: Message) -> None:
            said.append(message)

        asyncio.run(self.guard(scope, receive, send))
        start, *rest = said
        told = {name.decode(): value.decode() for name, value in start["headers"]}
        return Told(start["status"], told, b"".join(m["body"] for m in rest), taken)


@pytest.mark.parametrize("path", ["/predict", "/predict_batch", "/labels", "/predict/", "//predict", "/added/later"])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "post"])
def test_without_a_valid_token_nothing_is_done(method: str, path: str) -> None:
    house = House(predict=PREDICT, admin=ADMIN)

    answers = [
        house.ask(method, path, JSON),
        house.ask(method, path, JSON, bearer(ADMIN)),
        house.ask(method, path, JSON, bearer("")),
        house.ask(method, path, JSON, bearer(PREDICT + "x")),
        house.ask(method, path, JSON, bearer(PREDICT[:-1])),
        house.ask(method, path, JSON, bearer("\xe9")),
        house.ask(method, path, JSON, {"authorization": PREDICT}),
        house.ask(method, path, JSON, bearer(PREDICT, "Basic")),
    ]

    assert {(a.status, a.headers["www-authenticate"]) for a in answers} == {(401, "Bearer")}
    assert "send Authorization: Bearer and a token" in answers[0].problem
    assert house.inner.paths == []


@pytest.mark.parametrize("token", [PREDICT, NEXT])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_each_of_several_tokens_is_valid_so_that_one_can_be_replaced(token: str, scheme: str) -> None:
    house = House(predict=f"{PREDICT}, {NEXT},")

    told = house.ask("POST", "/predict", JSON, bearer(token, scheme), body=[b'{"a":', b"1}"])

    assert (told.status, told.body, house.inner.bodies) == (200, b"ok", [b'{"a":1}'])


def test_without_a_predict_token_everybody_may_predict() -> None:
    assert House(admin=ADMIN).ask("POST", "/predict", JSON).status == 200


@pytest.mark.parametrize("path", ["/metrics", "/livez", "/readyz", "/docs.json", "/"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_reading_is_open(method: str, path: str) -> None:
    assert House(predict=PREDICT, admin=ADMIN).ask(method, path).status == 200


@pytest.mark.parametrize(
    "path", ["/admin", "/admin/roles", "/admin/breakers/primary", "//admin/roles", "/v1/admin/roles"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_admin_routes_take_the_admin_token_only(method: str, path: str) -> None:
    house = House(predict=PREDICT, admin=ADMIN)

    assert house.ask(method, path).status == 401
    assert house.ask(method, path, bearer(PREDICT)).status == 401
    assert house.ask(method, path, bearer(ADMIN)).status == 200


def test_admin_routes_are_off_until_their_token_is_set() -> None:
    house = House(predict=PREDICT)

    told = house.ask("GET", "/admin/roles", bearer(PREDICT))

    assert told.status == 403
    assert "set UNDERSTUDY_ADMIN_TOKEN" in told.problem
    assert house.inner.paths == []


@pytest.mark.parametrize(
    "kinds",
    [
        ["application/vnd.bentoml+pickle"],
        ["APPLICATION/VND.BENTOML+PICKLE; x=1"],
        ["application/json", "application/vnd.bentoml+pickle"],
        ["application/vnd.bentoml+pickle", "application/json"],
        ["text/plain"],
        ["multipart/form-data; boundary=x"],
        ["application/jsonx"],
        ["\xff"],
    ],
)
def test_any_body_but_json_is_refused_before_it_is_read(kinds: list[str]) -> None:
    house = House()

    told = house.ask("POST", "/predict", *({"content-type": kind} for kind in kinds))

    assert told.status == 415
    assert "send application/json" in told.problem
    assert house.inner.paths == []


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON", "application/json; charset=utf-8"])
def test_json_comes_through(kind: str) -> None:
    assert House().ask("POST", "/predict", {"content-type": kind}).status == 200


@pytest.mark.parametrize("length", ["1001", "9" * 30, "9" * 5000])
def test_a_body_announced_too_large_never_reaches_the_service(length: str) -> None:
    house = House()

    told = house.ask("POST", "/labels", JSON, {"content-length": length}, body=[b"x" * 600, b"x" * 600])

    assert (told.status, house.inner.paths, told.taken) == (413, [], 2)
    assert "limit 1000" in told.problem


def test_a_body_of_just_the_limit_comes_through() -> None:
    assert House().ask("POST", "/labels", JSON, {"content-length": "1000"}).status == 200


def test_a_body_of_no_announced_length_is_for_those_who_count_it() -> None:
    house = House(admin=ADMIN)
    chunked = {"transfer-encoding": "chunked"}

    assert house.ask("POST", "/admin/breakers", JSON, chunked, bearer(ADMIN)).status == 411
    assert house.ask("POST", "/predict", JSON, chunked).status == 200


def test_a_caller_that_asks_first_is_not_made_to_send_the_body() -> None:
    told = House().ask("POST", "/labels", JSON, {"content-length": "9999"}, {"expect": "100-continue"})

    assert (told.status, told.taken) == (413, 0)


def test_of_an_endless_body_only_so_much_is_taken() -> None:
    chunk = b"x" * 2**20

    told = House().ask("POST", "/labels", {"content-type": "text/plain"}, body=[chunk] * 200)

    assert (told.status, told.taken) == (415, 65)


def test_answers_carry_their_headers() -> None:
    house = House(admin=ADMIN)

    read, posted, page = house.ask("GET", "/metrics"), house.ask("POST", "/predict", JSON), house.ask("GET", "/")
    admin, refused = house.ask("GET", "/admin/roles", bearer(ADMIN)), house.ask("GET", "/admin/roles")

    assert {a.headers["x-content-type-options"] for a in (read, posted, page, admin, refused)} == {"nosniff"}
    assert [a.headers.get("cache-control") for a in (read, posted, page, admin, refused)] == [
        None, "no-store", None, "no-store", "no-store",
    ]  # fmt: skip
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert "content-security-policy" not in read.headers
    assert refused.headers["content-length"] == str(len(refused.body))


def test_refusals_are_counted_by_known_endpoints_only() -> None:
    house = House(predict=PREDICT)

    house.ask("POST", "/predict", JSON)
    house.ask("POST", "/predict_batch", bearer(PREDICT), {"content-type": "text/html"})
    house.ask("GET", "/admin/roles")
    house.ask("POST", "/anything/a/caller/thinks/of", JSON)

    assert house.refused == [("predict", 401), ("predict_batch", 415), ("other", 403), ("other", 401)]


def test_a_web_socket_is_not_opened_and_startup_passes() -> None:
    house = House()
    said: list[Message] = []

    async def send(message: Message) -> None:
        said.append(message)

    async def receive() -> Message:
        return {}

    asyncio.run(house.guard({"type": "websocket", "path": "/predict", "headers": []}, receive, send))
    asyncio.run(house.guard({"type": "lifespan"}, receive, send))

    assert said == [{"type": "websocket.close", "code": 1008}]
    assert house.inner.paths == ["lifespan"]


@pytest.mark.parametrize("token", ["two words", "n\xe4me", "line\nbreak", "fine,not fine"])
def test_a_token_no_header_can_carry_is_refused_without_showing_it(token: str) -> None:
    with pytest.raises(NotReady, match="UNDERSTUDY_ADMIN_TOKEN holds a character") as caught:
        House(admin=token)

    assert token not in str(caught.value)


def test_no_token_is_ever_shown(caplog: pytest.LogCaptureFixture) -> None:
    house = House(predict=PREDICT, admin=ADMIN)

    with caplog.at_level(logging.DEBUG):
        told = house.ask("POST", "/predict", JSON, bearer("a-wrong-token"))

    shown = caplog.text + told.body.decode() + str(told.headers) + repr(house.guard)
    assert [word for word in (PREDICT, ADMIN, "a-wrong-token") if word in shown] == []


def test_settings_never_show_a_token() -> None:
    settings = Settings(predict_token=SecretStr(PREDICT), admin_token=SecretStr(ADMIN))

    with pytest.raises(ValidationError) as caught:
        Settings(predict_token=SecretStr(PREDICT), admin_token=SecretStr(ADMIN), deadline_ms=-1)

    shown = repr(settings) + str(settings.model_dump()) + settings.model_dump_json() + str(caught.value)
    assert [word for word in (PREDICT, ADMIN) if word in shown] == []


@pytest.fixture
def address() -> Iterator[tuple[str, int]]:
    """A real server with a guard, the body limit at 1000 bytes."""
    guard = House(predict=PREDICT).guard
    server = uvicorn.Server(uvicorn.Config(guard, log_level="critical", lifespan="off"))
    listener = socket.create_server(("127.0.0.1", 0))
    loop = asyncio.new_event_loop()
    thread = Thread(target=lambda: loop.run_until_complete(server.serve([listener])))
    thread.start()
    try:
        yield listener.getsockname()
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
        loop.close()


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Content-Type: application/json", b"401"),
        (f"Authorization: Bearer {PREDICT}\r\nContent-Type: text/csv", b"415"),
        (f"Authorization: Bearer {PREDICT}\r\nContent-Type: application/json", b"413"),
    ],
)
def test_a_caller_that_sends_all_before_it_reads_still_gets_its_answer(
    address: tuple[str, int], header: str, status: bytes
) -> None:
    size = 20_000_000

    with socket.create_connection(address, timeout=20) as line:
        line.sendall(f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n{header}\r\n\r\n".encode())
        line.sendall(b"x" * size)
        first = line.recv(4096)
        line.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        second = b"".join(iter(lambda: line.recv(4096), b""))

    assert first.startswith(b"HTTP/1.1 " + status)
    assert b"HTTP/1.1 200" in second


def test_a_refused_caller_that_never_ends_its_body_is_answered_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.guard._DRAIN_S", 0.05)
    house = House(predict=PREDICT)
    said: list[Message] = []

    async def send(message: Message) -> None:
        said.append(message)

    async def receive() -> Message:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": True}

    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": []}
    asyncio.run(asyncio.wait_for(house.guard(scope, receive, send), 10))

    assert said[0]["status"] == 401
