"""Everything the serving benchmarks need in one folder, made by the project's own commands.

Models are trained as the demo trains them: the primary as of July, the shadow as of October. The clock stands at one
moment of October at which the real requests of the next two days are valid and their features fresh.
"""

from __future__ import annotations

import json
import re
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pandas as pd
import yaml
from feast import FeatureStore

from benchmarks.handwritten_service import Features, Model
from benchmarks.servers import clean
from deploy.demo import environment, say, step
from feature_repo import features as definitions
from service.clock import parse_instant
from service.contract import Contract
from service.definitions import contracts
from service.feature_store import repo_config
from service.package import Signature, read_package, save_package
from service.roles import Seat, move_roles, read_roles
from service.settings import Settings
from training.store import apply, newest_rows

PRIMARY_AS_OF, SHADOW_AS_OF = "2013-07-01", "2013-10-01"
AT = parse_instant("2013-10-01T16:00")
# The service's clock runs on from there, so requests leave time for a run: the shortest staleness limit is 45 minutes.
FIRST, LAST = AT + timedelta(hours=1), AT + timedelta(hours=48)
SLOWER = 50
MARK = ".understudy-bench"


def prepared(home: Path) -> Path:
    """Return a folder with everything in it, made when it is missing or was left unfinished."""
    if (home / MARK).exists():
        say(f"using what is prepared in {home}")
        return home
    if home.exists() and any(home.iterdir()):
        msg = f"{home} is not empty and holds no finished benchmark; remove it or choose another --home"
        raise SystemExit(msg)
    config = Settings(state_dir=home / "state", models_dir=home / "models", clock="wall")
    env = {**clean(environment(home)), "UNDERSTUDY_CLOCK": "wall"}
    step("train primary and fallback", env, "training.train", "--as-of", PRIMARY_AS_OF)
    step("train a newer model as shadow", env, "training.train", "--as-of", SHADOW_AS_OF)
    step("features as of the benchmark's moment", env, "training.materialize", "--as-of", AT.isoformat())
    say("requests, a shadow 50 times slower, and Feast's own online store")
    contract = contracts(definitions)["primary"]
    (home / "slow").mkdir()
    shutil.copytree(home / "models", home / "slow" / "models")
    seat_slow_shadow(home / "slow" / "models", SLOWER)
    write_handwritten(home, config, contract)
    write_requests(home, contract)
    (home / "moment").write_text(AT.isoformat())
    (home / MARK).touch()
    return home


def write_handwritten(home: Path, config: Settings, contract: Contract) -> None:
    """Make the hand-written service's folder: Feast with its own SQLite store, the same models, the moment."""
    folder = home / "handwritten"
    repo = folder / "feast"
    repo.mkdir(parents=True)
    plain = repo_config(config).model_dump(by_alias=True, exclude_unset=True)
    plain |= {
        "project": "plain",
        "online_store": {"type": "sqlite", "path": str(repo / "online.db")},
        "offline_store": {"type": "duckdb"},
        # 0: never refreshed, so that no request waits for it.
        "registry": {"registry_type": "file", "path": str(repo / "registry.db"), "cache_ttl_seconds": 0},
    }
    plain.pop("repo_path")
    (repo / "feature_store.yaml").write_text(yaml.safe_dump(plain))
    store = FeatureStore(repo_path=str(repo))
    apply(store, config)
    for view in contract.views:
        store.write_to_online_store(view.name, newest_rows(store.get_feature_view(view.name), AT))
    (folder / "models").symlink_to(home / "models")
    (folder / "clock").write_text(AT.isoformat())


def write_requests(home: Path, contract: Contract) -> None:
    """Write the real requests valid at the moment, and the inputs of the stock service for the same requests."""
    rows = pd.read_parquet(home / "state" / "rows.parquet")
    names = [spec.name for spec in contract.request_fields]
    departure = rows["scheduled_departure"]
    # A null join key is an error to plain Feast (0.67).
    keyed = rows[[spec.name for spec in contract.keys]].notna().all(axis=1)
    some = rows.loc[keyed & (departure > FIRST) & (departure <= LAST), names]
    asked = [{str(k): _plain(v) for k, v in row.items()} for row in some.to_dict("records")]
    features = Features(home / "handwritten" / "feast", contract)
    model = Model(home / "models", "primary")
    encoded = [model.encode(features.fetch(row)[0]) for row in asked]
    (home / "requests.jsonl").write_bytes(b"".join(orjson.dumps(row, default=str) + b"\n" for row in asked))
    # BentoML reads NaN in a list of numbers, and refuses null (1.4.39).
    (home / "vectors.jsonl").write_text("".join(json.dumps({"features": row}) + "\n" for row in encoded))


def seat_slow_shadow(models_dir: Path, times: int) -> None:
    """Seat a shadow that gives the same answers with so many times the trees."""
    roles = read_roles(models_dir)
    seat = roles.seats["shadow"]
    contents = read_package(models_dir / seat.package, seat.digest)
    plain = {name: json.loads(contents[f"{name}.json"]) for name in ("signature", "baseline", "record", "contract")}
    signature = Signature.parse(plain["signature"])
    model = repeated(contents["model.txt"].decode(), times).encode()
    rest = plain["baseline"], plain["record"], plain["contract"], contents["reference.parquet"]
    digest, folder = save_package(models_dir, model, signature, *rest)
    move_roles(models_dir, roles.revision, {"shadow": Seat("slow", digest, str(folder.relative_to(models_dir)))})


def repeated(model: str, times: int) -> str:
    """Return a LightGBM model file with every tree so many times, each with that part of its leaves' weight."""
    head, trees, tail = re.split(r"(?=^Tree=0$)|(?=^end of trees$)", model, flags=re.MULTILINE)
    lighter = re.sub(r"(?<=^leaf_value=).*$", lambda m: " ".join(repr(float(v) / times) for v in m[0].split()), trees,
                     flags=re.MULTILINE)  # fmt: skip
    parts = [part.partition("\n")[2] for part in re.split(r"(?=^Tree=\d+$)", lighter, flags=re.MULTILINE) if part]
    written = [f"Tree={i}\n{parts[i % len(parts)]}" for i in range(len(parts) * times)]
    sizes = " ".join(str(len(tree.encode())) for tree in written)
    return re.sub(r"(?<=^tree_sizes=).*$", sizes, head, flags=re.MULTILINE) + "".join(written) + tail


def _plain(value: Any) -> Any:
    if pd.isna(value):
        return None
    return value.to_pydatetime() if isinstance(value, pd.Timestamp) else value
