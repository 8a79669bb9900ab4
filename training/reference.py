"""A small sample of what training saw, kept with the model: for later comparisons of distributions."""

from __future__ import annotations

import io

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from service.contract import Contract, Dtype
from training.estimators import evenly

# Twenty thousand rows are 0.9 MB for two dozen features, less than the model; half of them have a prediction.
ROWS = 20_000
_TYPES: dict[Dtype, pa.DataType] = {
    "float": pa.float64(),
    "int": pa.int64(),
    "str": pa.string(),
    "bool": pa.bool_(),
    "timestamp": pa.timestamp("us", "UTC"),
}


def reference(contract: Contract, frame: pd.DataFrame, predictions: pd.Series[float]) -> bytes:
    """Return a Parquet file of at most ``ROWS`` rows, evenly spaced in the order of time.

    Columns: the contract's features in order, ``event_timestamp``, ``label``, ``prediction`` (null where there is
    none). The same rows give the same bytes.

    Args:
        frame: the training rows: the contract's features, ``event_timestamp``, ``label``.
        predictions: out-of-sample predictions by the index of ``frame``.
    """
    ordered = frame.sort_values("event_timestamp", kind="stable")
    chosen = ordered.iloc[evenly(len(ordered), ROWS)]
    chosen = chosen.assign(prediction=predictions.reindex(chosen.index))
    types = {spec.name: _TYPES[spec.dtype] for spec in contract.fields}
    types |= {"event_timestamp": _TYPES["timestamp"], "label": pa.float64(), "prediction": pa.float64()}
    columns = [pa.array(chosen[name], type=kind, from_pandas=True) for name, kind in types.items()]
    target = io.BytesIO()
    pq.write_table(pa.table(columns, names=list(types)), target, compression="zstd")
    return target.getvalue()
