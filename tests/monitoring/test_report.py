"""The page and the command."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from monitoring import compare_job
from monitoring.compare import compare
from monitoring.compare_job import open_logs
from monitoring.drift_report import split_halves, write_drift_reports
from monitoring.evidence import Evidence
from monitoring.pairing import FIRST, Paired
from monitoring.plots import plots
from monitoring.report import Companions, page
from monitoring.verdict import decide
from service.settings import Settings
from tests.monitoring.logs import Logs, campaign, contract, drop

Gather = Callable[[Logs], Evidence]


class Reader(HTMLParser):
    """Collects what a page refers to, its ids, and whether its tags are closed in order."""

    void = {"meta", "link", "br", "img", "path", "use", "rect", "hr", "input"}

    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.references += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "action")]
        self.ids += [v or "" for k, v in attrs if k == "id"]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.void:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.void:
            assert self.open.pop() == tag


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    return reader


def html_of(evidence: Evidence) -> str:
    return page(decide(evidence), evidence)


def test_the_page_loads_nothing_from_anywhere(gather: Gather) -> None:
    html = html_of(gather(campaign(2500)))
    reader = read(html)

    assert all(r.startswith("#") or r == "compare.json" for r in reader.references)
    assert not reader.tags & {"script", "link", "img", "iframe", "object"}
    assert not re.search(r"url\((?!#)|@import|https?:", html)
    assert reader.open == []


def test_no_two_elements_of_the_page_share_an_id_and_every_reference_is_met(gather: Gather) -> None:
    html = html_of(gather(campaign(2500)))
    reader = read(html)

    assert len(reader.ids) == len(set(reader.ids))
    used = {r[1:] for r in reader.references if r.startswith("#")} | set(re.findall(r"url\(#([^)]+)\)", html))
    assert used <= set(reader.ids)


def test_plots_are_the_same_every_time_and_take_the_pages_colours(gather: Gather) -> None:
    evidence = gather(campaign(2500))
    drawn = plots(evidence)

    assert set(drawn) == {"scores", "latency", "ledger", "running", "evidence", "calibration", "slices"}
    assert drawn == plots(evidence)
    for svg in drawn.values():
        assert "var(--ink)" in svg or "var(--muted)" in svg
        assert not re.search(r"#0[1-8]0[1-8]0[1-8]|<metadata|font-face|DejaVu", svg)


def test_the_same_model_twice_makes_a_page_without_an_empty_plot(gather: Gather) -> None:
    logs = campaign(2500)
    for prediction, line in zip(logs.predictions, logs.shadow, strict=True):
        line["prediction"] = prediction["prediction"]
    evidence = gather(logs)

    html = html_of(evidence)

    assert "running" not in plots(evidence)
    assert "Log-loss gain over time" not in html
    assert "no difference" in html
    assert "too few blocks" not in html


def test_the_page_says_verdict_versions_and_losses(gather: Gather) -> None:
    logs = campaign(2500)
    drop(logs.shadow[5], "queue_full")

    html = html_of(gather(logs))

    assert "<h1>Promote</h1>" in html
    assert "a" * 64 in html
    assert "b" * 64 in html
    assert "2,500 sampled = 2,499 scored + 1 dropped + 0 without a record" in html


@pytest.mark.parametrize("word", ["<script>alert(1)</script>", "a&b", '"quoted"'])
def test_what_callers_send_is_escaped(gather: Gather, word: str) -> None:
    logs = campaign(300)
    for line in (*logs.predictions, *logs.shadow, *logs.labels):
        line["request_id"] += word
    for prediction in logs.predictions:
        prediction["vector"]["carrier"] = word
        prediction["fallback_reason"] = word

    html = html_of(gather(logs))

    assert "<script>" not in html
    assert read(html).open == []


@pytest.mark.parametrize("labels", [True, False])
def test_a_page_is_made_whatever_is_missing(gather: Gather, labels: bool) -> None:
    logs = campaign(30)
    for line in logs.shadow:
        drop(line, "error")
    if not labels:
        logs.labels.clear()

    html = html_of(gather(logs))

    assert "<h1>Hold</h1>" in html
    assert "nothing can be said about quality yet" in html


def test_a_page_without_label_of_one_class_or_single_block_is_made(gather: Gather) -> None:
    logs = campaign(300, days=2)
    for line in logs.labels:
        line["label"] = 0.0

    assert "<h1>Hold</h1>" in html_of(gather(logs))


def test_nothing_in_monitoring_names_the_reference_problem() -> None:
    words = re.compile(r"flight|carrier|airport|airline|tailnum|departure|arriv(al|es)|\borigin\b", re.IGNORECASE)
    ours = ("export", "labels", "pairing", "campaign", "statistics", "evidence", "performance", "compare", "criteria",
            "verdict", "plots", "report", "drift_report", "compare_job")  # fmt: skip
    folder = Path(compare_job.__file__).parent
    files = [folder / f"{name}.py" for name in ours] + [folder / "templates" / "compare.html"]

    assert {f.name: words.findall(f.read_text()) for f in files if words.search(f.read_text())} == {}


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    settings = Settings(state_dir=tmp_path / "state", models_dir=tmp_path / "models", clock="2013-10-16T00:00:00+00:00")
    monkeypatch.setattr(compare_job, "settings", lambda: settings)
    yield settings.state_dir


def test_the_command_writes_page_and_data_and_ends_with_one_json_line(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = campaign(2500)
    drop(logs.shadow[5], "timeout")
    logs.write(state / "logs")

    code = compare_job.main(["--no-evidently"])

    out = capsys.readouterr().out
    last = json.loads(out.splitlines()[-1])
    assert code == 0
    assert list(last) == ["verdict", "reasons", "sampled", "scored", "dropped", "report", "campaigns"]
    assert (last["verdict"], last["sampled"], last["scored"], last["dropped"]) == ("promote", 2500, 2499, 1)
    assert Path(last["report"]) == state / "reports" / "compare.html"
    assert json.loads((state / "reports" / "compare.json").read_text())["verdict"]["decision"] == "promote"
    assert "PROMOTE  shadow version 2" in out


@pytest.mark.parametrize(("shadow", "message"), [(True, "no predictions"), (False, "seat a shadow with `make train`")])
def test_the_command_fails_clearly_when_there_is_nothing_to_compare(
    state: Path, capsys: pytest.CaptureFixture[str], shadow: bool, message: str
) -> None:
    logs = campaign(20)
    (logs.predictions if shadow else logs.shadow).clear()
    logs.write(state / "logs")

    assert compare_job.main(["--no-evidently"]) == 1

    assert message in capsys.readouterr().err
    assert not (state / "reports").exists()


def test_evidently_leaves_out_a_column_without_values_and_says_so(
    pair: Callable[[Logs], Paired], tmp_path: Path
) -> None:
    logs = campaign(300)
    for line in logs.predictions:
        line["vector"].update(wind_gust=None, carrier=None)
    frame = pair(logs).frame

    made = write_drift_reports(frame, contract(), tmp_path / "out")

    assert [name for name, _ in made.pages] == ["evidently_drift.html", "evidently_quality.html"]
    told, *left_out = made.remarks
    assert re.fullmatch(r"Evidently's tests: \d+ of \d+ columns moved from the first to the second half.*", told)
    assert [remark.split()[0] for remark in left_out] == ["carrier", "wind_gust"]
    assert all((tmp_path / "out" / name).stat().st_size > 100_000 for name, _ in made.pages)


def test_without_enough_rows_no_evidently_report_is_made_and_no_old_one_is_left(
    pair: Callable[[Logs], Paired], tmp_path: Path
) -> None:
    frame = pair(campaign(20)).frame
    (tmp_path / "evidently_drift.html").write_text("old")

    made = write_drift_reports(frame, contract(), tmp_path)

    assert made.pages == ()
    assert len(made.remarks) == 2
    assert not (tmp_path / "evidently_drift.html").exists()
    assert split_halves(frame, contract()) is None


def test_further_pages_are_linked(tmp_path: Path) -> None:
    logs = campaign(50).write(tmp_path)
    evidence = compare(open_logs(logs, contract()).of(FIRST), contract())

    html = page(decide(evidence), evidence, Companions((("other.html", "More"),), ("nothing for that",)))

    assert '<a href="other.html">More</a>' in html
    assert "Nothing for that." in html
