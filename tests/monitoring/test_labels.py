"""Which label counts."""

from __future__ import annotations

from datetime import timedelta

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from monitoring.labels import LabelNotes, resolve
from tests.monitoring.logs import START

HOUR = timedelta(hours=1)


def lines(*rows: tuple[str, float, int]) -> pd.DataFrame:
    """Label lines of (request, label, hour known), received in the order given."""
    frame = pd.DataFrame(rows, columns=["request_id", "label", "hour"])
    known = pd.to_datetime([START + hour * HOUR for hour in frame["hour"]], utc=True)
    received = pd.to_datetime([START + timedelta(days=30, seconds=i) for i in range(len(frame))], utc=True)
    return frame.drop(columns="hour").assign(known_at=known, at=received)


def asked(*ids: str) -> pd.DataFrame:
    return pd.DataFrame({"request_id": list(ids), "at": pd.to_datetime([START] * len(ids), utc=True)})


def labels_of(frame: pd.DataFrame) -> dict[str, float]:
    return dict(zip(frame["request_id"], frame["label"], strict=True))


def test_the_latest_known_label_counts_whatever_the_order_received() -> None:
    truth, notes = resolve(lines(("a", 1, 9), ("a", 0, 5)), asked("a"))

    assert labels_of(truth) == {"a": 1.0}
    assert (notes.contradictions, notes.duplicates) == (1, 0)


def test_of_labels_known_at_once_the_last_written_counts() -> None:
    truth, _ = resolve(lines(("a", 1, 5), ("a", 0, 5)), asked("a"))

    assert labels_of(truth) == {"a": 0.0}


def test_a_label_sent_again_is_a_duplicate_not_a_contradiction() -> None:
    truth, notes = resolve(lines(("a", 1, 5), ("a", 1, 5), ("a", 1, 6)), asked("a"))

    assert labels_of(truth) == {"a": 1.0}
    assert (notes.contradictions, notes.duplicates) == (0, 2)


def test_labels_of_unknown_requests_are_orphans() -> None:
    truth, notes = resolve(lines(("a", 1, 5), ("ghost", 1, 5)), asked("a"))

    assert labels_of(truth) == {"a": 1.0}
    assert notes.orphans == 1


def test_a_label_known_before_the_prediction_is_not_used() -> None:
    truth, notes = resolve(lines(("a", 1, -1), ("b", 0, 3)), asked("a", "b"))

    assert labels_of(truth) == {"b": 0.0}
    assert notes.early == 1


def test_a_label_that_is_neither_zero_nor_one_is_not_used() -> None:
    truth, notes = resolve(lines(("a", 0.5, 5), ("b", -1, 5)), asked("a", "b"))

    assert truth.empty
    assert notes.invalid == 2


def test_no_labels_and_no_predictions_are_no_error() -> None:
    assert resolve(lines(), asked("a"))[1] == LabelNotes()
    assert resolve(lines(("a", 1, 5)), asked())[1] == LabelNotes(lines=1, orphans=1)


entries = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.sampled_from([0.0, 1.0, 2.0]), st.integers(-3, 9)), max_size=30
)


@given(entries, st.sets(st.sampled_from("abcd")))
def test_every_line_is_accounted_for_and_the_winner_is_the_brute_force_one(
    rows: list[tuple[str, float, int]], known: set[str]
) -> None:
    truth, notes = resolve(lines(*rows), asked(*sorted(known)))

    valid = [row for row in rows if row[1] in (0.0, 1.0)]
    winners = {name: max((r for r in valid if r[0] == name), key=lambda r: r[2]) for name, _, _ in valid}
    for name in winners:
        ties = [r for r in valid if r[0] == name and r[2] == winners[name][2]]
        winners[name] = ties[-1]
    assert labels_of(truth) == {n: r[1] for n, r in winners.items() if n in known and r[2] >= 0}
    assert notes.lines == len(rows)
    assert notes.invalid == len(rows) - len(valid)
    assert len(truth) + notes.early + notes.orphans == len(winners)
    assert notes.contradictions == len({r[0] for r in valid if r[1] != winners[r[0]][1]})
    assert notes.duplicates == sum(r[1] == winners[r[0]][1] for r in valid) - len(winners)
