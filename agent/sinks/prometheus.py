"""/metrics in Prometheus' text format and /healthz, over HTTP, from the last figures of the loop.

Nothing of a request can hold the agent: a few threads at most, a deadline for each connection, and the rest is closed.
"""

from __future__ import annotations

import errno
import io
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any

from prometheus_client import CollectorRegistry, Metric, exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from stucktrace import __version__
from stucktrace.errors import StucktraceError
from stucktrace.node.figures import BOUNDS_S, Durations, Figures
from stucktrace.sinks.measures import COUNTER, MEASURES, Measure

PREFIX = "stucktrace_"
HEALTHY_S = 10.0
"""A loop that has not turned for this long is not healthy."""
CONNECTIONS = 8
DEADLINE_S = 5.0
LONGEST_HEAD_BYTES = 16_384
PAUSE_S = 1.0
"""Before the next connection is accepted, where the kernel has no file descriptor for it."""


class Collector:
    """Figures as metric families. Holds no state of its own, so what is gone from the figures is gone here."""

    def __init__(self, read: Callable[[], Figures | None]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        figures = self._read()
        if figures is not None:
            for measure in MEASURES:
                yield _family(measure, figures)


def _family(measure: Measure, figures: Figures) -> Metric:
    name = PREFIX + measure.name + (f"_{measure.unit}" if measure.unit else "")
    if measure.durations is not None:
        durations = measure.durations(figures)
        return HistogramMetricFamily(name, measure.text, _buckets(durations), durations.total_s)
    family = (CounterMetricFamily if measure.kind == COUNTER else GaugeMetricFamily)(
        name, measure.text, labels=measure.labels
    )
    for labels, value in sorted(measure.values(figures).items()) if measure.values else ():
        family.add_metric(labels, value)
    return family


def _buckets(durations: Durations) -> list[tuple[str, float]]:
    """Cumulated, as Prometheus wants them."""
    found, total = [], 0
    for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), durations.counts, strict=True):
        total += count
        found.append((bound, float(total)))
    return found


def health(figures: Figures | None, now_s: float) -> tuple[HTTPStatus, str]:
    """`now_s`: CLOCK_MONOTONIC."""
    if figures is None:
        return HTTPStatus.SERVICE_UNAVAILABLE, "starting: the loop has not turned yet"
    age_s = now_s - figures.turned_s
    if age_s <= HEALTHY_S:
        return HTTPStatus.OK, "ok"
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - age_s))
    return HTTPStatus.SERVICE_UNAVAILABLE, f"the loop has not turned since {since}, for {age_s:.0f} s"


class Server:
    def __init__(self, listener: socket.socket, read: Callable[[], Figures | None]) -> None:
        self._listener = listener
        self._read = read
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(Collector(read))
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        self._closed = False
        threading.Thread(target=self._accept, name="metrics", daemon=True).start()

    @property
    def address(self) -> str:
        """HOST:PORT that it listens on."""
        host, port = self._listener.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if not self._closed:
                    time.sleep(PAUSE_S)
                continue
            if not self._free.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._answer, args=(connection,), name="metrics", daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        try:
            # A client that goes away or sends nonsense is no news.
            with connection, suppress(OSError, ValueError):
                _Handler(_read_head(connection), connection, self._page)
        finally:
            self._free.release()

    def _page(self, path: str, accepts: str) -> tuple[HTTPStatus, str, bytes]:
        """Status, content type and body."""
        if path == "/metrics":
            encode, content_type = exposition.choose_encoder(accepts)
            return HTTPStatus.OK, content_type, encode(self._registry)
        status, text = health(self._read(), time.monotonic())
        if path != "/healthz":
            status, text = HTTPStatus.NOT_FOUND, "there are /metrics and /healthz"
        return status, "text/plain; charset=utf-8", f"{text}\n".encode()

    def close(self) -> None:
        self._closed = True
        # Wakes the thread that accepts.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def _read_head(connection: socket.socket) -> bytes:
    """A request up to its empty line, or what came of it. TimeoutError."""
    end, head = time.monotonic() + DEADLINE_S, b""
    while b"\r\n\r\n" not in head and b"\n\n" not in head and len(head) < LONGEST_HEAD_BYTES:
        connection.settimeout(max(0.001, end - time.monotonic()))
        part = connection.recv(LONGEST_HEAD_BYTES)
        if not part:
            break
        head += part
        if time.monotonic() >= end:
            raise TimeoutError
    connection.settimeout(DEADLINE_S)
    return head


class _Handler(BaseHTTPRequestHandler):
    """One request a connection."""

    server_version = f"stucktrace/{__version__}"
    sys_version = ""

    def __init__(
        self, head: bytes, connection: socket.socket, page: Callable[[str, str], tuple[HTTPStatus, str, bytes]]
    ) -> None:
        self._head = head
        self._page = page
        super().__init__(connection, ("", 0), None)  # type: ignore[arg-type]

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BufferedReader(io.BytesIO(self._head))

    def do_GET(self) -> None:
        status, content_type, body = self._page(self.path.partition("?")[0], self.headers.get("Accept", ""))
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        """Nothing: requests are no news."""


def serve(address: str, read: Callable[[], Figures | None]) -> Server:
    """`address`: HOST:PORT of an IP address, as settings give it; port 0 is any free one. StucktraceError."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, int(port)))
        listener.listen(CONNECTIONS)
    except OSError as error:
        listener.close()
        remedy = "choose another address for --metrics"
        if error.errno == errno.EADDRINUSE:
            remedy += f", or end what listens there (ss -ltnp sport = :{port})"
        raise StucktraceError(f"metrics on {address}: {os.strerror(error.errno or 0)}", remedy) from None
    return Server(listener, read)
