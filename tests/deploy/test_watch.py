"""The watch: a promoted model stays when it does what was expected, and is taken back when it does not."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from deploy import watch as watch_module
from deploy.watch import BREACH, main
from deploy.watch_checks import rate_log_e
from deploy.watch_record import read_watch
from service.roles import read_history
from tests.deploy.promotions import (
    seat,
)
from tests.deploy.watched import (
    Label,
    Line,
    Spoil,
    even,
    falls_back,
    later,
    live,
    looked,
    outcomes,
    promotion,
    times_out,
    untouched,
)


def crashes(place: int, line: Line) -> None:
    """A tenth, and then the fallback fails as well."""
    if place % 10 == 0:
        falls_back(line, "both_failed: primary_error, fallback_timeout")
        line |= {"role": "none", "model_version": None, "model_digest": None}


def is_slow(_: int, line: Line) -> None:
    """Every call takes three times as long."""
    line["stages_ms"]["primary"] *= 3


def collapses(_: int, line: Line) -> None:
    """Every answer is the same."""
    line["prediction"] = 0.01


def against_it(new: float, old: float) -> float:
    """The truth is always on the replaced model's side."""
    return float(old > new)


def test_a_model_that_does_what_was_expected_survives_its_watch(tmp_path: Path) -> None:
    settings = promotion(tmp_path)
    live(settings, 7)

    watch, code = looked(settings)
    assert (watch.status, code) == ("open", 0)
    assert {"failures": "pass", "latency": "pass", "scores": "pass"}.items() <= outcomes(watch).items()
    later(settings, 24)
    watch, code = looked(settings)

    assert (watch.status, code, watch.looks[-1].requests) == ("survived", 0, 7 * 240)
    assert outcomes(watch)["loss"] == "pass"
    assert looked(settings) == (watch, 0)
    assert seat(settings, "primary").version == "3"


BREACHES: dict[str, tuple[str, Spoil, Label, int, str]] = {
    "timeouts": ("failures", times_out, even, 1, r"failed on 10\.00% of 240 requests \(at most 1\.00%\): 24 primary_t"),
    "errors": ("failures", crashes, even, 1, "24 primary_error"),
    "latency": ("latency", is_slow, even, 1, r"p95 of 240 calls is 1\d\.\d\d ms \(at most \d"),
    "scores": ("scores", collapses, even, 3, r"PSI of 720 scores against 1,920 as shadow is \d"),
    "loss": ("loss", untouched, against_it, 8, "the replaced model's would be"),
}


@pytest.mark.parametrize("kind", BREACHES)
def test_a_critical_breach_takes_the_model_back_with_its_numbers_on_record(kind: str, tmp_path: Path) -> None:
    check, spoil, label, days, numbers = BREACHES[kind]
    settings = promotion(tmp_path, watch_days=8.0)
    live(settings, days, spoil=spoil, label=label)
    said: list[str] = []

    watch, code = looked(settings, said)

    move = read_history(settings.models_dir)[-1]
    assert (watch.status, code) == ("reverted", BREACH)
    assert [one.name for one in watch.breaches] == [check]
    assert re.search(numbers, watch.why)
    assert (move.kind, move.reason) == ("revert", f"watch of revision 4: {watch.why}")
    assert seat(settings, "primary").version == "1"
    assert seat(settings, "shadow").version == "3"
    assert said[-1].startswith("taken back: primary is version 1")
    assert read_watch(settings.state_dir / "watch/4.json") == watch


def test_what_is_not_the_models_doing_is_told_of_and_changes_nothing(tmp_path: Path) -> None:
    settings = promotion(tmp_path)
    live(settings, 1, spoil=lambda place, line: falls_back(line, "features_invalid") if place % 2 else None)

    watch, code = looked(settings)

    assert (outcomes(watch)["fallbacks"], outcomes(watch)["failures"]) == ("fail", "pass")
    assert (watch.status, code) == ("open", 0)


def test_traffic_that_moved_both_models_scores_takes_nothing_back(tmp_path: Path) -> None:
    settings = promotion(tmp_path)
    live(settings, 3, same=True)

    watch, code = looked(settings)

    shift = next(check for check in watch.checks if check.name == "scores")
    assert shift.value is not None
    assert (shift.value > 1, shift.outcome, code) == (True, "pass", 0)
    assert "the replaced model's moved by" in shift.message


def test_a_machine_on_which_everything_got_slower_takes_nothing_back(tmp_path: Path) -> None:
    settings = promotion(tmp_path)

    def loaded(_: int, line: Line) -> None:
        for stage in ("primary", "lookup"):
            line["stages_ms"][stage] *= 3

    live(settings, 1, spoil=loaded)

    watch, code = looked(settings)

    latency = next(check for check in watch.checks if check.name == "latency")
    assert (latency.outcome, code) == ("pass", 0)
    assert "the machine is 3.0 times as slow at lookups" in latency.message


def test_a_burst_that_has_passed_takes_nothing_back(tmp_path: Path) -> None:
    settings = promotion(tmp_path)
    live(settings, 1, spoil=lambda place, line: falls_back(line, "primary_timeout") if place < 60 else None)

    watch, code = looked(settings)

    assert (outcomes(watch)["failures"], code) == ("pass", 0)


