"""aiormq's connections (aio-pika's) as its objects have them: what was negotiated, whether it is blocked, the channels,
and which task waits for a confirm.

Source: `aiormq.connection.Connection` of 5.x to 7.x, `aiormq.channel.Channel.basic_publish`. The connection keeps an
`asyncio.Event` that is cleared while it is blocked, and when the last frame came by the loop's clock, CLOCK_MONOTONIC.
All happens in suspended tasks, which are on no thread's stack: their frames are reached through the tasks, each
connection through its own task that reads, and its socket through the one that writes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from stucktrace.collectors import memory
from stucktrace.collectors.amqp_client_objects import Things
from stucktrace.collectors.coroutines import KNOWN, Coroutines
from stucktrace.facts import AmqpChannel, AmqpFact, AmqpMethod, GreenletFact

CLIENT = "aiormq"
FILES = ("/aiormq/", "/aio_pika/")
_PRIVATE = "_Connection__"
_SHOWN_CHANNELS = 256
_TASK_BYTES = 192
_TRANSPORTS = ("_transport", "_ssl_protocol")
_DEEPEST = 4


@dataclass(frozen=True)
class _Place:
    """A frame of aiormq in a suspended task."""

    task: GreenletFact
    function: str
    variables: dict[str, int]


def read(things: Things, tasks: Sequence[GreenletFact]) -> dict[int, tuple[int | None, AmqpFact]]:
    """Address of a connection -> its socket's descriptor, and what is known of it. `tasks`: those suspended."""
    places = list(_places(things, tasks)) if things.stacks.read.minor in KNOWN else []
    fds = {place.variables["self"]: _fd(things, place) for place in places if place.function == "__writer"}
    waiting = {_connection_of(things, place): place.task for place in places if place.function == "basic_publish"}
    found = {}
    for place in places:
        this = _connection_of(things, place)
        if this is not None and this not in found:
            fact = _read(things, this)
            task = waiting.get(this)
            if task is not None:
                # The block came no later than the last frame, and the publish before it.
                since_s = fact.last_frame_in_s if fact.blocked is not None else None
                fact = replace(
                    fact, waits_for="confirm", waiting_tid=task.tid, waiting_task=task.name, waiting_s=since_s
                )
            found[this] = fds.get(this), fact
    return found


def _places(things: Things, tasks: Sequence[GreenletFact]) -> Iterator[_Place]:
    own = [task for task in tasks if any(part in frame.file for frame in task.frames for part in FILES)]
    coroutines = {found: task for task in own if (found := _coroutine(things, task.address))}
    walked = Coroutines(things.stacks.walk, things.stacks.read.minor).frames(list(coroutines))
    for coroutine, frames in walked.items():
        for frame in frames:
            named = things.stacks.read.named(frame.code)
            if FILES[0] in named.file:
                variables = things.stacks.read.variables(frame)
                if "self" in variables:
                    yield _Place(coroutines[coroutine], named.function, variables)


def _coroutine(things: Things, task: int) -> int | None:
    """The one word of a task that leads to a coroutine."""
    data = memory.read_some(things.stacks.pid, task, _TASK_BYTES)
    words = struct.unpack(f"<{len(data) // 8}Q", data[: len(data) // 8 * 8])
    regions = things.stacks.walk.reader.regions
    likely = [word for word in words[3:] if word and word % 8 == 0 and regions.find(word) is not None]
    kinds = things.values.types(likely) if likely else []
    return next((word for word, kind in zip(likely, kinds, strict=True) if kind in ("coroutine", "generator")), None)


def _connection_of(things: Things, place: _Place) -> int | None:
    """The connection that a frame is about: it, or the one of its channel."""
    address: int | None = place.variables["self"]
    for _ in range(2):
        if len(things.attributes(address, ("connected", "heartbeat_timeout", "write_queue"))) == 3:
            return address
        address = things.attribute(address, "connection")
    return None


def _fd(things: Things, place: _Place) -> int | None:
    """By way of the stream that it writes to; None under uvloop, whose transports are C."""
    address = place.variables.get("writer")
    for _ in range(_DEEPEST):
        held = things.attributes(address, ("_sock_fd", *_TRANSPORTS))
        if "_sock_fd" in held:
            return things.values.integer(held["_sock_fd"])
        address = next((held[name] for name in _TRANSPORTS if name in held), None)
    return None


def _read(things: Things, connection: int) -> AmqpFact:
    unblocked, last = f"{_PRIVATE}connection_unblocked", f"{_PRIVATE}last_frame_time"
    held = things.attributes(connection, ("connected", "heartbeat_timeout", "channels", unblocked, last))
    blocked = things.event(held.get(unblocked)) is False and things.event(held.get("connected")) is True
    pairs = things.values.pairs(held["channels"]) if "channels" in held else None
    numbers = [things.values.integer(key) for key, _ in (pairs or ())[:_SHOWN_CHANNELS]]
    return AmqpFact(
        "",
        "",
        "memory",
        client=CLIENT,
        heartbeat_s=things.number(held.get("heartbeat_timeout")),
        heartbeat_source="client" if "heartbeat_timeout" in held else "",
        last_frame_in_s=things.age_s(held.get(last)),
        blocked=AmqpMethod("connection.blocked") if blocked else None,
        channels=tuple(AmqpChannel(number) for number in sorted(filter(None, numbers))),
    )
