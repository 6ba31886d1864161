"""AMQPStorm's connections as its objects have them: what was negotiated, whether it is blocked, the channels.

Sources: `amqpstorm.connection.Connection`, `amqpstorm.channel0.Channel0`, `amqpstorm.rpc.Rpc` of 2.x and 3.x. One
thread reads for all, and who waits for an answer sleeps 10 ms at a time: since when, its variable `start_time` says.
"""

from __future__ import annotations

from collections.abc import Iterator

from stucktrace.collectors.amqp_client_objects import Things, in_frames
from stucktrace.facts import AmqpChannel, AmqpFact, AmqpMethod

CLIENT = "amqpstorm"
FILES = ("/amqpstorm/",)
_OPEN = 3
_SHOWN_CHANNELS = 256
_NEXT = ("_channel0", "_connection", "_default_connection_adapter", "_channel")


def connections(things: Things, tid: int) -> Iterator[int]:
    """Those that a frame of the thread has in hand, innermost first."""
    return in_frames(things, tid, FILES, _connection_of)


def _connection_of(things: Things, address: int | None) -> int | None:
    """Of a connection, or of what belongs to a channel of it."""
    for _ in range(4):
        if not address:
            return None
        held = things.attributes(address, _NEXT)
        if "_channel0" in held:
            return address
        address = next((held[name] for name in _NEXT if name in held), None)
    return None


def read(things: Things, connection: int, tid: int | None) -> tuple[int | None, AmqpFact]:
    """(the socket's descriptor, the fact without its addresses). `tid`: a thread that waits on it."""
    held = things.attributes(connection, ("_io", "_channel0", "_channels", "_state"))
    channel0 = things.attributes(held.get("_channel0"), ("is_blocked", "_heartbeat"))
    blocked = things.truth(channel0.get("is_blocked"))
    waits_for, channel, waiting_s = _awaited(things, tid, connection) if tid is not None else ("", None, None)
    return things.fd(things.attribute(held.get("_io"), "socket")), AmqpFact(
        "",
        "",
        "memory",
        client=CLIENT,
        heartbeat_s=things.number(channel0.get("_heartbeat")),
        heartbeat_source="client" if "_heartbeat" in channel0 else "",
        blocked=AmqpMethod("connection.blocked") if blocked else None,
        channels=_channels(things, held.get("_channels")),
        waits_for=waits_for,
        waiting_channel=channel,
        waiting_tid=tid,
        waiting_s=waiting_s,
    )


def _channels(things: Things, table: int | None) -> tuple[AmqpChannel, ...]:
    found = []
    for key, channel in ((things.values.pairs(table) if table else None) or ())[:_SHOWN_CHANNELS]:
        number = things.values.integer(key)
        held = things.attributes(channel, ("_confirming_deliveries", "_state"))
        state = things.values.integer(held.get("_state") or 0)
        if number:
            confirms = things.truth(held.get("_confirming_deliveries"))
            found.append(AmqpChannel(number, confirms=confirms, is_open=None if state is None else state == _OPEN))
    return tuple(sorted(found, key=lambda channel: channel.number))


def _awaited(things: Things, tid: int, connection: int) -> tuple[str, int | None, float | None]:
    """(what for, on which channel, for how long)."""
    waited_s: float | None = None
    waits_for, channel = "", None
    for place in things.stacks.of(tid):
        if place.file.endswith("/amqpstorm/rpc.py") and place.function == "_wait_for_request":
            variables = things.stacks.variables(place)
            waited_s = things.age_s(variables.get("start_time"), or_wall_clock=True)
            adapter = variables.get("connection_adapter")
            if _connection_of(things, adapter) != connection:
                return "", None, None
            channel = things.values.integer(things.attribute(adapter, "_channel_id") or 0)
            waits_for = "an answer"
        if waits_for and place.file.endswith("/amqpstorm/basic.py") and place.function == "_publish_confirm":
            return "confirm", channel, waited_s
    return waits_for, channel, waited_s
