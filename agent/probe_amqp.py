"""Confirm round trips against an AMQP 0-9-1 broker, by way of py-amqp. Nothing is left there afterwards.

Two kinds of messages, in turn:
- persistent, into a durable queue: the broker writes each to disk before it confirms it. The queue is auto-delete and
  has one consumer, which is ours and takes one message, so it goes with our connection, however that ends; should the
  broker crash meanwhile, the queue expires a minute after its restart. (An exclusive queue would go as surely, but is
  never durable: rabbit_channel.erl, handling of queue.declare.)
- transient, to a queue that does not exist: the broker drops it and confirms at once, so this is the broker without its
  disk and queues.
Where the user may not declare a queue, only the second kind is sent. Source: RabbitMQ's guides on confirms and queues.
"""

from __future__ import annotations

import platform
import socket
import struct
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

import amqp
from amqp import exceptions, spec
from amqp.sasl import AMQPLAIN, PLAIN
from amqp.transport import AMQP_PROTOCOL_HEADER, TCPTransport
from stucktrace.broker_urls import BrokerUrl
from stucktrace.probe_connect import STEP_S, Blocked, NoReply, Phases, ProbeFailed, Tls, connect, greeting

PERSISTENT, TRANSIENT = "persistent", "transient"
BODY = b"stucktrace probe-broker"
HEARTBEAT_S = 20
"""The broker notices by it that we are gone, also while it has an alarm and does not read from us."""
HELD_S = 300.0
"""The broker closes a channel that keeps a delivery for longer than its consumer_timeout (30 min by default)."""
EXPIRES_MS = 60_000
_CLOSE_S = 2.0
_MOST_AT_ONCE = 1 << 16
_NONSENSE = (ValueError, LookupError, TypeError, AttributeError, struct.error)
_OUT_OF_STEP = (exceptions.UnexpectedFrame, exceptions.AMQPNotImplementedError, exceptions.FrameSyntaxError)
"""Of bytes that make no sense to py-amqp; a broker's own word for the same comes with the method it closes with."""


class _Transport(TCPTransport):  # type: ignore[misc]
    """A connection that stands already, and what was read of it so far. Each step has its time, whatever comes."""

    def __init__(self, sock: socket.socket, first: bytes, host: str) -> None:
        super().__init__(host)
        self._ready, self._first = sock, first
        self.within(STEP_S)

    def within(self, seconds: float) -> None:
        """What is sent and read from here on has so long in all; heartbeats do not prolong it."""
        self._until = time.monotonic() + seconds
        self._ready.settimeout(seconds)

    def connect(self) -> None:
        self.sock = self._ready
        self._setup_transport()
        self._read_buffer, self._quick_recv = self._first, self._receive
        self.connected = True

    def _receive(self, most: int) -> bytes:
        left_s = self._until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._ready.settimeout(left_s)
        return self._ready.recv(min(most, _MOST_AT_ONCE))


class _Connection(amqp.Connection):  # type: ignore[misc]
    """Keeps the reason of connection.blocked, which py-amqp skips."""

    _METHODS: ClassVar[dict[Any, Any]] = {
        **amqp.Connection._METHODS,
        spec.Connection.Blocked: spec.method(spec.Connection.Blocked, "s"),
    }

    def __init__(self, transport: _Transport, **options: Any) -> None:
        super().__init__(**options)
        self._given = transport

    def Transport(self, *_: Any, **__: Any) -> _Transport:
        return self._given

    def _on_blocked(self, reason: str = "") -> None:
        raise Blocked(reason)


