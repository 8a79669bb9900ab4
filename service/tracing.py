"""Spans of the requests, over OTLP: one for the request and, below it, one for each stage.

The router hands over one finished record for each answer; spans are made from it afterwards, with the times it
holds, so nothing is opened, closed or passed along while a request is under way.
"""

from __future__ import annotations

import importlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.errors import NotReady

logger = logging.getLogger("understudy")

_EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
_TIMEOUT_S = 5.0
# Spans that may wait for the collector in one process (about 2 KB each), and spans sent to it in one call.
_QUEUE = 2048
_BATCH = 512
_SAY_EVERY_S = 300.0
_W3C = TraceContextTextMapPropagator()
# The stage at fault, where a reason does not begin with its name.
_FAULTY = {"store": "lookup", "features": "validate"}


@dataclass(frozen=True)
class Seen:
    """One answered request.

    Attributes:
        route: the endpoint that took it; the rows of a batch have a record each.
        started: when it was taken in, in seconds of ``time.perf_counter``.
        stages: name, begin (``perf_counter``) and duration, in seconds, of those that happened.
        total: duration until the answer was composed, in seconds.
        traceparent: the caller's W3C header, if it sent one.
        failed: whether no model could answer.
    """

    request_id: str
    route: str
    role: str
    model_version: str | None
    confidence: str
    fallback_reason: str | None
    started: float
    stages: Sequence[tuple[str, float, float]]
    total: float
    traceparent: str | None = None
    failed: bool = False


class Tracer(Protocol):
    """Is shown every answered request; never raises and never waits."""

    def seen(self, trip: Seen) -> None:
        """Take note of one request."""

    def close(self) -> None:
        """Send what is waiting, within a bound, and stop."""


class NoTracer:
    """Takes note of nothing."""

    def seen(self, trip: Seen) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class OtlpTracer:
    """Makes spans of requests and sends them to a collector from a thread of its own.

    A request whose caller sent a W3C ``traceparent`` is traced when the caller traces it; of the others, a share
    is. While the collector does not keep up, at most ``queue`` spans wait; requests beyond them are counted, not
    traced.

    Args:
        exporter: takes the spans.
        sample: share of requests without a trace context that are traced.
        version: of this service.
        lost: told how many spans will not arrive.
        queue: spans that may wait.
        every_s: longest a span waits to be sent, in seconds.
        patience_s: time :meth:`close` has, in seconds.
    """

    def __init__(
        self,
        exporter: SpanExporter,
        sample: float,
        version: str,
        *,
        lost: Callable[[int], object] = lambda count: None,
        queue: int = _QUEUE,
        every_s: float = 2.0,
        patience_s: float = 3.0,
    ) -> None:
        resource = Resource.create(
            {"service.name": "understudy", "service.version": version, "service.instance.id": str(uuid.uuid4())}
        )
        provider = TracerProvider(ParentBasedTraceIdRatio(sample), resource, shutdown_on_exit=False)
        self._outlet = _Outlet(exporter, lost)
        self._processor = BatchSpanProcessor(self._outlet, queue, every_s * 1000, min(_BATCH, queue))
        provider.add_span_processor(self._processor)
        self._tracer = provider.get_tracer("understudy", version)
        self._lost, self._queue, self._patience_s = lost, queue, patience_s
        self._made = 0

    def seen(self, trip: Seen) -> None:
        """Make the request's spans, unless it is not sampled or the queue has no room for them."""
        try:
            self._record(trip)
        except Exception:  # whatever is wrong with tracing, the request has been answered
            self._lost(1)
            logger.debug("a request could not be traced", exc_info=True)

    def _record(self, trip: Seen) -> None:
        # Stages are timed by a clock that no one sets; both clocks are read here together, for each request anew,
        # so that one request's spans fit each other and a step of the wall clock ends with it.
        shift = time.time_ns() - time.perf_counter_ns()
        parent = _W3C.extract({"traceparent": trip.traceparent}, Context()) if trip.traceparent else Context()
        whole = self._tracer.start_span(
            f"POST {trip.route}", parent, SpanKind.SERVER, start_time=_ns(trip.started) + shift
        )
        if not whole.is_recording():
            return
        count = 1 + len(trip.stages)
        # The queue would drop single spans, the oldest first; a request is traced whole or not at all.
        if self._made - self._outlet.taken + count > self._queue:
            self._lost(count)
            return
        self._made += count
        below = set_span_in_context(whole, parent)
        faults = _faults(trip.fallback_reason)
        for name, since, seconds in trip.stages:
            stage = self._tracer.start_span(name, below, start_time=_ns(since) + shift)
            _blame(stage, faults.get(name))
            stage.end(_ns(since + seconds) + shift)
        whole.set_attributes(_attributes(trip))
        _blame(whole, trip.fallback_reason if trip.failed else None)
        whole.end(_ns(trip.started + trip.total) + shift)

    def close(self) -> None:
        """Send what is waiting, within the patience; what is left then is lost."""
        # The processor's own patience is 30 s (opentelemetry 1.45).
        closing = threading.Thread(target=self._processor.shutdown, daemon=True)
        closing.start()
        closing.join(self._patience_s)
        self._outlet.shutdown()
        if closing.is_alive():
            logger.warning("%d spans were not sent before the end", self._made - self._outlet.delivered)


