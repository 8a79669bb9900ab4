"""The ASOF join finds what a reader of the whole past would find, and loses no row."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.repo_config import RepoConfig
from feast.types import Float64, Int64, String
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from training.offline_store import AsofOfflineStore

ZERO = datetime(2013, 1, 1, tzinfo=UTC)
TTL = timedelta(minutes=60)
STORE = f"{AsofOfflineStore.__module__}.{AsofOfflineStore.__name__}"


def at(minute: int) -> datetime:
    return ZERO + timedelta(minutes=minute)


class Shop:
    """A small Feast repository of another problem in a folder."""

    def __init__(self, folder: Path, *, created: bool = True) -> None:
        self.path = folder / "sales.parquet"
        config = RepoConfig(
            project="shop", provider="local", registry=str(folder / "registry.db"), offline_store={"type": STORE},
            online_store={"type": "sqlite", "path": str(folder / "online.db")}, entity_key_serialization_version=3,
        )  # fmt: skip
        self.store = FeatureStore(config=config)
        user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
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
        self.store.apply([user, self.sales, ratio])

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


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("shop"))


def known(rows: list[tuple[str, int, int, float]], user: str | None, now: int) -> float | None:
    """What a reader of the whole past finds: newest event, of equals the one created last, not older than the TTL."""
    past = [(t, c, s) for u, t, c, s in rows if u == user and t <= now and now - t <= TTL.total_seconds() / 60]
    return max(past)[2] if past else None


table_rows = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 200), st.integers(0, 200), st.integers(0, 9).map(float)),
    min_size=1, max_size=25, unique_by=lambda r: (r[0], r[1], r[2]),
)  # fmt: skip
entity_rows = st.lists(st.tuples(st.sampled_from(["a", "b", "z", None]), st.integers(0, 260)), min_size=1, max_size=25)


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=table_rows, asked=entity_rows)
def test_the_join_sees_exactly_what_was_known_at_each_instant(
    shop: Shop, table: list[tuple[str, int, int, float]], asked: list[tuple[str | None, int]]
) -> None:
    shop.write(table)

    found = shop.read(asked, ["sales:spent"])

    assert [None if pd.isna(user) else user for user in found["user_id"]] == [u for u, _ in asked]
    expected = [known(table, user, now) for user, now in asked]
    assert [None if pd.isna(v) else v for v in found["spent"]] == expected


def test_on_demand_features_are_computed_from_request_and_joined_values(shop: Shop) -> None:
    shop.write([("a", 0, 0, 4.0)])

    found = shop.read([("a", 10), ("b", 10)], ["ratio:share"])

    assert found["share"].tolist()[0] == 2.0
    assert pd.isna(found["share"][1])


def test_full_feature_names_carry_their_view(shop: Shop) -> None:
    shop.write([("a", 0, 0, 4.0)])

    found = shop.read([("a", 10)], ["sales:spent", "sales:n", "ratio:share"], full_feature_names=True)

    assert (found["sales__spent"].item(), found["sales__n"].item()) == (4.0, 4)
    assert found["ratio__share"].item() == 2.0


def test_timestamps_may_be_text_or_naive_and_then_mean_utc(shop: Shop) -> None:
    shop.write([("a", 10, 0, 4.0)])
    for moment in ("2013-01-01T00:10:00", pd.Timestamp("2013-01-01T00:10:00"), pd.Timestamp("2012-12-31T19:10-05:00")):
        frame = pd.DataFrame({"user_id": ["a"], "event_timestamp": [moment]})

        found = shop.store.get_historical_features(frame, ["sales:spent"]).to_df()

        assert found["spent"].item() == 4.0


def test_an_index_of_the_entity_frame_does_not_matter(shop: Shop) -> None:
    shop.write([("a", 10, 0, 4.0)])
    frame = pd.DataFrame({"user_id": ["b", "a"], "event_timestamp": [at(20)] * 2}, index=[7, 7])

    found = shop.store.get_historical_features(frame, ["sales:spent"]).to_df()

    assert found["spent"].fillna(-1).tolist() == [-1.0, 4.0]


def test_what_asof_cannot_express_is_left_to_feast(shop: Shop) -> None:
    shop.write([("a", 0, 5, 1.0), ("a", 10, 90, 2.0)])

    plain = shop.read([("a", 20)], ["sales:spent"])
    created = shop.read([("a", 20)], ["sales:spent"], filter_by_created_timestamp=True)

    assert (plain["spent"].item(), created["spent"].item()) == (2.0, 1.0)
