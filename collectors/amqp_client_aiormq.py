"""aiormq's connections (aio-pika's) as its objects have them: what was negotiated, whether it is blocked, the channels.

Source: `aiormq.connection.Connection` of 6.x and 7.x. It keeps an `asyncio.Event` that is cleared while the connection
is blocked, and when the last frame came, by the loop's clock (CLOCK_MONOTONIC). Who publishes is a suspended task, on
no thread's stack, so what is waited for is not told here.
"""

from __future__ import annotations

from collections.abc import Iterator

from stucktrace.collectors.amqp_client_objects import Things
from stucktrace.facts import AmqpChannel, AmqpFact, AmqpMethod

CLIENT = "aiormq"
FILES = ("/aiormq/", "/aio_pika/")
_PRIVATE = "_Connection__"
_SHOWN_CHANNELS = 256


def connections(things: Things, tid: int) -> Iterator[int]:
    """Those that a frame of the thread has in hand, innermost first."""
    for place in things.stacks.of(tid):
        if any(part in place.file for part in FILES):
            this = things.stacks.variable(place, "self")
            if this and is_connection(things, this):
                yield this


def is_connection(things: Things, address: int) -> bool:
    return len(things.attributes(address, ("connected", "heartbeat_timeout", "write_queue"))) == 3


def read(things: Things, connection: int, tid: int | None) -> tuple[int | None, AmqpFact]:
    """(the socket's descriptor: not reached, the fact without its addresses)."""
    names = (
        "connected",
        "heartbeat_timeout",
        "channels",
        f"{_PRIVATE}connection_unblocked",
        f"{_PRIVATE}last_frame_time",
    )
    held = things.attributes(connection, names)
    unblocked = things.event(held.get(f"{_PRIVATE}connection_unblocked"))
    blocked = unblocked is False and things.event(held.get("connected")) is True
    pairs = things.values.pairs(held["channels"]) if "channels" in held else None
    numbers = [things.values.integer(key) for key, _ in (pairs or ())[:_SHOWN_CHANNELS]]
    return None, AmqpFact(
        "",
        "",
        "memory",
        client=CLIENT,
        heartbeat_s=things.number(held.get("heartbeat_timeout")),
        heartbeat_source="client" if "heartbeat_timeout" in held else "",
        last_frame_in_s=things.age_s(held.get(f"{_PRIVATE}last_frame_time")),
        blocked=AmqpMethod("connection.blocked") if blocked else None,
        channels=tuple(AmqpChannel(number) for number in sorted(filter(None, numbers))),
    )
