"""Time per row of the service's feature lookup against plain ``get_online_features``, on SQLite and Redis.

Both answer the same requests, some at once, with the same feature service; ours checks every value against the
contract as well. Feast runs on its own stores, filled with the same rows, in one thread or in as many as there are
requests at once, whichever is faster. Last line of stdout: one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from feast import FeatureStore
from feast.repo_config import RepoConfig

from deploy.demo import free_port
from feature_repo import features as definitions
from service.clock import parse_instant
from service.contract import Contract
from service.definitions import contracts
from service.feature_store import repo_config
from service.features import OnlineLookup
from service.settings import Settings, settings
from service.vector import build_vector
from training.prepare import prepare
from training.store import apply, materialize, newest_rows, open_store

AT = parse_instant("2013-10-01")
AT_ONCE = (1, 16, 128)
REQUESTS = 1024
ROUNDS = 3
LEAST_SPEEDUP = 4.0

Row = dict[str, Any]


def requests(folder: Path, contract: Contract) -> list[Row]:
    """Real requests of the day after ``AT``, every value as the door hands it on."""
    rows = pd.read_parquet(folder / "rows.parquet")
    names = [spec.name for spec in contract.request_fields]
    # A null join key is an error to plain Feast (0.67).
    keyed = rows[[spec.name for spec in contract.keys]].notna().all(axis=1)
    some = rows[keyed & (rows["event_timestamp"] >= pd.Timestamp(AT))].head(REQUESTS)[names]
    plain = some.astype(object).mask(some.isna(), None).to_dict("records")
    return [{str(k): v.to_pydatetime() if isinstance(v, pd.Timestamp) else v for k, v in row.items()} for row in plain]


async def at_once(answer: Callable[[Row], Awaitable[Any]], rows: Sequence[Row], count: int) -> float:
    """Seconds per row when so many callers ask one after the other."""
    waiting = iter(rows)

    async def caller() -> None:
        for row in waiting:
            await answer(row)

    begun = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(count)))
    return (time.perf_counter() - begun) / len(rows)


def ours(config: Settings, contract: Contract) -> Callable[[Sequence[Row], int], float]:
    """The lookup of a request: batched read, vector, contract."""
    lookup = OnlineLookup(repo_config(config, reads_only=True), contract, vars(definitions))

    async def answer(row: Row) -> None:
        vector = build_vector(contract, row, await lookup.fetch(row), AT)
        assert vector.values

    return lambda rows, count: asyncio.run(at_once(answer, rows, count))


def feasts(store: FeatureStore) -> Callable[[Sequence[Row], int], float]:
    """Plain ``get_online_features``, request by request."""
    service = store.get_feature_service("primary")

    def answer(row: Row) -> None:
        assert store.get_online_features(service, [row]).to_dict()

    def in_one_thread(rows: Sequence[Row]) -> float:
        begun = time.perf_counter()
        for row in rows:
            answer(row)
        return (time.perf_counter() - begun) / len(rows)

    def in_many(rows: Sequence[Row], count: int) -> float:
        with ThreadPoolExecutor(count) as threads:
            begun = time.perf_counter()
            list(threads.map(answer, rows))
            return (time.perf_counter() - begun) / len(rows)

    return lambda rows, count: min(in_one_thread(rows), in_many(rows, count)) if count > 1 else in_one_thread(rows)


def plain_store(config: Settings, online: Mapping[str, Any], contract: Contract) -> FeatureStore:
    """Feast with its own online store, filled with what ours holds."""
    plain = repo_config(config).model_dump(by_alias=True, exclude_unset=True)
    plain |= {"project": "plain", "online_store": dict(online), "offline_store": {"type": "duckdb"}}
    plain["registry"] = {"registry_type": "file", "path": str(config.state_dir / "plain.db"), "cache_ttl_seconds": 0}
    store = FeatureStore(config=RepoConfig(**plain))
    apply(store, config)
    for view in contract.views:
        store.write_to_online_store(view.name, newest_rows(store.get_feature_view(view.name), AT))
    return store


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """A Redis of this run's own, in memory only."""
    program = shutil.which("redis-server")
    if program is None:
        sys.exit("redis-server is not installed; install the distribution's package `redis-server`")
    port = free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) as process:
        time.sleep(0.5)
        try:
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


def measure(name: str, config: Settings, online: Mapping[str, Any]) -> dict[str, float]:
    """Milliseconds per row of both, and how many times faster ours is, per number of requests at once."""
    contract = contracts(definitions)["primary"]
    store = open_store(config)
    apply(store, config)
    materialize(store, contract, AT)
    rows = requests(config.state_dir, contract)
    mine, theirs = ours(config, contract), feasts(plain_store(config, online, contract))
    result: dict[str, float] = {}
    for count in AT_ONCE:
        pairs = [(mine(rows, count), theirs(rows, count)) for _ in range(ROUNDS)]
        a, b = (statistics.median(side) * 1000 for side in zip(*pairs, strict=True))
        ratio = statistics.median(y / x for x, y in pairs)
        print(
            f"{name:7} {count:4} at once   ours {a:6.3f} ms/row   plain {b:6.3f} ms/row   {ratio:5.1f} times",
            flush=True,
        )
        result |= {f"{name}_ms_{count}": round(a, 4), f"{name}_plain_ms_{count}": round(b, 4)}
        result[f"{name}_speedup_{count}"] = round(ratio, 2)
    return result


def main() -> int:
    """Command line; exit code 1 when ours is not four times faster at 16."""
    warnings.simplefilter("ignore")
    prepare(settings())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("features", "rows.parquet"):
            (folder / part).symlink_to((settings().state_dir / part).resolve())
        result = measure(
            "sqlite", Settings(state_dir=folder), {"type": "sqlite", "path": str(folder / "plain-online.db")}
        )
        with redis_server(folder) as address:
            config = Settings(state_dir=folder, feature_store="redis", redis=address)
            result |= measure("redis", config, {"type": "redis", "connection_string": address})
    faults = [f"{n}_speedup_16={result[f'{n}_speedup_16']} is below {LEAST_SPEEDUP:g}" for n in ("sqlite", "redis")
              if result[f"{n}_speedup_16"] < LEAST_SPEEDUP]  # fmt: skip
    print("\n".join(faults) or "every limit is kept", file=sys.stderr)
    print(json.dumps(result))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
