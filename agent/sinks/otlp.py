"""Alerts and figures to an OpenTelemetry collector: OTLP over HTTP, protobuf, one request a log record.

Of OpenTelemetry only the messages are used (opentelemetry-proto), not its SDK: that one retries by itself and keeps the
collector's answer, which decides here whether an alert is delivered, waits in the spool or is refused for good.
"""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from stucktrace import __version__
from stucktrace.node.figures import Figures
from stucktrace.settings import Settings
from stucktrace.sinks import retry_after
from stucktrace.sinks.page import clean
from stucktrace.sinks.sink import Item, SinkDown, SinkRefused

if TYPE_CHECKING:
    from google.protobuf.message import Message

CONNECT_S, READ_S = 5.0, 10.0
LONGEST_ANSWER_BYTES = 16_384
EVERY_S = 60.0
"""Between two exports of the figures."""
REFUSED = frozenset({400, 405, 413, 415, 422})
"""Statuses that are about this one request. After others, such as a wrong path or token, the same one can be taken."""
WRONG_S = 60.0
"""How long a collector is left alone whose path or token is wrong."""


class _Collector:
    """One path of a collector."""

    def __init__(self, settings: Settings, path: str) -> None:
        import urllib3

        self._url = f"{settings.otlp_endpoint}{path}"
        self._headers = {
            "Content-Type": "application/x-protobuf",
            "Content-Encoding": "gzip",
            "User-Agent": f"stucktrace/{__version__}",
            **dict(settings.otlp_headers),
        }
        timeout = urllib3.Timeout(connect=CONNECT_S, read=READ_S)
        self._pool = urllib3.PoolManager(1, timeout=timeout, retries=False)

    def post(self, message: Message) -> bytes:
        """The body of the answer. SinkDown, SinkRefused."""
        import urllib3

        body = gzip.compress(message.SerializeToString(), 6)
        try:
            answer = self._pool.request(
                "POST", self._url, body=body, headers=self._headers, redirect=False, preload_content=False
            )
            said = answer.read(LONGEST_ANSWER_BYTES, decode_content=False)
            answer.drain_conn() if len(said) < LONGEST_ANSWER_BYTES else answer.close()
            answer.release_conn()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise SinkDown(f"{self._url}: {_why(error)}") from None
        if answer.status == 200:
            return said
        reason = f"{self._url} answers {answer.status}"
        if answer.status in REFUSED:
            raise SinkRefused(reason)
        after_s = retry_after.seconds(answer.headers.get("Retry-After"))
        if answer.status in (401, 403, 404):
            raise SinkDown(reason, after_s or WRONG_S, "see that otlp.endpoint and otlp.headers are right")
        raise SinkDown(reason, after_s)

    def close(self) -> None:
        self._pool.clear()


class Logs:
    """One log record for each event of an alert."""

    name = "otlp"

    def __init__(self, settings: Settings) -> None:
        # Now, and not with the first alert: what is not installed has to be said at once.
        from stucktrace.sinks import otlp_records

        self._log_request = otlp_records.log_request
        self._collector = _Collector(settings, "/v1/logs")

    def deliver(self, item: Item) -> None:
        """Returns when the collector has taken it. SinkDown, SinkRefused."""
        from google.protobuf.message import DecodeError
        from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

        said = self._collector.post(self._log_request(item, time.time()))
        # What is no protobuf came from something in between that takes everything.
        with suppress(DecodeError):
            partial = ExportLogsServiceResponse.FromString(said).partial_success
            if partial.rejected_log_records:
                raise SinkRefused(f"the collector rejects the record: {clean(partial.error_message, 200)}")

    def close(self) -> None:
        self._collector.close()


class Metrics:
    """Sends the figures once a minute, from a thread of its own; what fails is left out, the next has all totals."""

    def __init__(
        self, settings: Settings, read: Callable[[], Figures | None], complain: Callable[[str, str], None]
    ) -> None:
        from stucktrace.sinks import otlp_records

        self._metric_request = otlp_records.metric_request
        self._collector = _Collector(settings, "/v1/metrics")
        self._read = read
        self._complain = complain
        self._closed = threading.Event()
        self._works = True
        self._thread = threading.Thread(target=self._run, name="otlp metrics", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        wait_s = 1.0
        while not self._closed.wait(wait_s):
            wait_s = self._send()

    def _send(self) -> float:
        """When to send again."""
        figures = self._read()
        if figures is None:
            return 1.0
        try:
            self._collector.post(self._metric_request(figures, time.time()))
        except (SinkDown, SinkRefused) as error:
            if self._works:
                self._complain(f"otlp metrics: {error.reason}", "they are left out until the collector takes them")
            self._works = False
            return max(EVERY_S, (error.retry_after_s if isinstance(error, SinkDown) else None) or 0.0)
        if not self._works:
            self._complain("otlp metrics: the collector takes them again", "")
        self._works = True
        return EVERY_S

    def close(self, deadline_s: float = 0.0) -> None:
        """With a deadline the last figures are sent first."""
        self._closed.set()
        if deadline_s:
            last = threading.Thread(target=self._send, name="otlp metrics", daemon=True)
            last.start()
            last.join(deadline_s)
        self._collector.close()


def _why(error: Exception) -> str:
    """In a few words, without addresses of objects."""
    # urllib3's ProtocolError holds its cause as an argument.
    inner = next((part for part in error.args if isinstance(part, Exception)), None)
    cause = getattr(error, "reason", None) or inner or error.__cause__ or error
    text = getattr(cause, "strerror", None) or str(cause).rpartition(">: ")[2] or type(cause).__name__
    return clean(str(text), 200)
