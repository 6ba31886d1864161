"""A stand-in for Sentry, whose servers no machine here can run: its envelope endpoint on loopback, as the SDK's documentation
describes it, which misbehaves when told to. Like Sentry it drops an event whose id it has seen.
"""

from __future__ import annotations

import contextlib
import gzip
import http.server
import json
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stucktrace.collectors.netns import enter

from tests.harness import kernel

KEY = "5ec2e7a1b2c34d5e8f90a1b2c3d4e5f6"
HANG, DROP, GONE = "hang", "drop", "gone"
"""Never answers; takes the event and then breaks the connection without an answer; does not take it either."""


@dataclass
class Envelope:
    header: dict[str, Any]
    event: dict[str, Any]
    attachments: dict[str, tuple[str, bytes]]
    """File name -> content type and content."""


def parse(body: bytes) -> Envelope:
    """Lines of JSON headers, each item's followed by as many bytes as it names."""
    head, _, rest = body.partition(b"\n")
    event: dict[str, Any] = {}
    attachments = {}
    while rest:
        line, _, rest = rest.partition(b"\n")
        header = json.loads(line)
        payload, rest = rest[: header["length"]], rest[header["length"] + 1 :]
        if header["type"] == "event":
            assert not event and len(payload) < 1_000_000
            event = json.loads(payload)
        elif header["type"] == "attachment":
            attachments[header["filename"]] = (header["content_type"], payload)
        else:
            raise AssertionError(f"item of type {header['type']}")
    return Envelope(json.loads(head), event, attachments)


@dataclass
class Answer:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: str = "{}"


class Server:
    def __init__(self, certificate: Path | None, netns: str) -> None:
        self.certificate = certificate
        self._netns = f"/run/netns/{netns}" if netns else "/proc/self/ns/net"
        self.port = 0
        self.accepted: list[Envelope] = []
        """One an event id, in the order in which they came."""
        self.seen: Counter[str] = Counter()
        """Event id -> how often it was accepted."""
        self.requests: list[float] = []
        """When each came, monotonic."""
        self.errors: list[str] = []
        self.answers: deque[Answer | str] = deque()
        """To the next requests; then 200."""
        self.always: Answer | str | None = None
        self.connections: set[socket.socket] = set()
        self._server: http.server.ThreadingHTTPServer | None = None

    @property
    def dsn(self) -> str:
        return f"{'https' if self.certificate else 'http'}://{KEY}@localhost:{self.port}/42"

    @property
    def events(self) -> list[dict[str, Any]]:
        return [envelope.event for envelope in self.accepted]

    def start(self) -> None:
        """On the same port again after a `stop`."""
        address, handler = ("127.0.0.1", self.port), _handler(self)
        self._server = enter(self._netns, lambda: http.server.ThreadingHTTPServer(address, handler))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        if self.certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Connections are refused from now on, and those that are open break."""
        if self._server is not None:
            server, self._server = self._server, None
            server.shutdown()
            server.server_close()
            for connection in list(self.connections):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    @property
    def stopped(self) -> bool:
        return self._server is None

    def wait_for(self, count: int, deadline_s: float = 120) -> list[dict[str, Any]]:
        """So many events have been accepted."""
        kernel.wait_until(lambda: len(self.accepted) >= count, f"{count} events, not {len(self.accepted)}", deadline_s)
        assert not self.errors, self.errors
        return self.events

    def take(self, envelope: Envelope) -> None:
        identity = envelope.event["event_id"]
        self.seen[identity] += 1
        if self.seen[identity] == 1:
            self.accepted.append(envelope)


def _handler(server: Server) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            server.connections.add(self.connection)

        def finish(self) -> None:
            server.connections.discard(self.connection)
            super().finish()

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            body = self.rfile.read(length)
            if len(body) < length:
                # The sender was killed while it sent.
                self.close_connection = True
                return
            server.requests.append(time.monotonic())
            try:
                assert self.path == "/api/42/envelope/", self.path
                assert self.headers["Content-Type"] == "application/x-sentry-envelope"
                assert f"sentry_key={KEY}" in self.headers["X-Sentry-Auth"]
                envelope = parse(gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
                assert envelope.header["event_id"] == envelope.event["event_id"]
            except Exception as error:
                server.errors.append(repr(error))
                raise
            answer = server.answers.popleft() if server.answers else server.always or Answer(200)
            if server.stopped:
                answer = GONE
            if isinstance(answer, str):
                if answer == HANG:
                    self.rfile.read(1)
                elif answer == DROP:
                    server.take(envelope)
                self.close_connection = True
                return
            if answer.status == 200:
                server.take(envelope)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body.encode())

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@contextlib.contextmanager
def running(certificate: Path | None = None, netns: str = "") -> Iterator[Server]:
    server = Server(certificate, netns)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def self_signed(folder: Path) -> Path:
    """A key and a certificate for localhost that nobody trusts, in one file."""
    made = folder / "localhost.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", made.with_suffix(".key"), "-out", made.with_suffix(".crt")],
        check=True, capture_output=True,
    )  # fmt: skip
    made.write_bytes(made.with_suffix(".key").read_bytes() + made.with_suffix(".crt").read_bytes())
    return made
