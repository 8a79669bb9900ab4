"""Sends ground truth to a running service, in batches as large as it takes."""

from __future__ import annotations

import asyncio

import aiohttp
import orjson
import pandas as pd

from service.errors import StoreError
from service.progress import Say

_TRIES, _MOST_S = 5, 30.0
_PATIENCE = aiohttp.ClientTimeout(total=60)


def send(labels: pd.DataFrame, url: str, token: str, batch: int, say: Say) -> int:
    """Send labels to ``POST <url>/labels``; returns how many the service kept.

    Args:
        labels: ``request_id, label, known_at``.
        token: bearer token; empty for none.

    Raises:
        StoreError: when the service cannot be reached or refuses a batch; those before it are kept. Sending the file
            again does no harm.
    """
    return asyncio.run(_send(labels, url.rstrip("/") + "/labels", token, batch, say))


async def _send(labels: pd.DataFrame, url: str, token: str, batch: int, say: Say) -> int:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    kept = 0
    async with aiohttp.ClientSession(headers=headers, timeout=_PATIENCE) as session:
        for start in range(0, len(labels), batch):
            part = labels.iloc[start : start + batch]
            body = orjson.dumps(
                [
                    {"request_id": name, "label": int(label), "known_at": known_at.isoformat()}
                    for name, label, known_at in zip(part["request_id"], part["label"], part["known_at"], strict=True)
                ]
            )
            kept += await _post(session, url, body)
            say(f"sent {min(start + batch, len(labels)):,} of {len(labels):,}")
    return kept


async def _post(session: aiohttp.ClientSession, url: str, body: bytes) -> int:
    for attempt in range(1, _TRIES + 1):
        wait = 0.2 * 2**attempt
        try:
            async with session.post(url, data=body) as response:
                text = await response.text()
                if response.status == 200:
                    return int(orjson.loads(text)["kept"])
                if response.status not in (429, 503) or attempt == _TRIES:
                    msg = f"{url} answered {response.status}: {text[:300]}"
                    raise StoreError(msg)
                asked = response.headers.get("Retry-After", "")
                wait = max(wait, min(float(asked), _MOST_S)) if asked.isdigit() else wait
        except (aiohttp.ClientError, TimeoutError) as error:
            if attempt == _TRIES:
                msg = f"{url} cannot be reached ({str(error) or type(error).__name__}); start it with `make serve`"
                raise StoreError(msg) from None
        await asyncio.sleep(wait)
    return 0
