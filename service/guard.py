"""What stands before every route: bearer tokens, media type, announced size, and headers of the answer.

A plain ASGI middleware. Whatever it does not know it treats as it treats predictions, so a route added later, or a
path written in an unusual way, is not open by accident.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from typing import Any

import orjson
from pydantic import SecretStr

from service.errors import BadRequest, NotReady, TooLarge, problem
from service.settings import PREFIX

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Header = tuple[bytes, bytes]

# Reading is open: probes, metrics, the API's description. Any other method needs a token, once one is set.
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_COUNTED = {"/predict": "predict", "/predict_batch": "predict_batch", "/labels": "labels"}
# Many clients send the whole body before they read the answer, and see a reset connection instead of it when
# nobody takes the body. This much is taken and thrown away for them, for so long.
_DRAINED = 64 * 2**20
_DRAIN_S = 10.0
_SNIFF: Header = (b"x-content-type-options", b"nosniff")
_STORE: Header = (b"cache-control", b"no-store")
# BentoML's page (1.4.39) needs its own scripts and inline styles; the tracker it carries as well is kept from running.
_PAGE: list[Header] = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"referrer-policy", b"no-referrer"),
]


class Refused(BadRequest):
    """Not let in: 401 without a valid token, 403 where no token could be valid."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__([problem("authorization", "", message)], status)
        if status == 401:
            self.headers = {"WWW-Authenticate": "Bearer"}


class Guard:
    """Lets in who may come in.

    Args:
        predict_token: for every method that is not reading; empty: everybody may. Several, separated by commas, are
            valid at once, so that one can be replaced.
        admin_token: for everything below ``/admin``; empty: nobody may.
        body_limit: announced bytes of a body above which it is not read.
        refused: told endpoint and status of each refusal.

    Raises:
        NotReady: when a token could never be sent in a header.
    """

    def __init__(
        self,
        app: App,
        *,
        predict_token: SecretStr,
        admin_token: SecretStr,
        body_limit: int,
        refused: Callable[[str, int], object] = lambda endpoint, status: None,
    ) -> None:
        self._app = app
        self._predict = tokens(predict_token, "PREDICT_TOKEN")
        self._admin = tokens(admin_token, "ADMIN_TOKEN")
        self._limit = body_limit
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event of the server."""
        kind = scope["type"]
        if kind == "lifespan":
            await self._app(scope, receive, send)
            return
        if kind != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        try:
            self._check(scope)
        except BadRequest as error:
            self._refused(_COUNTED.get(scope["path"], "other"), error.status)
            if not any(name == b"expect" for name, _ in scope["headers"]):
                with suppress(TimeoutError):
                    async with asyncio.timeout(_DRAIN_S):
                        await _drain(receive, self._limit + _DRAINED)
            await _answer(error, send)
            return
        extra = [_SNIFF] if scope["method"] in _READING and "/admin" not in scope["path"] else [_SNIFF, _STORE]
        if scope["path"] == "/":
            extra = [*extra, *_PAGE]

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *extra]
            await send(message)

        await self._app(scope, receive, dressed)

    def _check(self, scope: Scope) -> None:
        credentials, kinds, length, chunked = b"", [], b"", False
        for name, value in scope["headers"]:
            if name == b"content-type":
                kinds.append(value)
            elif name == b"content-length":
                length = value
            elif name == b"authorization":
                credentials = value
            elif name == b"transfer-encoding":
                chunked = True
        if "/admin" in scope["path"]:
            if not self._admin:
                raise Refused(403, f"cannot be valid: the admin routes are off; set {PREFIX}ADMIN_TOKEN to use them")
            _admit(credentials, self._admin)
            if chunked:  # predictions and labels count what they read; these routes rely on what is announced
                raise BadRequest([problem("content-length", "", "is missing; say how long the body is")], 411)
        elif scope["method"] in _READING:
            return
        elif self._predict:
            _admit(credentials, self._predict)
        # Each of them: frameworks differ in which of several they believe.
        for kind in kinds:
            _speak_json(kind)
        if length.isdigit() and (len(length) > 18 or int(length) > self._limit):
            raise TooLarge(self._limit)


def tokens(secret: SecretStr, name: str) -> tuple[bytes, ...]:
    """Split a setting into its tokens.

    Raises:
        NotReady: when one could never be sent in a header; the message does not show it.
    """
    found = [part.strip() for part in secret.get_secret_value().split(",")]
    if any(not 0x21 <= ord(letter) <= 0x7E for part in found for letter in part):
        msg = f"{PREFIX}{name} holds a character no token can have; use visible ASCII, as `openssl rand -hex 32` gives"
        raise NotReady(msg)
    return tuple(part.encode() for part in found if part)


def _admit(credentials: bytes, valid: Iterable[bytes]) -> None:
    scheme, _, token = credentials.partition(b" ")
    given = token.strip() if scheme.lower() == b"bearer" else b""
    # All of them are compared, each in constant time, so that the time taken tells nothing.
    if not sum([hmac.compare_digest(given, one) for one in valid]):
        raise Refused(401, "is missing or not valid; send Authorization: Bearer and a token")


def _speak_json(kind: bytes) -> None:
    if kind == b"application/json":
        return
    media = kind.partition(b";")[0].strip().lower().decode("latin-1")
    if media not in ("application/json", ""):
        raise BadRequest([problem("content-type", media, "is not accepted; send application/json")], 415)


async def _drain(receive: Receive, most: int) -> None:
    taken = 0
    while taken <= most:
        message = await receive()
        taken += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body", False):
            return


async def _answer(error: BadRequest, send: Send) -> None:
    body = orjson.dumps({"error": str(error), "problems": error.problems})
    headers: list[Header] = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": [*headers, _SNIFF, _STORE]})
    await send({"type": "http.response.body", "body": body})
