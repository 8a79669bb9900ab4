"""Our own parsing behind BentoML's request and answer types.

BentoML documents an endpoint's input from its pydantic type, and parses with it too; its errors leave out the
offending value, and it reads bodies of any size (bentoml 1.4.39). These types keep the documentation and hand
the endpoint the bounded raw body instead; endpoints answer with a ready response.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import orjson
from _bentoml_sdk.io_models import IODescriptor, ensure_io_descriptor
from starlette.requests import Request
from starlette.responses import Response

from service import metrics
from service.errors import BadRequest, TooLarge, problem

Body = bytes | BadRequest

# Many clients send the whole body before they read the answer, and see a reset connection instead of the 413
# when nobody takes it. This much is taken and thrown away for them.
_DRAINED = 64 * 2**20


def inbound(endpoint: str, body_limit: int) -> type[IODescriptor]:
    """Make an endpoint's input type: documented as in ``wiring.documented``, delivering a :data:`Body`.

    The documentation is made when it is asked for, because making it imports Feast.
    """

    @cache
    def real() -> Any:
        from service.wiring import documented

        described = ensure_io_descriptor(documented(endpoint))
        described.__root_input__ = True
        return described

    class Inbound(IODescriptor):  # type: ignore[misc]  # bentoml carries no types
        __root_input__ = True

        @classmethod
        async def from_http_request(cls, request: Request, _: Any) -> Body:
            try:
                return await read_body(request, body_limit)
            except BadRequest as error:
                return error

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
    return {"input_spec": inbound(endpoint, body_limit), "output_spec": ensure_io_descriptor(answer)}


async def read_body(request: Request, limit: int) -> bytes:
    """Read a JSON body, keeping no more than the limit.

    Raises:
        BadRequest: 413 when it is too large, 415 when it is not JSON by its content type.
    """
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind not in ("application/json", ""):
        raise BadRequest([problem("content-type", kind, "is not accepted; send application/json")], 415)
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= limit:
            chunks.append(chunk)
        elif size > limit + _DRAINED:
            break
    if size > limit:
        raise TooLarge(limit)
    return b"".join(chunks)


def opened(body: Body) -> bytes:
    """Return the body's bytes.

    Raises:
        BadRequest: when it was refused on arrival.
    """
    if isinstance(body, BadRequest):
        raise body
    return body


def reply(endpoint: str, payload: Any) -> Response:
    """Answer 200 with a JSON payload."""
    return _respond(endpoint, 200, payload)


def refuse(endpoint: str, error: BadRequest) -> Response:
    """Answer with the error's status, one sentence, and the problems field by field."""
    return _respond(endpoint, error.status, refusal(error))


def refusal(error: BadRequest) -> dict[str, Any]:
    """Return the JSON form of a refused request or row."""
    return {"error": str(error), "problems": error.problems}


def _respond(endpoint: str, status: int, payload: Any) -> Response:
    metrics.REQUESTS.labels(endpoint, str(status)).inc()
    return Response(orjson.dumps(payload, option=orjson.OPT_UTC_Z), status, media_type="application/json")
