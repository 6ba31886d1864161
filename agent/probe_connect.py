"""The way to a broker, each step timed apart: the name, the TCP connection, TLS. What fails is said in one line.

Every step has `STEP_S` seconds. The first bytes of the answer tell who it is that answers.
"""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from stucktrace.broker_urls import BrokerUrl

STEP_S = 10.0
_PATIENCE_S, _SECOND_QUESTION_S = 2.0, 2.0
_FAMILIES = {socket.AF_INET: "IPv4", socket.AF_INET6: "IPv6"}


class ProbeFailed(Exception):
    """There is no connection to measure on. `code` names the reason in the JSON answer."""

    def __init__(self, code: str, message: str, remedy: str, broken: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.remedy = remedy
        self.broken = broken
        """The broker is there and does not answer: that is a verdict on it."""


class Blocked(Exception):
    """The broker told us to wait (connection.blocked), or refuses writes: `str()` is its reason."""


class NoReply(Exception):
    """A round trip had no end: `str()` says what came instead."""

    def __init__(self, message: str, code: str = "no-reply") -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Phases:
    """How long each step took, in the order in which they were made."""

    seconds: dict[str, float] = field(default_factory=dict)
    address: str = ""
    """Where the connection went."""

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


@dataclass(frozen=True)
class Tls:
    ca: str | None = None
    """A file of certificates to trust instead of the system's."""
    insecure: bool = False


def connect(url: BrokerUrl, tls: Tls, phases: Phases) -> socket.socket:
    """A connected socket, encrypted where the URL says so, with `STEP_S` as its timeout."""
    if _is_address(url.host):
        entries = _resolve(url)
    else:
        with phases.timed("dns"):
            entries = _resolve(url)
    with phases.timed("tcp"):
        sock = _first(url, entries, phases)
    if not url.encrypted:
        return sock
    with phases.timed("tls"):
        return _encrypted(url, sock, tls)


def _is_address(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()


def _resolve(url: BrokerUrl) -> list[tuple[int, tuple[object, ...]]]:
    try:
        found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "no such name"
        raise ProbeFailed(
            "dns", f"the name {url.host} cannot be resolved: {why}", "see /etc/resolv.conf here, and the name itself"
        ) from None
    return [(entry[0], entry[4]) for entry in found]


def _first(url: BrokerUrl, entries: list[tuple[int, tuple[object, ...]]], phases: Phases) -> socket.socket:
    """Connects to the first address that answers."""
    problem = OSError()
    for family, address in entries:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.settimeout(STEP_S)
        try:
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Fails where the peer has reset it meanwhile.
            host, port = sock.getpeername()[:2]
        except OSError as error:
            problem = error
            sock.close()
            continue
        phases.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return sock
    where = f"{url.endpoint}" + (f" ({len(entries)} addresses)" if len(entries) > 1 else "")
    if isinstance(problem, ConnectionRefusedError):
        raise ProbeFailed(
            "refused", f"{where} refuses connections", "is the broker up, and does it listen on this port and address?"
        )
    if isinstance(problem, TimeoutError):
        raise ProbeFailed(
            "timeout",
            f"{where} does not answer a connect for {STEP_S:.0f} s",
            "a firewall or network policy drops the packets, or the host is gone",
        )
    why = os.strerror(problem.errno) if problem.errno else str(problem)
    raise ProbeFailed("unreachable", f"{where} cannot be reached: {why}", "see the routes from here (ip route get)")


def _encrypted(url: BrokerUrl, sock: socket.socket, tls: Tls) -> socket.socket:
    try:
        context = ssl.create_default_context(cafile=tls.ca)
    except (OSError, ssl.SSLError) as error:
        sock.close()
        why = (
            os.strerror(error.errno) if error.errno and not isinstance(error, ssl.SSLError) else "not PEM certificates"
        )
        raise ProbeFailed("tls", f"the file of --ca cannot be used: {why}", "give a file of PEM certificates") from None
    if tls.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    try:
        return context.wrap_socket(sock, server_hostname=url.host)
    except ssl.SSLCertVerificationError as error:
        raise ProbeFailed(
            "tls",
            f"the certificate of {url.endpoint} is not trusted: {error.verify_message.rstrip('.')}",
            "give its authority with --ca FILE; --insecure measures without checking",
        ) from None
    except TimeoutError:
        if _second_question(replace(url, scheme=url.scheme[:-1]), tls):
            raise ProbeFailed("tls", f"{url.endpoint} does not speak TLS", _plain(url)) from None
        raise ProbeFailed(
            "timeout", f"{url.endpoint} does not answer a TLS handshake for {STEP_S:.0f} s", _plain(url), broken=True
        ) from None
    except ssl.SSLError as error:
        reason = (error.reason or "handshake failure").replace("_", " ").lower()
        other = error.reason in (
            "WRONG_VERSION_NUMBER",
            "PACKET_LENGTH_TOO_LONG",
            "HTTP_REQUEST",
            "RECORD_LAYER_FAILURE",
        )
        message = f"{url.endpoint} does not speak TLS" if other else f"no TLS with {url.endpoint}: {reason}"
        raise ProbeFailed("tls", message, _plain(url)) from None
    except OSError:
        raise ProbeFailed("tls", f"{url.endpoint} ends the connection in the TLS handshake", _plain(url)) from None


def _plain(url: BrokerUrl) -> str:
    return f"is this the port without TLS? Then use {url.scheme[:-1]}://"


def greeting(sock: socket.socket, url: BrokerUrl, tls: Tls, header: bytes) -> bytes:
    """Sends a protocol's header and gives the first bytes of an answer that may be AMQP; else says who answers."""
    first, silent = b"", False
    for wait_s in (_PATIENCE_S, STEP_S - _PATIENCE_S):
        sock.settimeout(wait_s)
        try:
            if not silent:
                sock.sendall(header)
            first, silent = sock.recv(8), False
        except TimeoutError:
            silent = True
        except OSError:
            silent = False
        if first[:3] == b"\x01\x00\x00":
            return first
        if first:
            raise _stranger(first + _more(sock), url)
        # A server of lines waits for the end of ours.
        other = _second_question(url, tls) if wait_s == _PATIENCE_S else b""
        if other and other[:8] != header[:8]:
            raise _stranger(other, url)
        if not silent:
            break
    if not silent:
        raise ProbeFailed(
            "not-amqp",
            f"{url.endpoint} ends the connection instead of an AMQP greeting",
            _encrypt(url) or "is this an AMQP 0-9-1 port? A broker's own log says why it closed",
        )
    raise ProbeFailed(
        "silent",
        f"{url.endpoint} accepts connections, but there is no reply to the AMQP greeting (connection.start) for "
        f"{STEP_S:.0f} s",
        "the broker hangs, is stopped or overloaded: see its process and log" + _encrypt(url, "; or "),
        broken=True,
    )


def _second_question(url: BrokerUrl, tls: Tls) -> bytes:
    """What a server of lines answers (Redis, HTTP), which waits for the end of one; a broker ends the connection."""
    try:
        with connect(url, tls, Phases()) as sock:
            sock.settimeout(_SECOND_QUESTION_S)
            sock.sendall(b"PING\r\n\r\n")
            return sock.recv(64)
    except (OSError, ProbeFailed):
        return b""


def _encrypt(url: BrokerUrl, before: str = "") -> str:
    return "" if url.encrypted else f"{before}is this the port with TLS? Then use {url.scheme}s://"


def _more(sock: socket.socket) -> bytes:
    try:
        sock.settimeout(_SECOND_QUESTION_S)
        return sock.recv(64)
    except OSError:
        return b""


def _stranger(first: bytes, url: BrokerUrl) -> ProbeFailed:
    """Who answers there, by its first bytes."""
    if first[:2] == b"\x15\x03":
        return ProbeFailed("not-amqp", f"{url.endpoint} speaks TLS", f"use {url.scheme}s://")
    if first[:4] == b"AMQP" and len(first) >= 8:
        version = "-".join(str(byte) for byte in first[5:8])
        return ProbeFailed(
            "not-amqp", f"{url.endpoint} speaks AMQP {version}, not 0-9-1", "only AMQP 0-9-1 (RabbitMQ) can be probed"
        )
    if first[:5] == b"HTTP/":
        return ProbeFailed(
            "not-amqp",
            f"{url.endpoint} is an HTTP server",
            "RabbitMQ's management has 15672; AMQP has 5672, or 5671 with TLS",
        )
    if first[:5] in (b"+PONG", b"-ERR ", b"-NOAU", b"-DENI", b"-LOAD", b"-MISC"):
        return ProbeFailed("not-amqp", f"{url.endpoint} is a Redis server", "use redis://")
    text = first[:32].decode("ascii", "backslashreplace").strip()
    return ProbeFailed("not-amqp", f"{url.endpoint} does not speak AMQP: it answers {text!r}", "see what listens there")
