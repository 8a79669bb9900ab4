"""The point-in-time join against a hand-written query and Feast's own DuckDB store, over every row and view.

Every measurement is a process of its own, so that its peak memory is its own. Last line of stdout: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd

from service.settings import Settings

RUNS = 3
TILES = 10
FEAST_BUDGET_S = 60.0
FEAST_BUDGET_MB = 6000.0
FEAST_START = 2_500
LIMITS = {
    "ours_s": 15.0,
    "slowdown_vs_asof": 2.0,
    "peak_mb": 1500.0,
    "growth_10x": 12.0,
    "peak_10x_mb": 4000.0,
}
# Feast's store expands every feature row that is still within its TTL. Without TTLs that is the whole past; with
# those of this bundle (2 h to 60 d) it is little, and Feast has far less to do.
LEAST_SPEEDUP = {"speedup_vs_feast_duckdb": 15.0, "speedup_without_ttl": 100.0}

# What somebody would write by hand for exactly this problem: all views and the request-time features.
BY_HAND = """
SELECT e.*,
  hour(local) AS dep_hour, minute(local) AS dep_minute, isodow(local) - 1 AS dep_weekday,
  distance::DOUBLE AS trip_distance, hour_flights AS hour_load,
  w.* EXCLUDE (origin, event_timestamp), t.* EXCLUDE (origin, event_timestamp),
  c.* EXCLUDE (carrier, event_timestamp), r.* EXCLUDE (route, event_timestamp),
  p.plane_last_arr_delay, p.plane_last_arrival,
  (epoch_us(scheduled_departure) - epoch_us(p.plane_last_arrival)) / 3.6e9 AS plane_idle_h
FROM (SELECT *, timezone('America/New_York', scheduled_departure) AS local FROM entities) e
ASOF LEFT JOIN '{features}/origin_weather.parquet' w
  ON e.origin = w.origin AND e.event_timestamp >= w.event_timestamp
ASOF LEFT JOIN '{features}/origin_traffic.parquet' t
  ON e.origin = t.origin AND e.event_timestamp >= t.event_timestamp
ASOF LEFT JOIN '{features}/carrier_record.parquet' c
  ON e.carrier = c.carrier AND e.event_timestamp >= c.event_timestamp
ASOF LEFT JOIN '{features}/route_record.parquet' r
  ON e.route = r.route AND e.event_timestamp >= r.event_timestamp
ASOF LEFT JOIN '{features}/plane_record.parquet' p
  ON e.tailnum = p.tailnum AND e.event_timestamp >= p.event_timestamp
