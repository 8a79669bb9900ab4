"""Sends the past to the running service, in the order and at the moments in which it became known.

The replay moves in steps of business time. In each step it sets the clock, pushes every feature row that has
become known since the last step to the online store, sends every request that falls due, waits for the
answers, and delivers the labels that have become known. The clock stands still within a step, so what a
request could see is exact and can be recomputed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pandas as pd
from tqdm import tqdm

from feature_repo import features as definitions
from monitoring.feed import Feed
from service.clock import parse_instant, write_clock
from service.contract import Contract, duration
from service.definitions import contracts
from service.errors import NotReady, UnderstudyError
from service.settings import Settings, settings

LABEL_BATCH = 500


@dataclass(frozen=True)
class Plan:
    """What to replay.

    Attributes:
        start, end: requests that fall due in [start, end) are sent.
        until: labels known by then are delivered.
        step: business time per step.
        speed: business seconds per real second at most; 0 for as fast as answers come.
        concurrency: most requests under way at once.
    """

    url: str
    start: datetime
    end: datetime
    until: datetime
    step: timedelta
    speed: float
    concurrency: int


def load_rows(settings_: Settings, plan: Plan) -> pd.DataFrame:
    """Read the prepared rows that fall due in the plan's span, in order.

    Raises:
        NotReady: when they were never prepared, or none falls into the span.
    """
    path = settings_.state_dir / "rows.parquet"
    if not path.exists():
        msg = f"{path} does not exist; run `make train` first"
        raise NotReady(msg)
    rows = pd.read_parquet(path)
    rows = rows[(rows["event_timestamp"] >= plan.start) & (rows["event_timestamp"] < plan.end)]
    if rows.empty:
        msg = (
            f"{path} holds no request from {plan.start:%Y-%m-%d %H:%M} to {plan.end:%Y-%m-%d %H:%M} UTC; widen the span"
        )
        raise NotReady(msg)
    return rows.sort_values(["event_timestamp", "request_id"], ignore_index=True)


def steps(start: datetime, end: datetime, step: timedelta) -> Iterator[tuple[datetime, datetime]]:
    """Yield (previous, now) pairs that cover (start - step, end] without gap or overlap."""
    before = start - step
    while before < end:
        now = min(before + step, end)
        yield before, now
        before = now


def bodies(rows: pd.DataFrame, contract: Contract) -> list[bytes]:
    """Turn prepared rows into request bodies: join keys, request inputs and request id; missing is null."""
    names = [spec.name for spec in contract.request_fields]
    records = rows[[*names, "request_id"]].to_dict("records")
    return [orjson.dumps({str(k): _plain(v) for k, v in record.items()}) for record in records]


def _plain(value: Any) -> Any:
    if pd.isna(value):
        return None
    return value.isoformat() if isinstance(value, datetime) else value


class Sender:
    """Sends requests and labels, and counts what came back."""

    def __init__(self, session: aiohttp.ClientSession, plan: Plan) -> None:
        self._session = session
        self._plan = plan
        self._free = asyncio.Semaphore(plan.concurrency)
        self.answers: Counter[str] = Counter()
        self.failed: list[str] = []
        self.labels = 0

    async def predict(self, batch: Sequence[bytes]) -> None:
        """Send requests concurrently and wait for all answers."""
        await asyncio.gather(*(self._one(body) for body in batch))

    async def _one(self, body: bytes) -> None:
        async with self._free:
            status, answer = await self._post("/predict", body)
        if status == 200:
            self.answers["predictions"] += 1
            self.answers[answer["role"]] += 1
            self.answers[f"confidence {answer['confidence']}"] += 1
        else:
            self.failed.append(f"{status}: {answer}"[:300])

    async def label(self, batch: Sequence[Mapping[str, Any]]) -> None:
        """Deliver ground truths."""
        for i in range(0, len(batch), LABEL_BATCH):
            status, answer = await self._post("/labels", orjson.dumps(batch[i : i + LABEL_BATCH]))
            if status == 200:
                self.labels += int(answer["kept"])
            else:
                self.failed.append(f"labels {status}: {answer}"[:300])

    async def shadow_coverage(self) -> str:
        """Read from /metrics which share of the sampled requests the shadows have scored."""
        try:
            async with self._session.get(self._plan.url + "/metrics") as response:
                text = await response.text()
        except (aiohttp.ClientError, TimeoutError):
            return "unknown"
        sampled = _series(text, "understudy_shadow_sampled_total{")
        scored = _series(text, 'understudy_shadow_total{outcome="scored"')
        return f"{scored / sampled:.1%}" if sampled else "none"

    async def _post(self, path: str, body: bytes) -> tuple[int, Any]:
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session.post(self._plan.url + path, data=body, headers=headers) as response:
                return response.status, await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            return 0, repr(error)


def _series(text: str, prefix: str) -> float:
    """Add up a metric's series, without the primary's second answers, which are no shadow's."""
    lines = (line for line in text.splitlines() if line.startswith(prefix) and 'role="primary"' not in line)
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


