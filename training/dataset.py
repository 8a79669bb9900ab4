"""The point-in-time join: labelled rows with the features that were known when they were judged."""

from __future__ import annotations

import pandas as pd
from feast import FeatureStore

from service.contract import Contract
from service.errors import DataError


def join_features(store: FeatureStore, rows: pd.DataFrame, contract: Contract) -> pd.DataFrame:
    """Return ``rows`` with every feature of the contract joined: same rows, same order.

    Raises:
        DataError: when the join returned other rows than it was given.
    """
    names = [f.name for f in contract.request_fields]
    entities = rows[["event_timestamp", *names]]
    joined = store.get_historical_features(entities, store.get_feature_service(contract.name)).to_df()
    if len(joined) != len(rows) or not (joined["event_timestamp"].array == rows["event_timestamp"].array).all():
        msg = (
            f"the join returned {len(joined)} rows for {len(rows)}; an offline store must keep each row and their order"
        )
        raise DataError(msg)
    kept = [c for c in rows.columns if c not in contract.features]
    features = joined[list(contract.features)].set_index(rows.index)
    return pd.concat([rows[kept], features], axis=1)
