"""The ASOF join finds what a reader of the whole past would find, and loses no row."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.repo_config import RepoConfig
from feast.types import Float64, Int64, String
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from service.errors import DataError
from training.offline_store import AsofOfflineStore
from training.store import newest_rows

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


def test_the_event_time_of_every_joined_row_can_be_asked_for(shop: Shop) -> None:
    shop.write([("a", 0, 0, 1.0), ("a", 20, 0, 2.0)])
    frame = pd.DataFrame({"user_id": ["a", "a", "z", "a"], "event_timestamp": [at(t) for t in (19, 20, 20, 200)]})

    times = shop.store.get_historical_features(frame, ["sales:spent"]).event_times()

    assert times["sales"].to_pylist() == [at(0), at(20), None, None]


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


def test_a_row_whose_creation_is_unknown_is_not_seen_when_creation_counts(shop: Shop, feasts: Shop) -> None:
    shop.write([("a", 0, 0, 1.0), ("a", 10, 10, 2.0)])
    frame = pd.read_parquet(shop.path)
    frame.loc[frame["spent"] == 2.0, "created"] = pd.NaT
    frame.to_parquet(shop.path)

    for where in (shop, feasts):
        assert where.read([("a", 20)], ["sales:spent"], filter_by_created_timestamp=True)["spent"].item() == 1.0
        assert where.read([("a", 20)], ["sales:spent"])["spent"].item() == 2.0


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
