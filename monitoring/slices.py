"""For whom the shadow is better or worse: the paired difference within each value of the declared columns. Pure."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from monitoring.plan import Plan
from monitoring.quality import Slice
from monitoring.sequential import e_bh, interval, log_e_values
from monitoring.statistics import Difference, Floats, Ints
from monitoring.units import mean_units


def slices_of(
    frame: pd.DataFrame, gain: Floats, labels: Floats, blocks: Ints, columns: tuple[str, ...], plan: Plan
) -> tuple[tuple[Slice, ...], int]:
    """Measure every slice with enough rows; returns them and the number of the others.

    Args:
        frame: one row per labelled pair, with the columns.
        gain: primary's loss minus shadow's, per row.
    """
    groups = [(column, value, rows) for column in columns for value, rows in frame.groupby(column).indices.items()]
    large = [(column, value, rows) for column, value, rows in groups if len(rows) >= plan.minimum_slice]
    joint = 1 - (1 - plan.confidence) / max(1, len(large))
    units = [mean_units(gain[rows], blocks[rows]) for _, _, rows in large]
    harm = np.array([log_e_values(u, -plan.slice_margin, above=False)[-1] for u in units], dtype=np.float64)
    harmed = e_bh(harm, plan.slice_discovery_rate)
    out = [
        Slice(
            column=column.split(".", 1)[-1],
            value=str(value),
            positive_share=float(labels[rows].mean()),
            difference=Difference(each.value, *interval(each, plan.confidence), len(rows), len(each.sums)),
            joint_low=bounds[0],
            joint_high=bounds[1],
            harm=math.exp(min(500.0, float(log_e))),
            harmed=bool(worse),
        )
        for (column, value, rows), each, log_e, worse in zip(large, units, harm, harmed, strict=True)
        for bounds in [interval(each, joint)]
    ]
    order = [column.split(".", 1)[-1] for column in columns]
    return tuple(sorted(out, key=lambda s: (order.index(s.column), s.difference.value))), len(groups) - len(large)