async def replay(plan: Plan, settings_: Settings, clock_file: Path) -> dict[str, Any]:
    """Run a plan against the service and return counts."""
    contract = contracts(definitions)["primary"]
    rows = load_rows(settings_, plan)
    feed = Feed(settings_, contract)
    sent = bodies(rows, contract)
    due = rows["event_timestamp"]
    known = rows[rows["label"].notna() & (rows["label_known_at"] <= plan.until)].sort_values("label_known_at")
    truths = [
        {"request_id": r, "label": float(y), "known_at": k.isoformat()}
        for r, y, k in zip(known["request_id"], known["label"], known["label_known_at"], strict=True)
    ]
    write_clock(clock_file, plan.start)
    feed.begin(plan.start - plan.step)
    begun = time.perf_counter()
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        sender = Sender(session, plan)
        with tqdm(total=len(sent), unit="req", desc="replay", mininterval=1.0, file=sys.stderr) as bar:
            shown = begun
            for before, now in steps(plan.start, plan.until, plan.step):
                write_clock(clock_file, now)
                feed.push(now)
                first, last = _span(due, before, now)
                await sender.predict(sent[first:last])
                await sender.label(truths[slice(*_span(known["label_known_at"], before, now))])
                bar.update(last - first)
                if time.perf_counter() - shown > 2:
                    shown = time.perf_counter()
                    fallbacks = sender.answers["fallback"] + sender.answers["none"]
                    bar.set_postfix(at=f"{now:%b %d %H:%M}", fallbacks=fallbacks, shadow=await sender.shadow_coverage())
                _stop_when_hopeless(sender)
                await _pace(plan, begun, now)
    return {
        "predictions": sender.answers["predictions"],
        "failed": len(sender.failed),
        "first_failures": sender.failed[:3],
        "primary": sender.answers["primary"],
        "fallback": sender.answers["fallback"],
        "none": sender.answers["none"],
        "degraded": sender.answers["confidence degraded"],
        "labels": sender.labels,
        "seconds": round(time.perf_counter() - begun, 1),
    }


def _span(moments: pd.Series[Any], before: datetime, now: datetime) -> tuple[int, int]:
    first = int(moments.searchsorted(pd.Timestamp(before), side="right"))
    return first, int(moments.searchsorted(pd.Timestamp(now), side="right"))


def _stop_when_hopeless(sender: Sender) -> None:
    if len(sender.failed) >= 20 and sender.answers["predictions"] == 0:
        msg = (
            f"the first 20 requests all failed ({sender.failed[0]}); is the service up and on this replay's clock file?"
        )
        raise NotReady(msg)


async def _pace(plan: Plan, begun: float, now: datetime) -> None:
    if plan.speed > 0:
        planned = (now - plan.start).total_seconds() / plan.speed
        await asyncio.sleep(max(0.0, planned - (time.perf_counter() - begun)))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: see ``python -m monitoring.replay --help``. Last line of stdout: one JSON object."""
    parser = argparse.ArgumentParser(prog="make replay", description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--start", required=True, type=parse_instant, help="first moment replayed (ISO, UTC)")
    parser.add_argument("--end", required=True, type=parse_instant, help="end of requests (ISO, UTC)")
    parser.add_argument("--labels-for", default="36h", help="how long labels are still delivered after the end")
    parser.add_argument("--url", default="http://127.0.0.1:3000", help="the running service")
    parser.add_argument("--step", default="5m", help="business time per step")
    parser.add_argument("--speed", default=0.0, type=float, help="business seconds per second at most; 0: no limit")
    parser.add_argument("--concurrency", default=16, type=int, help="most requests under way at once")
    args = parser.parse_args(argv)
    try:
        until = args.end + duration(args.labels_for)
        plan = Plan(args.url, args.start, args.end, until, duration(args.step), args.speed, args.concurrency)
        result = asyncio.run(replay(plan, settings(), _clock_file(settings())))
    except UnderstudyError as error:
        print(f"replay: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result))
    return 1 if result["failed"] else 0


def _clock_file(settings_: Settings) -> Path:
    if settings_.clock == "wall" or "/" not in settings_.clock:
        msg = (
            f"UNDERSTUDY_CLOCK={settings_.clock} is not a clock file; start service and replay with "
            f"UNDERSTUDY_CLOCK={settings_.state_dir / 'clock'}"
        )
        raise NotReady(msg)
    return Path(settings_.clock)


if __name__ == "__main__":
    os.environ.setdefault("FEAST_USAGE", "False")
    sys.exit(main())
