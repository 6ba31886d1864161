"""py-amqp's connections (kombu's and Celery's) as its objects have them: what was negotiated, the channels, what a
thread waits for, and which method came last.

Sources: `amqp.connection.Connection`, `amqp.channel.Channel`, `amqp.abstract_channel.AbstractChannel.wait` and
`dispatch_method`, `amqp.transport` of 2.6, 5.0 and 5.4. The library hands connection.blocked to a callback and keeps no
note of it; the last method that a waiting thread was given is then told by the dead frame of `dispatch_method`, if that
lies where the next one would (`dead_frames.py`).
"""

from __future__ import annotations

from collections.abc import Iterator

from stucktrace.collectors import amqp_methods, dead_frames
from stucktrace.collectors.amqp_client_objects import Things
from stucktrace.collectors.pool_stacks import Place
from stucktrace.facts import AmqpChannel, AmqpFact, AmqpMethod

CLIENT = "py-amqp"
FILES = ("/amqp/", "/kombu/", "/celery/worker/loops.py")
_CONNECTION = (
    "channels",
    "_transport",
    "heartbeat",
    "last_heartbeat_sent",
    "last_heartbeat_received",
    "_on_inbound_frame",
)
_VARIABLES = ("self", "connection", "conn", "channel")
_DISPATCHING = ("on_inbound_method", "dispatch_method")
_ON_BLOCKED = "_on_blocked"
_SHOWN_CHANNELS = 256
ASSUMED_OF_COUNTS = "it was this connection, and no other one ended while it was blocked"
ASSUMED = "the last method that its thread took from the broker came during this wait"


def connections(things: Things, tid: int) -> Iterator[int]:
    """Those that a frame of the thread has in hand, innermost first."""
    for place in things.stacks.of(tid):
        if not any(part in place.file for part in FILES):
            continue
        variables = things.stacks.variables(place)
        for name in _VARIABLES:
            found = connection_of(things, variables.get(name))
            if found is not None:
                yield found


def connection_of(things: Things, address: int | None) -> int | None:
    """Of a connection, a channel, a transport's channel, or a `kombu.Connection` that is connected."""
    for _ in range(3):
        if not address:
            return None
        held = things.attributes(address, ("_transport", "channels", "connection", "_connection"))
        if "_transport" in held and "channels" in held:
            return address
        address = held.get("connection") or held.get("_connection")
    return None


def read(things: Things, connection: int, tid: int | None) -> tuple[int | None, AmqpFact]:
    """(the socket's descriptor, the fact without its addresses). `tid`: a thread that waits on it."""
    held = things.attributes(connection, _CONNECTION)
    transport = held.get("_transport")
    fd = things.fd(things.attribute(transport, "sock"))
    waits_for, waiting = _awaited(things, tid, connection) if tid is not None else ("", None)
    last = _last_method(things, tid, connection, held.get("_on_inbound_frame")) if tid is not None else None
    publish = _confirmed_publish(things, tid) if tid is not None and waits_for == "confirm" else {}
    limit_s = things.number(publish.get("confirm_timeout"))
    assumes = ASSUMED if last == amqp_methods.BLOCKED else ""
    if last is None and waits_for not in ("", "events") and _blocks(things, connection) > 0:
        assumes = ASSUMED_OF_COUNTS
    blocked = AmqpMethod("connection.blocked") if assumes else None
    return fd, AmqpFact(
        "",
        "",
        "memory",
        client=CLIENT,
        heartbeat_s=things.number(held.get("heartbeat")),
        heartbeat_source="client" if "heartbeat" in held else "",
        last_in=AmqpMethod(amqp_methods.name_of(*last)) if last else None,
        last_heartbeat_in_s=things.age_s(held.get("last_heartbeat_received")),
        last_heartbeat_out_s=things.age_s(held.get("last_heartbeat_sent")),
        blocked=blocked,
        blocked_assumes=assumes,
        channels=_channels(things, held.get("channels"), publish.get("self")),
        waits_for=waits_for,
        waiting_channel=waiting,
        waiting_tid=tid,
        confirm_timeout_s=limit_s,
        confirm_timeout_known=limit_s is not None or things.is_none(publish.get("confirm_timeout")),
    )


def _channels(things: Things, table: int | None, publishes: int | None) -> tuple[AmqpChannel, ...]:
    """`publishes`: the channel in whose `basic_publish_confirm` a thread waits."""
    pairs = things.values.pairs(table) if table else None
    found = []
    for key, channel in (pairs or ())[:_SHOWN_CHANNELS]:
        number = things.values.integer(key)
        if number:
            found.append(_channel(things, number, channel, asked=channel == publishes))
    return tuple(sorted(found, key=lambda channel: channel.number))


