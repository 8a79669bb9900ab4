"""Waits until a running service plays the roles as they are: asks ``GET /admin/roles`` until every worker says so."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from service.progress import Say
from service.settings import Settings

MOST_S = 10.0
_POLL_S = 0.02
_CALL_S = 2.0
# Answers in a row, each over a connection of its own, where a service does not say which worker gives them.
_ROW = 40


@dataclass(frozen=True)
class Waited:
    """How long it took.

    Attributes:
        everybody: whether every worker answered with the wanted models in time.
        seconds: from the call until then, or until it was given up.
        workers: that said so.
    """

    everybody: bool
    seconds: float
    workers: int


def wait_for(url: str, where: Settings, wanted: Mapping[str, str], say: Say, most_s: float = MOST_S) -> Waited | None:
    """Ask until every worker of the service plays the wanted models; None without a service to ask.

    Args:
        url: address of the service; empty: wait for nobody.
        wanted: digests by role.
        most_s: time after which to give up, in seconds.
    """
    if not url:
        return None
    if not where.admin_token.get_secret_value():
        say(f"{url} cannot be asked: its admin routes need a token; set UNDERSTUDY_ADMIN_TOKEN for both")
        return Waited(False, 0.0, 0)
    token = where.admin_token.get_secret_value().partition(",")[0].strip()
    begun = time.monotonic()
    heard, problem = set[str](), "nobody answered"
    while (spent := time.monotonic() - begun) < most_s:
        answer, problem = _ask(url, token)
        behind = _behind(answer, wanted) if answer is not None else problem
        if answer is None or behind:
            # Whoever said yes before may have been another worker than it seemed: begin anew.
            heard, problem = set(), behind
        else:
            heard.add(str(answer.get("worker", len(heard))))
            several = "worker" in answer
            if len(heard) >= (int(answer.get("workers", where.workers)) if several else _ROW):
                seconds = round(time.monotonic() - begun, 3)
                say(f"every worker plays it after {seconds:.2f} s ({len(heard)} {'workers' if several else 'answers'})")
                return Waited(True, seconds, len(heard) if several else 0)
            problem = f"only {len(heard)} workers were heard of"
        time.sleep(_POLL_S)
    say(f"{url} does not play it everywhere after {spent:.1f} s (limit {most_s:g} s): {problem}; see GET /admin/roles")
    return Waited(False, round(spent, 3), len(heard))


def _ask(url: str, token: str) -> tuple[dict[str, Any] | None, str]:
    """Ask over a connection of its own, so that another worker may take it."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    line = kind(parts.hostname or "127.0.0.1", parts.port, timeout=_CALL_S)
    try:
        headers = {"Authorization": f"Bearer {token}", "Connection": "close"}
        line.request("GET", f"{parts.path.rstrip('/')}/admin/roles", headers=headers)
        answer = line.getresponse()
        body = answer.read()
        if answer.status != 200:
            return None, f"GET /admin/roles answers {answer.status}"
        return dict(json.loads(body)), ""
    except (OSError, http.client.HTTPException, ValueError) as error:
        return None, f"GET /admin/roles fails ({error!r})"
    finally:
        line.close()


def _behind(answer: Mapping[str, Any], wanted: Mapping[str, str]) -> str:
    """Say which role plays another model than wanted; empty when none does."""
    for role, digest in wanted.items():
        told = answer.get("roles", {}).get(role) or {}
        running = (told.get("running") or {}).get("digest")
        if running != digest or not told.get("connected", False):
            problem = told.get("problem") or "its runner has not changed yet"
            return f"{role} plays {str(running)[:12]}, not {digest[:12]} ({problem})"
    return ""