class _Outlet(SpanExporter):
    """An exporter that never raises, counts, and says at most once in five minutes that it fails."""

    def __init__(self, inner: SpanExporter, lost: Callable[[int], object]) -> None:
        self._inner = inner
        self._lost = lost
        self._said = float("-inf")
        self._failed = 0
        self._shut = threading.Lock()
        self.taken = 0
        self.delivered = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.taken += len(spans)
        try:
            result = self._inner.export(spans)
        except Exception:  # an exporter may fail in any way; each means the same here
            result = SpanExportResult.FAILURE
        if result is SpanExportResult.SUCCESS:
            self.delivered += len(spans)
        else:
            self._failed += len(spans)
            self._lost(len(spans))
            self._say()
        return result

    def _say(self) -> None:
        now = time.monotonic()
        if now - self._said >= _SAY_EVERY_S:
            self._said = now
            logger.warning("the collector does not take spans; %d lost so far, requests go on", self._failed)

    def shutdown(self) -> None:
        # Asked by the processor and, when that takes too long, by the tracer. What fails from now on has been told.
        self._said = float("inf")
        if self._shut.acquire(blocking=False):
            self._inner.shutdown()


def from_settings(
    endpoint: str, sample: float, version: str, lost: Callable[[int], object] = lambda count: None
) -> Tracer:
    """Return the tracer for a collector's address; for an empty one, a tracer that does nothing.

    Args:
        endpoint: of OTLP over HTTP, such as ``http://collector:4318``; ``/v1/traces`` is added when it has no path.
        sample: share of requests without a trace context that are traced.
        version: of this service.
        lost: told how many spans will not arrive.

    Raises:
        NotReady: when the exporter is not installed, or the address is none.
    """
    if not endpoint:
        return NoTracer()
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        msg = f"otlp_endpoint={endpoint} is no address; send spans to http://host:4318 or https://host/path"
        raise NotReady(msg)
    try:
        module: Any = importlib.import_module(_EXPORTER)
    except ModuleNotFoundError as error:
        msg = f"otlp_endpoint is set but {error.name} is not installed; install the dependency group `tracing`"
        raise NotReady(msg) from None
    # It writes a line for each failed call; the outlet sums them up.
    logging.getLogger(_EXPORTER).setLevel(logging.CRITICAL)
    url = endpoint if parts.path.strip("/") else endpoint.rstrip("/") + "/v1/traces"
    return OtlpTracer(module.OTLPSpanExporter(url, timeout=_TIMEOUT_S), sample, version, lost=lost)


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


def _attributes(trip: Seen) -> dict[str, str]:
    told = {
        "http.request.method": "POST",
        "http.route": trip.route,
        "understudy.request_id": trip.request_id,
        "understudy.role": trip.role,
        "understudy.confidence": trip.confidence,
        "understudy.model_version": trip.model_version,
        "understudy.fallback_reason": trip.fallback_reason,
    }
    return {name: value for name, value in told.items() if value is not None}


def _faults(reason: str | None) -> dict[str, str]:
    """Which stage failed and why: ``both_failed: primary_timeout, fallback_error`` names two."""
    if reason is None:
        return {}
    words = reason.removeprefix("both_failed: ").split(", ")
    return {_FAULTY.get(first, first): word for word in words for first in [word.partition("_")[0]]}


def _blame(span: Span, reason: str | None) -> None:
    if reason is not None:
        span.set_attribute("error.type", reason.partition(":")[0])
        span.set_status(StatusCode.ERROR, reason)
