"""Spans tell what happened; a collector that does not listen changes nothing."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Wire
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from service.errors import NotReady
from service.tracing import NoTracer, OtlpTracer, Seen, Tracer, from_settings
from tests.otlp import Collector, collecting

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{CALLER}-01", f"00-{TRACE}-{CALLER}-00"


def trip(**changes: Any) -> Seen:
    """A request that ended just now."""
    begin = time.perf_counter() - 0.004
    stages = (("lookup", begin, 0.001), ("validate", begin + 0.001, 0.0005), ("primary", begin + 0.0015, 0.002))
    return replace(
        Seen("r1", "/predict", "primary", "7", "normal", None, begin, stages, total=0.0036),
        **changes,
    )


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


class Recorder(SpanExporter):
    """Keeps spans; fails when told to."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []
        self.fails = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self.fails:
            raise ConnectionError
        self.spans += spans
        return SpanExportResult.SUCCESS


def sent(collector: Collector, *trips: Seen, sample: float = 1.0) -> Tracer:
    """Trace and close."""
    tracer = from_settings(collector.url, sample, "1.2.3")
    for one in trips:
        tracer.seen(one)
    tracer.close()
    return tracer


def test_a_request_is_a_server_span_with_a_child_for_each_stage(collector: Collector) -> None:
    sent(collector, trip())

    whole, *stages = sorted(collector.wait_for(4), key=lambda s: (s.parent_id != "", s.begin))
    assert collector.paths == ["/v1/traces"]
    assert (whole.name, whole.kind, whole.parent_id) == ("POST /predict", Wire.SPAN_KIND_SERVER, "")
    assert [s.name for s in stages] == ["lookup", "validate", "primary"]
    assert {(s.trace_id, s.parent_id, s.kind) for s in stages} == {
        (whole.trace_id, whole.span_id, Wire.SPAN_KIND_INTERNAL)
    }


def test_spans_lie_within_their_request_at_the_time_it_happened(collector: Collector) -> None:
    before = time.time_ns() - 4_000_000

    sent(collector, trip())

    whole, *stages = sorted(collector.wait_for(4), key=lambda s: (s.parent_id != "", s.begin))
    assert before - 1_000_000 <= whole.begin <= time.time_ns()
    assert whole.end - whole.begin == pytest.approx(3_600_000, abs=1000)
    assert [s.end - s.begin for s in stages] == pytest.approx([1_000_000, 500_000, 2_000_000], abs=1000)
    assert all(whole.begin <= s.begin <= s.end <= whole.end for s in stages)
    assert all(earlier.end <= later.begin + 1000 for earlier, later in pairwise(stages))


def test_a_request_says_who_answered_and_which_service(collector: Collector) -> None:
    sent(collector, trip(stages=()))

    (whole,) = collector.wait_for(1)
    assert whole.attributes == {
        "http.request.method": "POST",
        "http.route": "/predict",
        "understudy.request_id": "r1",
        "understudy.role": "primary",
        "understudy.model_version": "7",
        "understudy.confidence": "normal",
    }
    assert whole.resource["service.name"] == "understudy"
    assert whole.resource["service.version"] == "1.2.3"
    assert not whole.failed


@pytest.mark.parametrize(
    ("reason", "faulty"),
    [
        ("primary_timeout", {"primary": "primary_timeout"}),
        ("store_unavailable", {"lookup": "store_unavailable"}),
        ("features_invalid", {"validate": "features_invalid"}),
        ("circuit_open", {}),
        ("both_failed: store_unavailable, primary_error", {"lookup": "store_unavailable", "primary": "primary_error"}),
    ],
)
def test_the_stage_at_fault_is_marked(collector: Collector, reason: str, faulty: dict[str, str]) -> None:
    sent(collector, trip(role="fallback", fallback_reason=reason))

    spans = collector.wait_for(4)
    assert {s.name: s.message for s in spans if s.failed} == faulty
    assert [s.attributes["understudy.fallback_reason"] for s in spans if s.parent_id == ""] == [reason]


def test_a_request_no_model_could_answer_is_an_error(collector: Collector) -> None:
    reason = "both_failed: circuit_open, fallback_absent"
    sent(collector, trip(stages=(), role="none", model_version=None, fallback_reason=reason, failed=True))

    (whole,) = collector.wait_for(1)
    assert (whole.failed, whole.message, whole.attributes["error.type"]) == (True, reason, "both_failed")
    assert "understudy.model_version" not in whole.attributes


def test_the_callers_trace_goes_on(collector: Collector) -> None:
    sent(collector, trip(traceparent=SAMPLED), sample=0.0)

    spans = collector.wait_for(4)
    assert {s.trace_id for s in spans} == {TRACE}
    assert [s.parent_id for s in spans if s.name == "POST /predict"] == [CALLER]


