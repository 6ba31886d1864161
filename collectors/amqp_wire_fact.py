"""A captured AMQP connection -> AmqpFact. No I/O."""

from __future__ import annotations

from dataclasses import replace

from stucktrace.collectors.addresses import port_of
from stucktrace.collectors.amqp_connection import Connection
from stucktrace.collectors.amqp_methods import BROKER, CLIENT
from stucktrace.collectors.amqp_unknown import sentences
from stucktrace.facts.amqp import AmqpFact, AmqpMethod


def fact_of(connection: Connection, now: float) -> AmqpFact:
    if connection.client is None:
        # Nothing was said that only one side says. Brokers listen on a port, clients take a high one.
        first, second = connection.ends.values()
        connection.client_is(first if (port_of(first.end) or 0) > (port_of(second.end) or 0) else second)
        connection.role_assumed = True
    client = connection.client
    assert client is not None
    talk = connection.conversation
    heartbeat_s, source = talk.heartbeat_s, "tune-ok"
    if heartbeat_s is None:
        # RabbitMQ beats twice in the interval while it has nothing else to send.
        heartbeat_s, source = (
            (float(max(1, round(2 * min(talk.beats)))), "observed") if len(talk.beats) >= 2 else (None, "")
        )

    def age_s(time_s: float | None) -> float | None:
        return None if time_s is None else max(now - time_s, 0.0)

    def method(sender: str) -> AmqpMethod | None:
        frame = talk.last_method[sender]
        return None if frame is None else talk.method(frame, age_s(frame.time_s))

    def last_s(sender: str) -> float | None:
        frame = talk.last[sender]
        return None if frame is None else age_s(frame.time_s)

    directions = (client, client.peer)
    whole = all(direction.frames is not None and direction.frames.whole for direction in directions)
    up_to_date = not any(direction.stream.waits for direction in directions)
    encrypted = connection.encrypted and not connection.is_amqp()
    seen = connection.is_amqp()
    return AmqpFact(
        local=client.end,
        remote=client.peer.end,
        source="wire",
        client=talk.client,
        encrypted=encrypted,
        heartbeat_s=heartbeat_s,
        heartbeat_source=source if heartbeat_s is not None else "",
        last_in=method(BROKER),
        last_out=method(CLIENT),
        last_frame_in_s=last_s(BROKER),
        last_frame_out_s=last_s(CLIENT),
        heartbeats_in=talk.heartbeats[BROKER] if seen else None,
        heartbeats_out=talk.heartbeats[CLIENT] if seen else None,
        last_heartbeat_in_s=age_s(talk.last_heartbeat_s[BROKER]),
        last_heartbeat_out_s=age_s(talk.last_heartbeat_s[CLIENT]),
        blocked=replace(talk.blocked, age_s=age_s(talk.blocked_since_s)) if talk.blocked else None,
        closed=replace(talk.closed[1], age_s=age_s(talk.closed[0])) if talk.closed else None,
        closed_by=talk.closed[2] if talk.closed else "",
        confirms=talk.latencies().summary(),
        channels=tuple(
            channel.fact(now, whole, up_to_date) for _, channel in sorted(talk.channels.items()) if channel.number
        ),
        mid_stream=any(direction.frames is not None and not direction.from_start for direction in directions),
        gaps=sum(direction.gaps for direction in directions),
        unknown=tuple(sentences(connection, directions)),
    )