"""


def peak_mb() -> float:
    """Largest resident memory of this process so far, in MB (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds a call took, and what it returned."""
    begun = time.perf_counter()
    result = work()
    return time.perf_counter() - begun, result


def entity_columns() -> list[str]:
    """The columns of the entity rows."""
    from feature_repo import features as definitions
    from service.definitions import contracts

    return ["event_timestamp", *(f.name for f in contracts(definitions)["primary"].request_fields)]


def ours(state: Path) -> Callable[[Any], Any]:
    """The ordinary way: the feature service through Feast's ``get_historical_features``."""
    from training.store import apply, open_store

    settings = Settings(state_dir=state)
    store = open_store(settings)
    if is_without_ttl(state):
        forget_ttl()
    apply(store, settings)
    service = store.get_feature_service("primary")
    return lambda entities: store.get_historical_features(entities, service)


def measure_pair(state: Path) -> dict[str, Any]:
    """Our store and the hand-written query by turns, frame in, frame out."""
    entities = pd.read_parquet(state / "rows.parquet", columns=entity_columns())
    job = ours(state)

    def by_hand() -> pd.DataFrame:
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.register("entities", entities)
            joined: pd.DataFrame = connection.sql(BY_HAND.format(features=state / "features")).df()
            return joined

    times: dict[str, list[float]] = {"ours": [], "asof": []}
    rows_out = 0
    for _ in range(RUNS):
        seconds, joined = timed(lambda: job(entities).to_df())
        times["ours"].append(seconds)
        rows_out = len(joined)
        seconds, joined = timed(by_hand)
        times["asof"].append(seconds)
    return {"rows": len(entities), "rows_out": rows_out} | {f"{k}_s": statistics.median(v) for k, v in times.items()}


def measure_memory(state: Path) -> dict[str, Any]:
    """One join in a fresh process, frame in, frame out."""
    entities = pd.read_parquet(state / "rows.parquet", columns=entity_columns())
    seconds, _ = timed(lambda: ours(state)(entities).to_df())
    return {"seconds": seconds, "peak_mb": peak_mb()}


def measure_streamed(state: Path) -> dict[str, Any]:
    """One join from a parquet file to a parquet file; the smaller of two times, the larger peak."""
    job = ours(state)
    columns = ", ".join(entity_columns())
    source = f"SELECT {columns} FROM read_parquet('{state / 'rows.parquet'}')"
    best = min(timed(lambda: job(source).to_parquet(state / "joined.parquet"))[0] for _ in range(2))
    with duckdb.connect() as connection:
        ((rows,),) = connection.sql(f"SELECT count(*) FROM '{state / 'joined.parquet'}'").fetchall()
    return {"seconds": best, "peak_mb": peak_mb(), "rows_out": rows}


def measure_feast(state: Path, rows: int) -> dict[str, Any]:
    """Feast's own DuckDB store on so many rows taken evenly from all, the same feature service."""
    from feast import FeatureStore
    from feast.repo_config import RepoConfig

    from service.feature_store import repo_config
    from training.store import apply

    settings = Settings(state_dir=state)
    plain = repo_config(settings, offline=True).model_dump(by_alias=True, exclude_unset=True)
    store = FeatureStore(config=RepoConfig(**{**plain, "offline_store": {"type": "duckdb"}}))
    if is_without_ttl(state):
        forget_ttl()
    apply(store, settings)
    entities = pd.read_parquet(state / "rows.parquet", columns=entity_columns())
    part = entities.iloc[:: max(len(entities) // rows, 1)].head(rows).copy()
    service = store.get_feature_service("primary")
    seconds, joined = timed(lambda: store.get_historical_features(part, service).to_df())
    return {"rows": len(part), "rows_out": len(joined), "seconds": seconds, "peak_mb": peak_mb()}


def feast_at_full_size(state: Path, rows: int) -> tuple[float, bool]:
    """Seconds of Feast's DuckDB store over all rows, and whether they are extrapolated.

    Sizes double while the next is expected to stay inside the budgets of time and memory; beyond, time is taken to
    grow no faster than the rows do.
    """
    size = min(FEAST_START, rows)
    while True:
        found = in_process("feast", state, size)
        print(
            f"  feast's duckdb store{' without TTL' if is_without_ttl(state) else ''}: {found['rows']:,} rows in "
            f"{found['seconds']:.1f} s, peak {found['peak_mb']:,.0f} MB", flush=True,
        )  # fmt: skip
        if size == rows:
            return found["seconds"], False
        if found["seconds"] * 2 > FEAST_BUDGET_S or found["peak_mb"] * 2 > FEAST_BUDGET_MB:
            return found["seconds"] * rows / found["rows"], True
        size = min(size * 2, rows)


def is_without_ttl(state: Path) -> bool:
    """Whether a state folder is the one whose views have no TTL."""
    return state.name == "without-ttl"


def forget_ttl() -> None:
    """Let every view of this process have no TTL."""
    from feast import FeatureView, OnDemandFeatureView

    from feature_repo import features as definitions

    for definition in vars(definitions).values():
        if isinstance(definition, FeatureView) and not isinstance(definition, OnDemandFeatureView):
            definition.ttl = timedelta(0)


def without_ttl(state: Path, folder: Path) -> Path:
    """A state folder with the same tables and a registry of its own."""
    other = folder / "without-ttl"
    other.mkdir()
    for name in ("features", "rows.parquet"):
        (other / name).symlink_to((state / name).resolve())
    return other


def tile(state: Path, target: Path) -> None:
    """Copy feature tables and entity rows ten times, each copy 364 days after the one before."""
    (target / "features").mkdir(parents=True)
    for path in [*(state / "features").glob("*.parquet"), state / "rows.parquet"]:
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            columns = connection.sql(f"FROM '{path}'")
            moved = [
                f'"{name}" + to_days(364 * tile) AS "{name}"' if "TIME ZONE" in str(kind) else f'"{name}"'
                for name, kind in zip(columns.columns, columns.types, strict=True)
            ]
            source = f"SELECT {', '.join(moved)} FROM '{path}', range({TILES}) tiles(tile) ORDER BY event_timestamp"
            connection.execute(f"COPY ({source}) TO '{target / path.relative_to(state)}' (FORMAT parquet)")


def in_process(mode: str, state: Path, rows: int = 0) -> dict[str, Any]:
    """Run one measurement in a process of its own."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "benchmarks.join",
        "--measure",
        mode,
        "--state",
        str(state),
        "--rows",
        str(rows),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> int:
    """Command line; exit code 1 when a row is lost or a limit is missed."""
    parser = argparse.ArgumentParser(prog="make bench-join", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--measure", choices=["prepare", "pair", "memory", "streamed", "feast"])
    parser.add_argument("--state", type=Path, default=Settings().state_dir)
    parser.add_argument("--rows", type=int, default=0)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.state, args.rows)))
        return 0
    in_process("prepare", args.state)
    print("our store and the hand-written query by turns ...", flush=True)
    pair = in_process("pair", args.state)
    memory = in_process("memory", args.state)
    feast_s, extrapolated = feast_at_full_size(args.state, pair["rows"])
    with tempfile.TemporaryDirectory() as folder:
        other = without_ttl(args.state, Path(folder))
        unlimited_s = in_process("memory", other)["seconds"]
        feast_unlimited_s, _ = feast_at_full_size(other, pair["rows"])
    print(f"parquet to parquet, and {TILES} times the rows (tiled in time) ...", flush=True)
    once = in_process("streamed", args.state)
    with tempfile.TemporaryDirectory() as folder:
        tile(args.state, Path(folder) / "tiled")
        many = in_process("streamed", Path(folder) / "tiled")
        in_memory = in_process("memory", Path(folder) / "tiled")
    result = {
        "rows": pair["rows"],
        "rows_out": pair["rows_out"],
        "ours_s": round(pair["ours_s"], 2),
        "asof_s": round(pair["asof_s"], 2),
        "feast_duckdb_s": round(feast_s, 1),
        "feast_extrapolated": extrapolated,
        "speedup_vs_feast_duckdb": round(feast_s / pair["ours_s"], 1),
        "slowdown_vs_asof": round(pair["ours_s"] / pair["asof_s"], 2),
        "peak_mb": round(memory["peak_mb"]),
        "speedup_without_ttl": round(feast_unlimited_s / unlimited_s, 1),
        "growth_10x": round(many["seconds"] / once["seconds"], 2),
        "rows_out_10x": many["rows_out"],
        "peak_10x_mb": round(many["peak_mb"]),
        "growth_10x_in_memory": round(in_memory["seconds"] / memory["seconds"], 2),
        "peak_10x_in_memory_mb": round(in_memory["peak_mb"]),
    }
    faults = [f"{name}={result[name]} is above {limit:g}" for name, limit in LIMITS.items() if result[name] > limit]
    faults += [
        f"{name}={result[name]} is below {least:g}" for name, least in LEAST_SPEEDUP.items() if result[name] < least
    ]
    if result["rows_out"] != result["rows"] or result["rows_out_10x"] != TILES * result["rows"]:
        faults.append("rows were lost or doubled")
    print("\n".join(faults) or "every limit is kept", file=sys.stderr)
    print(json.dumps(result))
    return 1 if faults else 0


def measure(mode: str, state: Path, rows: int) -> dict[str, Any]:
    """One measurement in this process."""
    if mode == "feast":
        return measure_feast(state, rows)
    if mode == "prepare":
        from training.prepare import prepare

        prepare(Settings(state_dir=state))
        return {}
    modes = {"pair": measure_pair, "memory": measure_memory, "streamed": measure_streamed}
    return modes[mode](state)


if __name__ == "__main__":
    sys.exit(main())
