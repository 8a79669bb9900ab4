"""Our own parsing behind BentoML's request and answer types.

BentoML documents an endpoint's input from its pydantic type, and parses with it too; its errors leave out the
offending value, and it reads bodies of any size (bentoml 1.4.39). These types keep the documentation and hand
the endpoint the bounded raw body instead; endpoints answer with a ready response.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import orjson
from _bentoml_sdk.io_models import IODescriptor, ensure_io_descriptor
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from service import metrics
from service.errors import BadRequest, TooLarge, problem


@dataclass(frozen=True)
class Taken:
    """A request's body as it arrived, or why it was refused, and its sender's trace context."""

    body: bytes
    refused: BadRequest | None = None
    traceparent: str | None = None

    def opened(self) -> bytes:
        """Return the body's bytes.

        Raises:
            BadRequest: when it was refused on arrival.
        """
        if self.refused is not None:
            raise self.refused
        return self.body


Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
# Many clients send the whole body before they read the answer, and see a reset connection instead of the 413
# when nobody takes it. This much is taken and thrown away for them.
_DRAINED = 64 * 2**20


def inbound(endpoint: str, body_limit: int) -> type[IODescriptor]:
    """Make an endpoint's input type: documented as in ``wiring.documented``, delivering a :class:`Taken`.

    The documentation is made when it is asked for, because making it imports Feast.
    """

    @cache
    def real() -> Any:
        from service.wiring import documented

        shape = described(documented(endpoint))
        shape.__root_input__ = True
        return shape

    class Inbound(IODescriptor):  # type: ignore[misc]  # bentoml carries no types
        __root_input__ = True

        @classmethod
        async def from_http_request(cls, request: Request, _: Any) -> Taken:
            try:
                _speak_json(request.headers.get("content-type", ""))
            except BadRequest as error:
                return Taken(b"", error)
            return await take(request.receive, body_limit, request.headers.get("traceparent"))

        @classmethod
        def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
            return dict(real().model_json_schema(*args, **kwargs))

        @classmethod
        def openapi_components(cls, name: str) -> Any:
            return real().openapi_components(name)

        @classmethod
        def mime_type(cls) -> str:
            return "application/json"

    return Inbound


def spoken(endpoint: str, answer: Any, body_limit: int) -> dict[str, Any]:
    """Return what ``bentoml.api`` needs for an endpoint: its input type, and the documentation of its answer."""
    return {"input_spec": inbound(endpoint, body_limit), "output_spec": described(answer)}


def described(kind: Any) -> type[IODescriptor]:
    """Make BentoML's descriptor of a type, with a schema that BentoML does not cut short."""
    plain = ensure_io_descriptor(kind)

    class Described(plain):  # type: ignore[misc,valid-type]  # bentoml carries no types
        @classmethod
        def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
            return dict(openapi30(plain.model_json_schema(*args, **kwargs)))

    Described.__name__ = plain.__name__
    return Described


def openapi30(schema: Any) -> Any:
    """Say in the words of OpenAPI 3.0 what pydantic says in those of JSON Schema.

    BentoML keeps only the first of several types (``_flatten_field``, 1.4.39), so that a nullable value is documented
    as one that is never null; ``nullable`` and ``oneOf`` it leaves alone.
    """
    if isinstance(schema, list):
        return [openapi30(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {key: openapi30(value) for key, value in schema.items() if key != "anyOf"}
    if "anyOf" not in schema:
        return plain
    kinds = [openapi30(kind) for kind in schema["anyOf"] if kind != {"type": "null"}]
    nullable = {"nullable": True} if len(kinds) < len(schema["anyOf"]) else {}
    return {**(kinds[0] if len(kinds) == 1 else {"oneOf": kinds}), **plain, **nullable}


def _speak_json(content_type: str) -> None:
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in ("application/json", ""):
        raise BadRequest([problem("content-type", kind, "is not accepted; send application/json")], 415)


async def take(receive: Receive, limit: int, traceparent: str | bytes | None = None) -> Taken:
    """Take in a request's body; one that is too large is a refusal to be told.

    Raises:
        ClientDisconnect: when the sender went away before its end.
    """
    parent = traceparent.decode("latin-1") if isinstance(traceparent, bytes) else traceparent
    try:
        return Taken(await _body(receive, limit), traceparent=parent)
    except BadRequest as error:
        # Its traceback would hold what has come of the body, in a circle that only the collector opens.
        return Taken(b"", error.with_traceback(None))


async def _body(receive: Receive, limit: int) -> bytes:
    chunks, size, more = [], 0, True
    while more and size <= limit + _DRAINED:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientDisconnect
        more = message.get("more_body", False)
        chunk = message.get("body", b"")
        size += len(chunk)
        if size <= limit:
            chunks.append(chunk)
    if size > limit:
        raise TooLarge(limit)
    return b"".join(chunks)


def reply(endpoint: str, payload: Any, stages_ms: Mapping[str, float] | None = None) -> Response:
    """Answer 200 with a JSON payload, and tell how long each stage took."""
    headers = {"Server-Timing": server_timing(stages_ms)} if stages_ms else None
    return _respond(endpoint, 200, payload, headers)


def refuse(endpoint: str, error: BadRequest) -> Response:
    """Answer with the error's status, one sentence, and the problems field by field."""
    return _respond(endpoint, error.status, refusal(error), error.headers)


def failed(endpoint: str) -> Response:
    """Answer 500: what went wrong is in the log, and no caller's affair."""
    return _respond(endpoint, 500, {"error": "the service is at fault; its log says how", "problems": []}, None)


def refusal(error: BadRequest) -> dict[str, Any]:
    """Return the JSON form of a refused request or row."""
    return {"error": str(error), "problems": error.problems}


def server_timing(stages_ms: Mapping[str, float]) -> str:
    """Write stages as a ``Server-Timing`` header (W3C): name and milliseconds each."""
    return ", ".join(f"{name};dur={ms}" for name, ms in stages_ms.items())


def _respond(endpoint: str, status: int, payload: Any, headers: Mapping[str, str] | None) -> Response:
    metrics.count_request(endpoint, status)
    body = orjson.dumps(payload, option=orjson.OPT_UTC_Z)
    return Response(body, status, headers, media_type="application/json")
