"""What a capture cannot know of an AMQP connection, and why: a sentence each."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stucktrace.collectors.amqp_connection import Connection, Direction


HEARTBEAT_UNSEEN = "the capture began after the connection did: the heartbeat agreed on was not seen"


def sentences(connection: Connection, directions: tuple[Direction, Direction]) -> list[str]:
    """`directions`: the client's, the broker's."""
    found: list[str] = []
    sides = ("client", "broker")
    for side, direction in zip(sides, directions, strict=True):
        protocol = direction.frames.protocol if direction.frames is not None else ""
        if protocol not in ("", "tls", "0-9-1"):
            found.append(f"the {side} speaks AMQP {protocol}, not 0-9-1: frames cannot be read")
    if found:
        return found
    if connection.encrypted and not connection.is_amqp():
        return ["encrypted: frames cannot be read"]
    talk = connection.conversation
    started_late = any(each.frames is not None and not each.from_start for each in directions)
    if started_late and talk.heartbeat_s is None:
        found.append(HEARTBEAT_UNSEEN)
    if connection.role_assumed:
        found.append("which end is the client is taken from the port numbers alone: nothing on the wire told it yet")
    for side, direction in zip(sides, directions, strict=True):
        frames = direction.frames
        if frames is not None and frames.hunting and direction.bytes_seen:
            found.append(f"no frame boundary was found yet in what the {side} sends: none of it is counted")
        if direction.gaps:
            found.append(
                f"{direction.gap_bytes} bytes that the {side} sent were not captured, in {direction.gaps} places: its"
                " counts are at least what is said"
            )
        if direction.stream.waits:
            found.append(
                f"the capture has bytes that the {side} sent and not yet those before them: its counts are at least"
                " what is said"
            )
        if frames is not None and frames.lost:
            found.append(
                f"what the {side} sent was no frame where one had to begin, {frames.lost} times: counts may be wrong"
            )
    for number, channel in sorted(talk.channels.items()):
        if channel.mode is None and channel.publishes:
            found.append(
                f"channel {number} was open before: whether its publishes are to be confirmed is not known before the"
                " broker confirms one"
            )
        elif channel.mode == "confirm" and not channel.exact:
            found.append(
                f"channel {number} was open before the capture: earlier publishes may be unconfirmed too; confirm"
                " times suppose that none was"
            )
        if channel.blurred:
            found.append(
                f"channel {number}: acks of several publishes at once are counted by their tags: that may be off by"
                " what was in flight when the capture began or had a gap"
            )
        if channel.blurred_consumer_acks:
            found.append(
                f"channel {number}: an ack may cover deliveries that were not seen: consumer acks are at least what is"
                " said"
            )
    if talk.channels_not_kept:
        found.append("more channels than are kept: some are not counted")
    return found