def test_a_caller_that_does_not_trace_is_not_traced() -> None:
    kept = Recorder()
    tracer = OtlpTracer(kept, 1.0, "1")

    tracer.seen(trip(traceparent=UNSAMPLED))
    tracer.close()

    assert kept.spans == []


@pytest.mark.parametrize(
    "header", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "ff" + SAMPLED[2:], "\0é"]
)
def test_a_trace_context_that_is_none_begins_a_new_trace(header: str) -> None:
    kept = Recorder()
    tracer = OtlpTracer(kept, 1.0, "1")

    tracer.seen(trip(traceparent=header))
    tracer.close()

    whole = kept.spans[-1]
    assert (whole.name, whole.parent) == ("POST /predict", None)
    assert whole.context is not None
    assert whole.context.trace_id not in (0, int(TRACE, 16))


def test_a_share_of_the_requests_is_traced() -> None:
    kept = Recorder()
    tracer = OtlpTracer(kept, 0.2, "1", queue=20_000)

    for _ in range(5000):
        tracer.seen(trip(stages=()))
    tracer.close()

    # Five standard deviations of a binomial count either way.
    assert len(kept.spans) == pytest.approx(1000, abs=5 * (5000 * 0.2 * 0.8) ** 0.5)


def test_a_request_the_queue_has_no_room_for_is_dropped_whole_and_counted(collector: Collector) -> None:
    collector.silent.set()
    lost: list[int] = []
    module = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    exporter = module.OTLPSpanExporter(collector.url + "/v1/traces", timeout=60)
    tracer = OtlpTracer(exporter, 1.0, "1", lost=lost.append, queue=8, every_s=0.01, patience_s=0.1)
    tracer.seen(trip())
    while not collector.paths:
        time.sleep(0.01)

    for _ in range(10):
        tracer.seen(trip())
    tracer.close()

    # The four spans under way have left the queue of eight: two requests more fit.
    assert lost == [4] * 8


def test_a_collector_that_never_answers_costs_a_request_next_to_nothing(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    collector.silent.set()
    lost: list[int] = []
    tracer = from_settings(collector.url, 1.0, "1", lost.append)
    taken = []

    with caplog.at_level(logging.INFO):
        for _ in range(20_000):
            begun = time.perf_counter()
            tracer.seen(trip())
            taken.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        tracer.close()

    # Waiting for the collector would be felt in every batch of 512; the machine may pause once or twice.
    assert sorted(taken)[-5] < 0.25
    assert time.perf_counter() - begun < 5
    # All but what the queue holds and the one batch under way: nothing piles up.
    assert sum(lost) == 4 * 20_000 - (2048 + 512)
    assert [r.message for r in caplog.records] == ["2560 spans were not sent before the end"]


def test_failing_calls_are_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    kept, lost = Recorder(), list[int]()
    kept.fails = True
    tracer = OtlpTracer(kept, 1.0, "1", lost=lost.append, every_s=0.01)

    for round_ in range(1, 4):
        tracer.seen(trip())
        while len(lost) < round_:
            time.sleep(0.005)
    kept.fails = False
    tracer.seen(trip())
    tracer.close()

    assert lost == [4, 4, 4]
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert len(kept.spans) == 4


@pytest.mark.parametrize("status", [400, 503])
def test_a_collector_that_refuses_writes_no_lines_of_the_exporters_own(
    collector: Collector, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    collector.status = status

    sent(collector, trip())

    assert {r.name for r in caplog.records} == {"understudy"}


def test_whatever_goes_wrong_stays_inside() -> None:
    lost: list[int] = []
    tracer = OtlpTracer(Recorder(), 1.0, "1", lost=lost.append)

    tracer.seen(trip(started=float("nan")))
    tracer.close()

    assert lost == [1]


def test_without_an_address_nothing_is_traced() -> None:
    assert isinstance(from_settings("", 1.0, "1"), NoTracer)


@pytest.mark.parametrize("address", ["collector:4318", "grpc://collector:4317", "http://", "4318"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(NotReady, match="send spans to http://host:4318"):
        from_settings(address, 1.0, "1")


def test_an_address_with_a_path_is_taken_as_it_is(collector: Collector) -> None:
    tracer = from_settings(collector.url + "/otlp/traces", 1.0, "1")
    tracer.seen(trip())
    tracer.close()

    assert collector.paths == ["/otlp/traces"]


def test_a_missing_exporter_is_named_with_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(importlib, "import_module", missing)

    with pytest.raises(NotReady, match="install the dependency group `tracing`"):
        from_settings("http://127.0.0.1:4318", 1.0, "1")