def _channel(things: Things, number: int, channel: int, *, asked: bool) -> AmqpChannel:
    """That it never asked for confirms is known only below its own call that does; a program may ask by itself."""
    held = things.attributes(channel, ("_confirm_selected", "is_open", "callbacks"))
    tags = things.values.pairs(held["callbacks"]) if "callbacks" in held else None
    names = None if tags is None else [things.values.text(tag, 255) for tag, _ in tags]
    confirms = things.truth(held.get("_confirm_selected"))
    return AmqpChannel(
        number,
        confirms=confirms if confirms or asked else None,
        consumers=None if names is None else tuple(name or "" for name in names),
        is_open=things.truth(held.get("is_open")),
    )


def _awaited(things: Things, tid: int, connection: int) -> tuple[str, int | None]:
    """What its innermost `AbstractChannel.wait` waits for, and on which channel."""
    for place in things.stacks.of(tid):
        if place.function == "wait" and place.file.endswith("/amqp/abstract_channel.py"):
            variables = things.stacks.variables(place)
            channel = variables.get("self")
            if connection_of(things, channel) != connection:
                return "", None
            number = things.values.integer(things.attribute(channel, "channel_id") or 0)
            return _methods(things, variables.get("method")), number
        if place.function == "drain_events" and place.file.endswith(
            ("/kombu/connection.py", "/celery/worker/loops.py")
        ):
            return "events", None
    return "", None


def _confirmed_publish(things: Things, tid: int) -> dict[str, int]:
    """The variables of the publish for whose confirm the thread waits; {} where it waits by itself."""
    for place in things.stacks.of(tid):
        if place.function == "basic_publish_confirm" and place.file.endswith("/amqp/channel.py"):
            return things.stacks.variables(place)
    return {}


def _methods(things: Things, wanted: int | None) -> str:
    items = things.stacks.containers.items(wanted) if wanted else None
    signatures = [things.integers(item) for item in items or ()]
    if amqp_methods.ACK in signatures and amqp_methods.NACK in signatures:
        return "confirm"
    pairs = [signature for signature in signatures if signature and len(signature) == 2]
    return " or ".join(amqp_methods.name_of(*pair) for pair in pairs)


def _last_method(things: Things, tid: int, connection: int, handler: int | None) -> tuple[int, int] | None:
    """The method that this thread was given last from where it waits now; None where that place was written over.

    Where `read_frame` is called now, `on_frame` was; it called `on_inbound_method`, that `dispatch_method`, and that
    what listens for the method: their frames lay one behind the other.
    """
    places = things.stacks.of(tid)
    at = next((at for at, place in enumerate(places) if _reads(place)), 0)
    functions = things.classes.class_attributes(things.classes.class_of(connection), (*_DISPATCHING, _ON_BLOCKED))[0]
    codes = [things.code_of(each) for each in (handler, *map(functions.get, _DISPATCHING))]
    sizes = [dead_frames.size(things.stacks, code) if code else 0 for code in codes]
    if not at or not all(sizes):
        return None
    place = places[at - 1].frame.address + sizes[0] + sizes[1]
    blocked = _was_told_blocked(things, place + sizes[2], connection, functions.get(_ON_BLOCKED))
    dispatched = dead_frames.variables(things.stacks, place, codes[2] or 0)
    receiver = dispatched.get("self")
    method = _signature(things, dispatched.get("amqp_method"))
    if method is None or (receiver != connection and connection_of(things, receiver) != connection):
        # Under TLS the frames of the ssl module lie there; what was called last of all lies behind them.
        return amqp_methods.BLOCKED if blocked else None
    return method if blocked or method != amqp_methods.BLOCKED else None


def _blocks(things: Things, connection: int) -> int:
    """How many more connections of this process were blocked than unblocked; 0 where that is not counted."""
    names = (_ON_BLOCKED, "_on_unblocked")
    found = things.classes.class_attributes(things.classes.class_of(connection), names)[0]
    return more_often(things, *map(found.get, names))


def more_often(things: Things, one: int | None, other: int | None) -> int:
    """How much more often one function was called than another; 0 where that is not known."""
    calls, others = things.calls(one), things.calls(other)
    return calls - others if calls is not None and others is not None else 0


def _was_told_blocked(things: Things, place: int, connection: int, function: int | None) -> bool:
    """At this place lie the variables of `_on_blocked`: any other listener would have written over the reason."""
    code = things.code_of(function)
    held = dead_frames.variables(things.stacks, place, code) if code else {}
    reason = things.values.text(held.get("reason", 0), 64) if held.get("self") == connection else None
    return reason is not None and "blocked" in reason


def _reads(place: Place) -> bool:
    return place.function == "blocking_read" and place.file.endswith("/amqp/connection.py")


def _signature(things: Things, method: int | None) -> tuple[int, int] | None:
    """Of a description of a method, a named tuple whose first item is the method's two numbers."""
    if not method or things.values.type(method) != "method_t":
        return None
    first = things.first_of_tuple(method)
    numbers = things.integers(first) if first else None
    return (numbers[0], numbers[1]) if numbers is not None and len(numbers) == 2 else None
