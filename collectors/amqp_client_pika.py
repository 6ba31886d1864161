"""pika's connections as its objects have them: what was negotiated, whether it is blocked, the channels.

Sources: `pika.connection.Connection`, `pika.heartbeat.HeartbeatChecker`, `pika.channel.Channel`,
`pika.adapters.blocking_connection`, `pika.callback.CallbackManager.pending` of 1.0 to 1.4. With a
blocked_connection_timeout the connection keeps a timer while it is blocked. Without one it keeps nothing; the last
method is then told by dead frames of `pending`, which is asked for each method, if all of them name the same one.
"""

from __future__ import annotations

from collections.abc import Iterator

from stucktrace.collectors import dead_frames
from stucktrace.collectors.amqp_client_objects import Things, in_frames
from stucktrace.collectors.amqp_client_pyamqp import ASSUMED, ASSUMED_OF_COUNTS, more_often
from stucktrace.facts import AmqpChannel, AmqpFact, AmqpMethod

CLIENT = "pika"
FILES = ("/pika/",)
_CONNECTION = ("params", "callbacks", "_heartbeat_checker", "_blocked_conn_timer", "_channels", "_transport")
_OPEN = 2
_CONSUMES = ("process_data_events", "start_consuming", "consume")
_WAITS = ("basic_publish", *_CONSUMES)
_SHOWN_CHANNELS = 256


def connections(things: Things, tid: int) -> Iterator[int]:
    """Those that a frame of the thread has in hand, innermost first."""
    return in_frames(things, tid, FILES, _connection_of)


def _connection_of(things: Things, address: int | None) -> int | None:
    """Of a connection, a blocking one around it, or a channel of either."""
    for _ in range(4):
        if not address:
            return None
        held = things.attributes(address, ("_heartbeat_checker", "callbacks", "_impl", "_connection", "connection"))
        if "_heartbeat_checker" in held and "callbacks" in held:
            return address
        # A blocking channel has both: the connection is the shorter way.
        address = held.get("_connection") or held.get("_impl") or held.get("connection")
    return None


def read(things: Things, connection: int, tid: int | None) -> tuple[int | None, AmqpFact]:
    """(the socket's descriptor, the fact without its addresses). `tid`: a thread that waits on it."""
    held = things.attributes(connection, _CONNECTION)
    params = things.attributes(held.get("params"), ("_heartbeat", "_blocked_connection_timeout"))
    timed = not things.is_none(params.get("_blocked_connection_timeout")) and bool(params)
    timer = held.get("_blocked_conn_timer")
    waits_for, waiting = _awaited(things, tid, connection) if tid is not None else ("", None)
    blocked, assumes, last = None, "", None
    if timed and timer:
        blocked = None if things.is_none(timer) else AmqpMethod("connection.blocked")
    elif tid is not None:
        last = _last_method(things, tid, held.get("callbacks"))
        if last == "connection.blocked":
            blocked, assumes = AmqpMethod(last), ASSUMED
        elif last is None and waits_for not in ("", "events") and _blocks(things) > 0:
            blocked, assumes = AmqpMethod("connection.blocked"), ASSUMED_OF_COUNTS
    # While the connection is set up this is still what the program asked for.
    negotiated = "_heartbeat_checker" in held and bool(things.values.pairs(held.get("_channels") or 0))
    return things.fd(things.attribute(held.get("_transport"), "_sock")), AmqpFact(
        "",
        "",
        "memory",
        client=CLIENT,
        heartbeat_s=things.number(params.get("_heartbeat")) if negotiated else None,
        heartbeat_source="client" if negotiated else "",
        last_in=AmqpMethod(last) if last else None,
        blocked=blocked,
        blocked_assumes=assumes,
        channels=_channels(things, held.get("_channels")),
        waits_for=waits_for,
        waiting_channel=waiting,
        waiting_tid=tid,
    )


def _channels(things: Things, table: int | None) -> tuple[AmqpChannel, ...]:
    found = []
    for key, channel in ((things.values.pairs(table) if table else None) or ())[:_SHOWN_CHANNELS]:
        number = things.values.integer(key)
        state = things.values.integer(things.attribute(channel, "_state") or 0)
        if number:
            found.append(AmqpChannel(number, is_open=None if state is None else state == _OPEN))
    return tuple(sorted(found, key=lambda channel: channel.number))


def _awaited(things: Things, tid: int, connection: int) -> tuple[str, int | None]:
    """What a blocking channel of this connection waits for, and which one: a callback may wait for another one's."""
    for place in things.stacks.of(tid):
        if not place.file.endswith("/pika/adapters/blocking_connection.py") or place.function not in _WAITS:
            continue
        this = things.stacks.variable(place, "self")
        if _connection_of(things, this) != connection:
            return "", None
        if place.function in _CONSUMES:
            return "events", None
        channel = things.attributes(this, ("_impl", "_delivery_confirmation"))
        number = things.values.integer(things.attribute(channel.get("_impl"), "channel_number") or 0)
        confirms = things.truth(channel.get("_delivery_confirmation"))
        return "confirm" if confirms else "room to send", number
    return "", None


def _last_method(things: Things, tid: int, callbacks: int | None) -> str | None:
    """As AMQP names it; None unless all that lies there agrees."""
    names = set()
    for dead in dead_frames.read(things.stacks, tid):
        asked = dead.function == "pending" and dead.file.endswith("/pika/callback.py")
        if asked and dead.variables.get("self") == callbacks:
            names.add(things.values.text(dead.variables.get("key") or 0, 64))
    name = names.pop() if len(names) == 1 else None
    return _spelled(name) if name else None


def _blocks(things: Things) -> int:
    """How many more connections of this process were blocked than unblocked, by the frames that were decoded."""
    kinds = [things.class_in("pika.spec", "Connection", name) for name in ("Blocked", "Unblocked")]
    decoders = [things.classes.class_attributes(kind, ("decode",))[0].get("decode") if kind else None for kind in kinds]
    return more_often(things, *decoders)


def _spelled(name: str) -> str:
    """ "Queue.DeclareOk" as "queue.declare-ok"."""
    group, _, method = name.partition(".")
    words = "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in method)
    return f"{group.lower()}.{words.removeprefix('-')}"
