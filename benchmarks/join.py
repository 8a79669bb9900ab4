"""Time and memory of the point-in-time join over every row and every view."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

LIMIT_S = 15.0
LIMIT_MB = 2000.0


def measure() -> dict[str, float]:
    """Join everything once in this process."""
    import pandas as pd

    from feature_repo import features as definitions
    from service.definitions import contracts
    from service.settings import settings
    from training.dataset import join_features
    from training.prepare import prepare
    from training.store import apply, open_store

    prepare(settings())
    store = open_store(settings())
    apply(store, settings())
    rows = pd.read_parquet(settings().state_dir / "rows.parquet")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    begun = time.perf_counter()
    joined = join_features(store, rows, contracts(definitions)["primary"])
    seconds = time.perf_counter() - begun
    return {
        "rows": len(rows),
        "rows_out": len(joined),
        "seconds": round(seconds, 2),
        "start_mb": round(before),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000),
    }


def main() -> int:
    """Measure in a fresh process (prepared tables, no earlier peak); exit code 1 when over a limit."""
    if sys.argv[1:] == ["--measure"]:
        print(json.dumps(measure()))
        return 0
    for _ in range(2):  # the first run may prepare the tables, whose memory is not the join's
        command = [sys.executable, "-m", "benchmarks.join", "--measure"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{result['rows']:,} rows in, {result['rows_out']:,} out, {result['seconds']} s (limit {LIMIT_S}), "
        f"peak {result['peak_mb']:,.0f} MB (limit {LIMIT_MB:,.0f}; {result['start_mb']:,.0f} MB before the join)"
    )
    print(json.dumps(result))
    whole = result["rows"] == result["rows_out"]
    return 0 if whole and result["seconds"] <= LIMIT_S and result["peak_mb"] <= LIMIT_MB else 1


if __name__ == "__main__":
    sys.exit(main())
