"""Whatever form entity rows and feature tables have: joined the same, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int64

from service.errors import DataError
from tests.training.shop import STORE, TTL, Shop, at
from training.store import newest_rows


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("shop"))


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


def test_entity_rows_may_be_sql_or_a_parquet_file_and_go_to_parquet_unheld(shop: Shop, tmp_path: Path) -> None:
    shop.write([("a", 0, 0, 1.0), ("a", 20, 0, 2.0), ("b", 5, 0, 3.0)])
    asked: list[tuple[str | None, int]] = [("b" if i % 3 else "a", i) for i in range(30)]
    frame = pd.DataFrame({"user_id": [u for u, _ in asked], "event_timestamp": [at(t) for _, t in asked]})
    frame["amount"] = 10.0
    frame.astype({"event_timestamp": "datetime64[us, UTC]"}).to_parquet(tmp_path / "rows.parquet")
    features = ["sales:spent", "ratio:share"]
    expected = shop.store.get_historical_features(frame, features).to_df()

    for source in (str(tmp_path / "rows.parquet"), f"SELECT * FROM '{tmp_path / 'rows.parquet'}';"):
        job = shop.store.get_historical_features(source, features)
        assert job.to_parquet(tmp_path / "joined.parquet") == 30
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "joined.parquet"), expected)
        pd.testing.assert_frame_equal(job.to_df(), expected)
        assert job.metadata.max_event_timestamp == pd.Timestamp(at(29))
    assert [p.name for p in tmp_path.glob(".*")] == []


def test_a_damaged_missing_or_foreign_table_is_named(shop: Shop, tmp_path: Path) -> None:
    frame = pd.DataFrame({"user_id": ["a"], "event_timestamp": [at(0)]})
    job = shop.store.get_historical_features(frame, ["sales:spent"])
    whole = shop.path.read_bytes()
    try:
        shop.path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DataError, match=r"feature table of sales: .*sales.parquet cannot be read"):
            job.to_df()
        shop.path.unlink()
        with pytest.raises(DataError, match=r"feature table of sales: .*sales.parquet cannot be read"):
            job.to_df()
        pd.read_parquet(shop.prices_path).to_parquet(shop.path)
        with pytest.raises(DataError, match=r"has no column created, spent, user_id"):
            job.to_df()
    finally:
        shop.path.write_bytes(whole)


def test_entity_rows_that_cannot_be_joined_are_refused_by_name(shop: Shop, tmp_path: Path) -> None:
    shop.write([("a", 0, 0, 1.0)])
    moment = {"event_timestamp": [at(0)]}
    with pytest.raises(DataError, match=r"no column user_id, which is a join key of sales"):
        shop.store.get_historical_features(pd.DataFrame(moment), ["sales:spent"]).to_df()
    with pytest.raises(DataError, match=r"column spent is in the entity rows and in a feature view"):
        shop.store.get_historical_features(pd.DataFrame({"user_id": ["a"], "spent": [1.0], **moment}), ["sales:spent"])
    with pytest.raises(DataError, match=r"cannot be read from .*nowhere.parquet"):
        shop.store.get_historical_features(str(tmp_path / "nowhere.parquet"), ["sales:spent"])
    pd.DataFrame({"user_id": ["a"], **moment}).to_parquet(tmp_path / "few.parquet")
    with pytest.raises(DataError, match=r"no column amount, which on-demand view ratio reads"):
        shop.store.get_historical_features(str(tmp_path / "few.parquet"), ["ratio:share"]).to_df()


@pytest.mark.parametrize("aware", [True, False])
@pytest.mark.parametrize("unit", ["ns", "us", "ms", "s"])
def test_feature_times_may_have_any_unit_and_when_naive_mean_utc(shop: Shop, unit: Any, aware: bool) -> None:
    shop.write([("a", 0, 0, 1.0), ("a", 10, 10, 2.0)])
    frame = pd.read_parquet(shop.path)
    for column in ("ts", "created"):
        moments = frame[column].dt.as_unit(unit)
        frame[column] = moments if aware else moments.dt.tz_localize(None)
    frame.to_parquet(shop.path)

    for by_created in (False, True):
        found = shop.read([("a", 9), ("a", 10)], ["sales:spent"], filter_by_created_timestamp=by_created)
        assert found["spent"].tolist() == [1.0, 2.0]
    assert newest_rows(shop.sales, at(9))["spent"].tolist() == [1.0]
    assert str(newest_rows(shop.sales, at(10))["ts"].dtype) == "datetime64[us, UTC]"


def test_renamed_columns_and_integer_keys_join_as_well(tmp_path: Path) -> None:
    path = tmp_path / "raw.parquet"
    rows = {"USER": [1, 1, 2], "when": [at(0), at(10), at(5)], "made": [at(0), at(10), at(5)], "AMT": [1.0, 2.0, 3.0]}
    pd.DataFrame(rows).to_parquet(path)
    for store in (STORE, "duckdb"):
        shop = Shop(tmp_path / store, store=store)
        source = FileSource(
            path=str(path), timestamp_field="event", created_timestamp_column="made",
            field_mapping={"USER": "uid", "when": "event", "AMT": "amount_spent"},
        )  # fmt: skip
        view = FeatureView(
            name="mapped", entities=[Entity(name="uid", join_keys=["uid"], value_type=ValueType.INT64)], source=source,
            ttl=TTL, schema=[Field(name="uid", dtype=Int64), Field(name="amount_spent", dtype=Float64)],
        )  # fmt: skip
        shop.store.apply([Entity(name="uid", join_keys=["uid"], value_type=ValueType.INT64), view])
        frame = pd.DataFrame({"uid": [2, 1, 1, 3], "event_timestamp": [at(5), at(9), at(10), at(10)]})

        found = (
            shop.store.get_historical_features(frame, ["mapped:amount_spent"])
            .to_df()
            .sort_values(["uid", "event_timestamp"])
        )

        assert found["amount_spent"].fillna(-1).tolist() == [1.0, 2.0, 3.0, -1.0]


def test_a_long_query_with_a_comment_is_a_query(shop: Shop, tmp_path: Path) -> None:
    shop.write([("a", 0, 0, 1.0)])
    frame = pd.DataFrame({"user_id": ["a"], "event_timestamp": [at(5)]})
    frame.to_parquet(tmp_path / "rows.parquet")
    extras = ", ".join(f"{i} AS extra_{i}" for i in range(60))
    sql = f"SELECT user_id, event_timestamp, {extras} FROM '{tmp_path / 'rows.parquet'}' -- all of them"

    job = shop.store.get_historical_features(sql, ["sales:spent"])

    assert job.to_df()["spent"].tolist() == [1.0]
    assert job.metadata.min_event_timestamp == pd.Timestamp(at(5))


def test_keys_of_another_type_are_refused_and_not_converted(shop: Shop) -> None:
    shop.write([("007", 0, 0, 1.0), ("7", 0, 0, 2.0)])
    frame = pd.DataFrame({"user_id": [7], "event_timestamp": [at(5)]})

    with pytest.raises(DataError, match="join key user_id is int64 in the entity rows and string in sales"):
        shop.store.get_historical_features(frame, ["sales:spent"]).to_df()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"user_id": ["a"], "event_timestamp": ["yesterday"]}, "event_timestamp of the entity rows holds no moments"),
        ({"user_id": ["a", 7], "event_timestamp": [at(0), at(0)]}, "a column of mixed types"),
        (
            {"user_id": ["a"], "share": [1.0], "amount": [1.0], "event_timestamp": [at(0)]},
            "column share is in the entity",
        ),
    ],
)
def test_entity_rows_of_the_wrong_kind_are_named(shop: Shop, rows: dict[str, Any], message: str) -> None:
    shop.write([("a", 0, 0, 1.0)])
    features = ["ratio:share"] if "share" in rows else ["sales:spent"]
    with pytest.raises(DataError, match=message):
        shop.store.get_historical_features(pd.DataFrame(rows), features).to_df()


def test_sql_rows_without_moments_are_named(shop: Shop, tmp_path: Path) -> None:
    shop.write([("a", 0, 0, 1.0)])
    with pytest.raises(DataError, match="event_timestamp of the entity rows holds no moments"):
        shop.store.get_historical_features("SELECT 'a' AS user_id, 'soon' AS event_timestamp", ["sales:spent"]).to_df()
