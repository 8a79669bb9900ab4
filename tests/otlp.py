"""A small collector: takes spans as OTLP over HTTP, in protobuf, and keeps them."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

PATIENCE_S = 20.0


@dataclass(frozen=True)
class TakenSpan:
    """One span as it arrived; ids in hex (``""``: none), times in nanoseconds since 1970."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    begin: int
    end: int
    attributes: dict[str, Any]
    resource: dict[str, Any]
    failed: bool
    message: str


@dataclass
class Collector:
    """What arrived, and how the collector behaves.

    Attributes:
        status: of its answers.
        silent: while set, calls are read and never answered.
        paths: where each call went.
    """

    url: str = ""
    status: int = 200
    silent: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    paths: list[str] = field(default_factory=list)
    spans: list[TakenSpan] = field(default_factory=list)

    def wait_for(self, count: int) -> list[TakenSpan]:
        """Return the spans when at least so many have arrived; fail after a while."""
        end = time.monotonic() + PATIENCE_S
        while len(self.spans) < count:
            assert time.monotonic() < end, f"{len(self.spans)} of {count} spans arrived in {PATIENCE_S} s"
            time.sleep(0.01)
        return list(self.spans)

    def take(self, path: str, body: bytes) -> None:
        """Keep what one call carries."""
        self.paths.append(path)
        message = ExportTraceServiceRequest.FromString(body)
        for part in message.resource_spans:
            resource = _plain(part.resource.attributes)
            self.spans += [_taken(span, resource) for scope in part.scope_spans for span in scope.spans]


@contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector on loopback until the block ends."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if collector.silent.is_set():
                collector.paths.append(self.path)
                collector.ended.wait()
                return
            answer = ExportTraceServiceResponse().SerializeToString()
            if collector.status == 200:
                collector.take(self.path, gzip.decompress(body) if self.headers["Content-Encoding"] else body)
            self.send_response(collector.status)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    collector.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield collector
    finally:
        collector.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _taken(span: Any, resource: dict[str, Any]) -> TakenSpan:
    return TakenSpan(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.kind,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        _plain(span.attributes),
        resource,
        span.status.code == span.status.STATUS_CODE_ERROR,
        span.status.message,
    )


def _plain(attributes: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in attributes}
