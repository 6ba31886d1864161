"""Stands in for an OpenTelemetry collector, which no registry here has: it takes OTLP over HTTP and decodes it with
OpenTelemetry's own messages. What it answers can be chosen."""

from __future__ import annotations

import contextlib
import gzip
import queue
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

MESSAGES = {"/v1/logs": ExportLogsServiceRequest, "/v1/metrics": ExportMetricsServiceRequest}


@dataclass
class Collector:
    port: int
    received: dict[str, queue.Queue[tuple[dict[str, str], Any]]] = field(
        default_factory=lambda: {path: queue.Queue() for path in MESSAGES}
    )
    """Path -> headers and message of what was taken there."""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def next(self, path: str, timeout_s: float = 120) -> Any:
        """The next message that was taken there."""
        return self.received[path].get(timeout=timeout_s)[1]


@contextlib.contextmanager
def collector(listener: socket.socket | None = None) -> Iterator[Collector]:
    """On a free port of loopback, or on a listening socket of another network namespace."""
    found: Collector

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = found.status
            if status == 200:
                assert self.headers["Content-Type"] == "application/x-protobuf"
                assert self.headers["Content-Encoding"] == "gzip"
                message = MESSAGES[self.path].FromString(gzip.decompress(body))
                found.received[self.path].put((dict(self.headers), message))
            self.send_response(status)
            for name, value in found.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(found.body)))
            self.end_headers()
            self.wfile.write(found.body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=listener is None)
    server.daemon_threads = True
    if listener is not None:
        server.socket.close()
        server.socket = listener
    found = Collector(server.socket.getsockname()[1])
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join(60)


def values(pairs: Any) -> dict[str, Any]:
    """Attributes as a dictionary."""
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(part) for part in value.array_value.values]
    return getattr(value, kind)
