"""A small Feast repository of another problem."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.repo_config import RepoConfig
from feast.types import Float64, Int64, String

from training.offline_store import AsofOfflineStore

ZERO = datetime(2013, 1, 1, tzinfo=UTC)
TTL = timedelta(minutes=60)
STORE = f"{AsofOfflineStore.__module__}.{AsofOfflineStore.__name__}"


def at(minute: int) -> datetime:
    return ZERO + timedelta(minutes=minute)


class Shop:
    """A small Feast repository of another problem in a folder."""

    def __init__(self, folder: Path, *, created: bool = True, store: str = STORE, chunk_rows: int = 7) -> None:
        folder.mkdir(exist_ok=True)
        self.path = folder / "sales.parquet"
        self.prices_path = folder / "prices.parquet"
        # A few rows at a time, so that every test crosses the border between chunks.
        offline = {"type": store, **({"chunk_rows": chunk_rows} if store == STORE else {})}
        config = RepoConfig(
            project="shop", provider="local", registry=str(folder / f"{store}.db"), offline_store=offline,
            online_store={"type": "sqlite", "path": str(folder / "online.db")}, entity_key_serialization_version=3,
        )  # fmt: skip
        self.store = FeatureStore(config=config)
        user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
        self.friend = Entity(name="friend", join_keys=["friend_id"], value_type=ValueType.STRING)
        self.prices = FeatureView(
            name="prices", entities=[], ttl=timedelta(0),
            source=FileSource(path=str(self.prices_path), timestamp_field="ts"),
            schema=[Field(name="price", dtype=Float64)],
        )  # fmt: skip
        source = FileSource(
            path=str(self.path), timestamp_field="ts", created_timestamp_column="created" if created else None
        )
        self.sales = FeatureView(
            name="sales", entities=[user], ttl=TTL, source=source,
            schema=[Field(name=n, dtype=t) for n, t in (("user_id", String), ("spent", Float64), ("n", Int64))],
        )  # fmt: skip
        basket = RequestSource(name="basket", schema=[Field(name="amount", dtype=Float64)])

        @on_demand_feature_view(  # type: ignore[untyped-decorator]  # feast carries no types
            name="ratio", sources=[basket, self.sales], mode="python", schema=[Field(name="share", dtype=Float64)]
        )
        def ratio(inputs: dict[str, Any]) -> dict[str, Any]:
            pairs = zip(inputs["amount"], inputs["spent"], strict=True)
            return {"share": [a / (1 + s) if s is not None else None for a, s in pairs]}

        self.write([("a", 0, 0, 1.0)])
        self.price([(0, 1.0)])
        self.store.apply([user, self.sales, self.prices, ratio])

    def price(self, rows: list[tuple[int, float]]) -> None:
        """Replace the table of the view without entities: (event minute, price)."""
        frame = pd.DataFrame([{"ts": at(t), "price": p} for t, p in rows])
        frame.astype({"ts": "datetime64[us, UTC]"}).to_parquet(self.prices_path)

    def write(self, rows: list[tuple[str, int, int, float]]) -> None:
        """Replace the feature table: (user, event minute, created minute, spent)."""
        frame = pd.DataFrame(
            [{"user_id": u, "ts": at(t), "created": at(c), "spent": s, "n": int(s)} for u, t, c, s in rows]
        )
        times = {"ts": "datetime64[us, UTC]", "created": "datetime64[us, UTC]"}
        frame.astype(times).to_parquet(self.path)

    def read(self, rows: list[tuple[str | None, int]], features: list[str], **options: Any) -> pd.DataFrame:
        """Join features to (user, minute) rows."""
        frame = pd.DataFrame({"user_id": [u for u, _ in rows], "event_timestamp": [at(t) for _, t in rows]})
        frame["amount"] = 10.0
        joined: pd.DataFrame = self.store.get_historical_features(frame, features, **options).to_df()
        return joined
