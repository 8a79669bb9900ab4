"""The short way to an answer, past BentoML's own dispatch.

On each request BentoML (1.4.39) makes a context, binds the endpoint's method, inspects its signature twice and wraps
the answer: a third of what a gateway did for a prediction, and on a busy event loop every answer waits for all of it.
This middleware stands behind the guard and takes the endpoints' usual requests to the desk itself. What is unusual
goes BentoML's way, to the same desk: a browser's requests, which its CORS middleware may have to see, and every path
or method that is not exactly an endpoint's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect
from starlette.responses import Response

from service.guard import App, Receive, Scope, Send
from service.wire import Taken, failed, take

if TYPE_CHECKING:
    # It imports Feast, and every runner imports this module.
    from service.desk import Desk

logger = logging.getLogger("understudy")

_PATHS = frozenset({"/predict", "/predict_batch", "/labels"})


class Lane:
    """Answers POST requests to the endpoints.

    Args:
        desk: who answers; asked for with each request, because a service is made before it has one.
        body_limit: most bytes of a body.
    """

    def __init__(self, app: App, *, desk: Callable[[], Desk], body_limit: int) -> None:
        self._app = app
        self._desk = desk
        self._limit = body_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event of the server."""
        short = scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in _PATHS
        headers = dict(scope["headers"]) if short else {}
        if not short or b"origin" in headers:
            await self._app(scope, receive, send)
            return
        try:
            taken = await take(receive, self._limit, headers.get(b"traceparent"))
        except ClientDisconnect:
            # Nobody is there to be answered.
            return
        try:
            response = await self._asked(scope["path"], taken)
        except Exception:  # ours, whatever it is
            logger.exception("%s could not be answered", scope["path"])
            response = failed(scope["path"].removeprefix("/"))
        await response(scope, receive, send)

    async def _asked(self, path: str, taken: Taken) -> Response:
        desk = self._desk()
        if path == "/predict":
            return await desk.predict(taken)
        return await desk.predict_batch(taken) if path == "/predict_batch" else desk.label(taken)