@pytest.mark.parametrize("requests", [0, 100])
def test_quiet_traffic_is_no_data_and_never_a_revert(requests: int, tmp_path: Path) -> None:
    settings = promotion(tmp_path)
    if requests:
        live(settings, 1, per_day=requests, spoil=lambda _, line: falls_back(line, "primary_error"))

    watch, code = looked(settings)

    assert set(outcomes(watch).values()) == {"no_data"}
    assert (watch.status, code, watch.looks[-1].requests) == ("open", 0, requests)


def test_a_watch_without_a_single_request_says_so_at_its_end(tmp_path: Path) -> None:
    settings = promotion(tmp_path)
    later(settings, 24 * 8)

    watch, code = looked(settings)

    assert (watch.status, code, watch.why) == ("survived", 0, "0 requests without a critical breach")


def test_labels_that_have_not_come_are_no_data(tmp_path: Path) -> None:
    settings = promotion(tmp_path)
    live(settings, 7, label=None)
    later(settings, 24)

    watch, code = looked(settings)

    loss = next(check for check in watch.checks if check.name == "loss")
    assert (loss.outcome, loss.value, code) == ("no_data", None, 0)
    assert "0 mature labels (at least 5 whole days)" in loss.message


def test_labels_that_come_late_still_take_a_model_back_while_its_watch_lasts(tmp_path: Path) -> None:
    settings = promotion(tmp_path, watch_days=8.0)
    live(settings, 7, label=against_it)
    path = next((settings.log_dir / "labels").glob("l7-*"))
    kept = {p: p.read_text() for p in (settings.log_dir / "labels").glob("l7-*")}
    for one in kept:
        one.write_text("")
    assert looked(settings)[1] == 0
    assert path.exists()

    for one, text in kept.items():
        one.write_text(text)
    watch, code = looked(settings)

    assert (watch.status, code) == ("reverted", BREACH)


@pytest.mark.parametrize("said", [False, True], ids=["damaged", "redacted"])
def test_vectors_that_do_not_give_the_logged_answer_are_no_ground_to_compare_losses_on(
    tmp_path: Path, said: bool
) -> None:
    settings = promotion(tmp_path)

    def emptied(place: int, line: Line) -> None:
        if place % 2:
            line["vector"] = dict.fromkeys(line["vector"])
            line["redacted"] = sorted(line["vector"]) if said else []

    live(settings, 7, label=against_it, spoil=emptied)
    later(settings, 24)

    watch, code = looked(settings)

    loss = next(check for check in watch.checks if check.name == "loss")
    assert (loss.outcome, code) == ("no_data", 0)
    assert "do not reproduce their answer" in loss.message
    assert ("redacted from the log (UNDERSTUDY_REDACT)" in loss.message) is said


def test_answers_of_the_replaced_model_during_the_change_do_not_count(tmp_path: Path) -> None:
    settings = promotion(tmp_path)
    old = read_history(settings.models_dir)[-1].before["primary"]
    assert old is not None

    def changing(place: int, line: Line) -> None:
        if place < 20:
            line |= {"model_version": old.version, "model_digest": old.digest, "prediction": 0.999}

    live(settings, 1, spoil=changing)

    assert looked(settings)[0].looks[-1].requests == 220


def test_what_a_split_treats_is_not_the_primarys(tmp_path: Path) -> None:
    settings = promotion(tmp_path)

    def treated(place: int, line: Line) -> None:
        line["arm"] = "treatment" if place % 4 == 0 else "control"
        if place % 4 == 0:
            line |= {"role": "shadow", "model_digest": "9" * 64}

    live(settings, 1, spoil=treated)

    watch, _ = looked(settings)

    assert watch.looks[-1].requests == 180
    assert outcomes(watch)["failures"] == "no_data"


def test_the_command_says_what_it_saw_and_follows_until_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = promotion(tmp_path)
    live(settings, 7)
    monkeypatch.setattr(watch_module, "settings", lambda: settings)
    monkeypatch.setattr("deploy.watch.time.sleep", lambda _: later(settings, 30))

    code = main(["--follow"])

    said = capsys.readouterr().out
    line = json.loads(said.splitlines()[-1])
    assert (code, line["status"], line["requests"], line["aliases"]) == (0, "survived", 1680, "none")
    assert said.count("==> watch of revision 4") == 2
    assert "  pass    the primary failed on 0.00% of 1,680 requests (at most 1.00%)" in said


@pytest.mark.parametrize(
    ("hours", "given", "status"), [(24, [], "survived"), (400, [], "open"), (400, ["--maturity", "1d"], "survived")]
)
def test_maturity_is_a_setting_and_an_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], hours: float, given: list[str],
    status: str,
) -> None:  # fmt: skip
    settings = promotion(tmp_path).model_copy(update={"label_maturity_h": hours})
    live(settings, 7)
    later(settings, 30)
    monkeypatch.setattr(watch_module, "settings", lambda: settings)

    main(given)

    assert json.loads(capsys.readouterr().out.splitlines()[-1])["status"] == status


@pytest.mark.parametrize("rate", [0.01, 0.05])
def test_a_rate_at_its_limit_is_called_above_it_in_few_of_many_watches(rate: float) -> None:
    rng = np.random.default_rng(11)
    crossed = 0
    for _ in range(300):
        hits = np.cumsum(rng.random(3000) < rate)
        crossed += any(rate_log_e(int(hits[n]), n + 1, rate) >= math.log(100) for n in range(199, 3000, 50))

    assert crossed <= 6


def test_a_rate_far_above_its_limit_is_seen_at_once() -> None:
    assert rate_log_e(20, 200, 0.01) > math.log(100)
    assert rate_log_e(2, 200, 0.01) < 0
