"""Our own parsing behind BentoML's request and answer types.

BentoML documents an endpoint's input from its pydantic type, and parses with it too; its errors leave out the
offending value, and it reads bodies of any size (bentoml 1.4.39). These types keep the documentation and hand
the endpoint the bounded raw body instead; endpoints answer with a ready response.
"""

from __future__ import annotations

from typing import Any

import orjson
from _bentoml_sdk.io_models import IODescriptor, ensure_io_descriptor
from starlette.requests import Request
from starlette.responses import Response

from service import metrics
from service.door import Door
from service.errors import BadRequest

Body = bytes | BadRequest


def inbound(annotation: Any, door: Door) -> type[IODescriptor]:
    """Make an input type that documents ``annotation`` and delivers a :data:`Body`."""
    documented = ensure_io_descriptor(annotation)

    async def from_http_request(_: Any, request: Request, __: Any) -> Body:
        try:
            return await door.body(request)
        except BadRequest as error:
            return error

    members = {"from_http_request": classmethod(from_http_request), "__root_input__": True, "__module__": __name__}
    return type(documented.__name__, (documented,), members)


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