class AmqpProbe:
    """One connection with one channel in confirm mode."""

    def __init__(self, url: BrokerUrl, tls: Tls, phases: Phases) -> None:
        self.url = url
        self.server = ""
        self.kinds: tuple[str, ...] = ()
        self.notes: list[str] = []
        self._held: tuple[int, float] | None = None
        """(delivery tag, since when) of the one message that came: until it is acknowledged no other does."""
        sock = connect(url, tls, phases)
        with phases.timed("amqp"):
            first = greeting(sock, url, tls, AMQP_PROTOCOL_HEADER)
            self._transport = _Transport(sock, first, url.endpoint)
            self._connection = _Connection(self._transport, **self._options())
            with self._said("connection.open"):
                self._connection.connect()
        properties = self._connection.server_properties
        self.server = " ".join(str(properties.get(key) or "") for key in ("product", "version")).strip()
        with phases.timed("channel"), self._said("channel.open"):
            self._channel = self._connection.channel()
        with self._said("queue.declare"):
            self._queue = self._declare()
            self.kinds = (PERSISTENT, TRANSIENT) if self._queue else (TRANSIENT,)
        with self._said("confirm.select"):
            self._channel.confirm_select()

    def _options(self) -> dict[str, Any]:
        user, password = self.url.user or "guest", self.url.password or ("" if self.url.user else "guest")
        name = {
            "product": "stucktrace probe-broker",
            "connection_name": f"stucktrace probe-broker on {platform.node()}",
        }
        return {
            "host": self.url.endpoint,
            "authentication": (PLAIN(user, password), AMQPLAIN(user, password)),
            "virtual_host": self.url.vhost,
            "client_properties": name,
            "connect_timeout": STEP_S,
            "heartbeat": HEARTBEAT_S,
        }

    def _declare(self) -> str:
        """The queue's name; "" where the user may not declare one."""
        name = f"stucktrace.probe.{uuid.uuid4().hex}"
        arguments = {"x-expires": EXPIRES_MS, "x-queue-type": "classic"}
        declared = False
        try:
            self._channel.queue_declare(name, durable=True, exclusive=False, auto_delete=True, arguments=arguments)
            declared = True
            self._channel.basic_qos(0, 1, False)
            self._channel.basic_consume(name, callback=self._keep)
        except exceptions.AccessRefused:
            may_not = "read from" if declared else "declare"
            self.notes.append(f"user {self.url.user or 'guest'} may not {may_not} a queue, so no message went to disk")
        except exceptions.ChannelError as error:
            self.notes.append(f"the broker refuses a queue ({_words(error)}), so no message went to disk")
        else:
            return name
        self._channel = self._connection.channel()
        if declared:
            # Without a consumer it does not go with our connection.
            self._channel.queue_delete(name)
        return ""

    def _keep(self, message: Any) -> None:
        self._held = message.delivery_tag, time.monotonic()

    def round_trip_s(self, kind: str) -> float:
        """Publishes one message and waits for its confirm. Raises Blocked, NoReply, ProbeFailed."""
        message = amqp.Message(BODY, delivery_mode=2 if kind == PERSISTENT else 1)
        key = self._queue if kind == PERSISTENT else f"stucktrace.nowhere.{uuid.uuid4().hex}"
        outcome: list[Any] = []
        self._transport.within(STEP_S)
        if self._held is not None and time.monotonic() - self._held[1] > HELD_S:
            with suppress(exceptions.AMQPError, OSError):
                self._channel.basic_ack(self._held[0])
            self._held = None
        began = time.perf_counter()
        try:
            self._channel.send_method(spec.Basic.Publish, "Bssbb", (0, "", key, False, False), message)
            self._channel.wait([spec.Basic.Ack, spec.Basic.Nack], callback=lambda method, *_: outcome.append(method))
        except TimeoutError:
            raise NoReply(f"no confirm for {STEP_S:.0f} s") from None
        except exceptions.AccessRefused as error:
            raise ProbeFailed(
                "permission",
                f"user {self.url.user or 'guest'} may not publish to the default exchange: {error.reply_text}",
                f"rabbitmqctl set_permissions -p {self.url.vhost} {self.url.user or 'guest'} '.*' '.*' '.*'",
            ) from None
        except (exceptions.AMQPError, OSError, *_NONSENSE) as error:
            if _is_nonsense(error):
                raise NoReply("what comes from the broker is no AMQP 0-9-1", "not-amqp") from None
            raise NoReply(f"the broker ended the connection: {_words(error)}", "connection-lost") from None
        if outcome and outcome[0] == spec.Basic.Nack:
            raise NoReply("the broker refused a message (basic.nack)", "nack")
        return time.perf_counter() - began

    def rest(self, seconds: float) -> None:
        """A pause between two round trips, with heartbeats."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, HEARTBEAT_S / 4))
            if left > HEARTBEAT_S / 4:
                self._transport.within(STEP_S)
                # That the connection is gone shows in the next round trip.
                with suppress(exceptions.AMQPError, OSError):
                    self._connection.send_heartbeat()

    def close(self, *, polite: bool = True) -> None:
        """The queue goes with the connection. A broker that does not read is not asked."""
        transport = self._connection._transport
        if transport is None or transport.sock is None:
            return
        with suppress(Exception):
            self._transport.within(_CLOSE_S)
            if polite:
                self._connection.close()
        with suppress(Exception):
            self._connection.collect()

    @contextmanager
    def _said(self, step: str) -> Iterator[None]:
        """What went wrong in a step, in one line."""
        self._transport.within(STEP_S)
        try:
            yield
        except TimeoutError:
            raise self._no_reply(step) from None
        except Blocked:
            raise
        except (exceptions.AMQPError, OSError, *_NONSENSE) as error:
            if _is_nonsense(error):
                raise ProbeFailed(
                    "not-amqp",
                    f"{self.url.endpoint} sends what is no AMQP 0-9-1 instead of a reply to {step}",
                    "see what listens there",
                ) from None
            raise self._refused(step, error) from None

    def _no_reply(self, step: str) -> ProbeFailed:
        if step == "connection.open" and self._connection.heartbeat is None:
            step = "connection.start-ok (the login)"
        return ProbeFailed(
            "silent",
            f"{self.url.endpoint} greets, but there is no reply to {step} for {STEP_S:.0f} s",
            "the broker hangs or is overloaded, or waits for something itself (its disk, an LDAP server, its cluster)",
            broken=True,
        )

    def _refused(self, step: str, error: Exception) -> ProbeFailed:
        code, text = getattr(error, "reply_code", 0) or 0, _words(error)
        user, vhost = self.url.user or "guest", self.url.vhost
        if code == 403 and step == "connection.open":
            hint = "guest may only log in from the broker's own host; " if user == "guest" else ""
            return ProbeFailed(
                "authentication",
                f"the login of user {user} is refused: {text}",
                f"{hint}check user and password (rabbitmqctl authenticate_user); what is special is %-encoded in a URL",
            )
        if code == 530 and "not found" in text:
            return ProbeFailed(
                "vhost",
                f"there is no virtual host {vhost} on this broker",
                "rabbitmqctl list_vhosts shows them; / inside a name is %2F in the URL",
            )
        if code == 530:
            return ProbeFailed(
                "permission",
                f"user {user} may not use virtual host {vhost}: {text}",
                f"rabbitmqctl set_permissions -p {vhost} {user} '.*' '.*' '.*'",
            )
        if "auth mechanism" in text:
            return ProbeFailed(
                "authentication",
                f"{self.url.endpoint} takes no password: {text}",
                "enable PLAIN there (auth_mechanisms), or probe a listener that has it",
            )
        if step == "connection.open" and self._connection.heartbeat is None and isinstance(error, OSError):
            return ProbeFailed(
                "authentication",
                f"{self.url.endpoint} ends the connection in the login",
                "check user and password; the broker's log has the reason",
            )
        return ProbeFailed("refused", f"the broker refuses {step}: {text}", "the broker's log has the reason")


def _is_nonsense(error: Exception) -> bool:
    """The bytes make no sense, as opposed to a broker that says no."""
    said = getattr(error, "method_sig", None)
    return isinstance(error, _NONSENSE) or (isinstance(error, _OUT_OF_STEP) and not said)


def _words(error: Exception) -> str:
    text = getattr(error, "reply_text", None) or (error.args[-1] if error.args else "") or type(error).__name__
    return str(text).strip().removesuffix(".")
