"""Routes for whoever runs the service, mounted below ``/admin``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service.breaker import Breaker
from service.control import write_mode
from service.errors import BadRequest, NotReady, problem
from service.idle import idle_seats
from service.roles import read_roles
from service.wire import refusal

if TYPE_CHECKING:
    from service.wiring import Gear


def admin_app(gear: Callable[[], Gear]) -> Starlette:
    """Make the routes: ``GET /roles``, ``GET /breakers``, ``POST /breakers``.

    Args:
        gear: gives the running gateway's parts.
    """

    async def roles(_: Request) -> Response:
        return JSONResponse(describe_roles(gear()))

    async def breakers(_: Request) -> Response:
        return JSONResponse(_breakers(gear()))

    async def operate(request: Request) -> Response:
        try:
            wanted = _object(await request.body())
            control = gear().control
            role, mode = str(wanted.get("role")), str(wanted.get("mode"))
            # Another worker may hold the file's lock: nobody's answer waits for that.
            await asyncio.to_thread(write_mode, control.path, role, mode, control.modes)
        except BadRequest as error:
            return JSONResponse(refusal(error), error.status)
        gear().control.look()
        return JSONResponse(_breakers(gear()))

    return Starlette(
        routes=[
            Route("/roles", roles, methods=["GET"]),
            Route("/breakers", breakers, methods=["GET"]),
            Route("/breakers", operate, methods=["POST"]),
        ]
    )


def describe_roles(gear: Gear) -> dict[str, Any]:
    """Say per role which package is seated and which model this worker is answered by; ``revision`` of the roles."""
    try:
        seated = read_roles(gear.settings.models_dir)
    except NotReady as error:
        return {"revision": None, "error": str(error), "roles": {}}
    roles: dict[str, Any] = {}
    for watch in gear.watches:
        seat, hello = seated.seats.get(watch.role), watch.hello or {}
        running = {key: hello.get(key) for key in ("version", "digest")}
        wanted = {"version": seat.version, "digest": seat.digest} if seat else {"version": None, "digest": None}
        roles[watch.role] = {
            "seated": asdict(seat) if seat else None,
            "running": running,
            "connected": watch.connected,
            "current": running == wanted,
            "problem": hello.get("problem", "the runner has not said who it is yet"),
        }
    for role, why in idle_seats(seated.seats, roles).items():
        nobody = {"version": None, "digest": None}
        roles[role] = {
            "seated": asdict(seated.seats[role]),
            "running": nobody,
            "connected": False,
            "current": False,
            "problem": why,
        }
    return {"revision": seated.revision, "worker": os.getpid(), "workers": gear.settings.workers, "roles": roles}


def _breakers(gear: Gear) -> dict[str, Any]:
    return {actor.role: _breaker(actor.breaker) for actor in gear.cast}


def _breaker(breaker: Breaker) -> dict[str, Any]:
    calls, failed, slow = breaker.counts
    return {"state": breaker.state, "calls": calls, "failed": failed, "slow": slow}


def _object(body: bytes) -> dict[str, Any]:
    try:
        plain = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest([problem("body", "", f"is not JSON: {error}")], 400) from None
    if not isinstance(plain, dict):
        raise BadRequest([problem("body", "", 'is no object; send {"role": ..., "mode": ...}')])
    return plain
