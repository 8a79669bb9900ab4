"""The ASOF join finds what a reader of the whole past would find, and loses no row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from feast import FeatureService, Field
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Int64, String
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from service.errors import DataError
from tests.training.shop import TTL, Shop, at


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("shop"))


def known(rows: list[tuple[str, int, int, float]], user: str | None, now: int) -> float | None:
    """What a reader of the whole past finds: newest event, of equals the one created last, not older than the TTL."""
    past = [(t, c, s) for u, t, c, s in rows if u == user and t <= now and now - t <= TTL.total_seconds() / 60]
    return max(past)[2] if past else None


# Few moments, a quarter of the TTL apart: ties, borders of the TTL and rows created later are common.
moments = st.integers(0, 8).map(lambda n: n * 15)
table_rows = st.lists(
    st.tuples(st.sampled_from("ab"), moments, moments, st.integers(0, 9).map(float)),
    min_size=1, max_size=25, unique_by=lambda r: (r[0], r[1], r[2]),
)  # fmt: skip
entity_rows = st.lists(
    st.tuples(st.sampled_from(["a", "b", "z", None]), st.integers(0, 14).map(lambda n: n * 15)), min_size=1, max_size=25
)


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


def seen(rows: list[tuple[str, int, int, float]], user: str | None, now: int) -> float | None:
    """The same reader, who learns of a row only when it is created."""
    return known([row for row in rows if row[2] <= now], user, now)


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=table_rows, asked=entity_rows)
def test_filtered_by_creation_a_backfill_is_not_seen_before_it_was_written(
    shop: Shop, table: list[tuple[str, int, int, float]], asked: list[tuple[str | None, int]]
) -> None:
    shop.write(table)

    found = shop.read(asked, ["sales:spent"], filter_by_created_timestamp=True)

    assert [None if pd.isna(v) else v for v in found["spent"]] == [seen(table, user, now) for user, now in asked]


@pytest.fixture(scope="module")
def feasts(shop: Shop) -> Shop:
    """The same tables through Feast's own DuckDB store."""
    return Shop(shop.path.parent, store="duckdb")


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    table=table_rows,
    asked=entity_rows,
    prices=st.lists(st.tuples(st.integers(0, 250), st.integers(1, 9).map(float)), min_size=1, unique_by=lambda r: r[0]),
    by_created=st.booleans(),
    full=st.booleans(),
)
def test_row_for_row_the_same_as_feasts_own_store(
    shop: Shop,
    feasts: Shop,
    table: list[tuple[str, int, int, float]],
    asked: list[tuple[str | None, int]],
    prices: list[tuple[int, float]],
    by_created: bool,
    full: bool,
) -> None:
    shop.write(table)
    shop.price(prices)
    asked = asked + asked[:2]  # the same entity row twice
    features = ["sales:spent", "sales:n", "prices:price", "ratio:share"]
    options = {"filter_by_created_timestamp": by_created, "full_feature_names": full}

    ours = shop.read(asked, features, **options)
    theirs = feasts.read(asked, features, **options)

    assert sorted(ours.columns) == sorted(theirs.columns)
    assert _rows_of(ours) == _rows_of(theirs[ours.columns])


def _rows_of(frame: pd.DataFrame) -> list[tuple[Any, ...]]:
    """Rows in an order of their own: Feast's store keeps none."""
    plain = frame.astype(object).mask(frame.isna(), None)
    return sorted((tuple(row) for row in plain.itertuples(index=False)), key=repr)


def test_an_aliased_view_joins_by_the_column_it_is_mapped_to(shop: Shop, feasts: Shop) -> None:
    shop.write([("a", 0, 0, 1.0), ("b", 0, 0, 2.0)])
    frame = pd.DataFrame({"user_id": ["a"], "friend_id": ["b"], "event_timestamp": [at(10)]})
    for where in (shop, feasts):
        service = FeatureService(
            name="pair",
            features=[
                where.sales[["spent"]].with_name("own"),  # of two views one without alias breaks feast 0.67's sort
                where.sales[["spent"]].with_name("friends").with_join_key_map({"user_id": "friend_id"}),
            ],
        )
        where.store.apply(service)

        found = where.store.get_historical_features(frame, service, full_feature_names=True).to_df()

        assert (found["own__spent"].item(), found["friends__spent"].item()) == (1.0, 2.0)


def test_a_view_without_a_match_and_an_empty_frame_keep_their_columns(shop: Shop) -> None:
    shop.write([("a", 100, 0, 1.0)])

    assert shop.read([("a", 10), ("z", 150)], ["sales:spent"])["spent"].isna().all()
    nobody = shop.read([("a", 10)], ["sales:spent", "ratio:share"]).head(0)
    frame = pd.DataFrame({"user_id": pd.Series([], dtype=object), "amount": pd.Series([], dtype=float)})
    frame["event_timestamp"] = pd.Series([], dtype="datetime64[us, UTC]")
    found = shop.store.get_historical_features(frame, ["sales:spent", "ratio:share"]).to_df()
    assert len(found) == 0
    assert set(found.columns) == set(nobody.columns)


def test_the_event_time_of_every_joined_row_can_be_asked_for(shop: Shop) -> None:
    shop.write([("a", 0, 0, 1.0), ("a", 20, 0, 2.0)])
    frame = pd.DataFrame({"user_id": ["a", "a", "z", "a"], "event_timestamp": [at(t) for t in (19, 20, 20, 200)]})

    times = shop.store.get_historical_features(frame, ["sales:spent"]).event_times()

    assert times["sales"].to_pylist() == [at(0), at(20), None, None]


def test_a_row_whose_creation_is_unknown_is_not_seen_when_creation_counts(shop: Shop, feasts: Shop) -> None:
    shop.write([("a", 0, 0, 1.0), ("a", 10, 10, 2.0)])
    frame = pd.read_parquet(shop.path)
    frame.loc[frame["spent"] == 2.0, "created"] = pd.NaT
    frame.to_parquet(shop.path)

    for where in (shop, feasts):
        assert where.read([("a", 20)], ["sales:spent"], filter_by_created_timestamp=True)["spent"].item() == 1.0
        assert where.read([("a", 20)], ["sales:spent"])["spent"].item() == 2.0


def test_a_pandas_function_keeps_its_types_over_chunks_and_a_failure_leaves_no_file(tmp_path: Path) -> None:
    shop = Shop(tmp_path, chunk_rows=2)

    @on_demand_feature_view(  # type: ignore[untyped-decorator]  # same
        sources=[shop.sales], mode="pandas", schema=[Field(name="twice", dtype=Int64), Field(name="word", dtype=String)]
    )
    def doubled(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"twice": inputs["n"] * 2, "word": inputs["n"].map({1: "one"})})

    shop.write([("a", 0, 0, 1.0)])
    shop.store.apply(doubled)
    frame = pd.DataFrame({"user_id": ["a", "a", "z", "z"], "event_timestamp": [at(5)] * 4})
    job = shop.store.get_historical_features(frame, ["doubled:twice", "doubled:word"])

    assert job.to_parquet(tmp_path / "joined.parquet") == 4
    joined = pq.read_table(tmp_path / "joined.parquet")
    assert joined["twice"].to_pylist() == [2, 2, None, None]
    assert joined["word"].to_pylist() == ["one", "one", None, None]
    before = sorted(p.name for p in tmp_path.iterdir())
    shop.path.unlink()
    with pytest.raises(DataError):
        job.to_parquet(tmp_path / "broken.parquet")
    assert sorted(p.name for p in tmp_path.iterdir()) == [n for n in before if n != "sales.parquet"]
