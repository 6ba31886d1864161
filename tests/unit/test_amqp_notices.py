"""What is said of AMQP connections as they are watched, and what counts as stuck in the end."""

from dataclasses import replace

import pytest
from stucktrace.amqp_notices import Notice, Watcher, stuck
from stucktrace.facts import AmqpChannel, AmqpFact, AmqpMethod, Latency
from stucktrace.sinks import amqp as shown
from stucktrace.sinks import amqp_table
from stucktrace.sinks.amqp import Row

CHANNEL = AmqpChannel(1, confirms=True, publishes=7, acks=7, nacks=0, returns=0, unconfirmed=0)
FACT = AmqpFact(
    "10.0.0.1:40000", "10.0.0.2:5672", "wire", heartbeat_s=30.0, heartbeat_source="tune-ok", last_frame_in_s=1.0,
    last_frame_out_s=1.0, confirms=Latency(7, 0.0004, 0.01, 0.1, 1.5), channels=(CHANNEL,),
)  # fmt: skip
WAITING = replace(CHANNEL, acks=5, unconfirmed=2, oldest_unconfirmed_s=6.0)
CLOSE = AmqpMethod("channel.close", 1, 3.0, 404, "NOT_FOUND\x1b[2J", "basic.publish")


def of(*channels, **fields):
    return replace(FACT, channels=channels or FACT.channels, **fields)


def events(watcher, fact, now=1000.0):
    return [(notice.event, notice.channel, notice.count) for notice in watcher.look([fact], now)]


def test_a_confirm_that_does_not_come_is_said_once_and_again_when_it_came():
    watcher = Watcher()
    assert events(watcher, of(replace(WAITING, oldest_unconfirmed_s=4.9))) == []
    assert events(watcher, of(WAITING)) == [("unconfirmed", 1, 2)]
    assert events(watcher, of(replace(WAITING, oldest_unconfirmed_s=60.0))) == []
    (notice,) = watcher.look([FACT], 1010.0)
    assert (notice.event, notice.age_s) == ("confirmed", 16.0)
    assert events(watcher, of(WAITING)) == [("unconfirmed", 1, 2)]


def test_two_intervals_of_silence_are_missed_heartbeats():
    watcher = Watcher()
    assert events(watcher, of(last_frame_in_s=60.0)) == []
    assert events(watcher, of(last_frame_in_s=61.0)) == [("broker-silent", 0, 1)]
    assert events(watcher, of(last_frame_in_s=90.0, last_frame_out_s=61.0)) == [("client-silent", 0, 1)]
    assert events(watcher, FACT) == [("heard-again", 0, 1), ("heard-again", 0, 1)]
    for unknown in (None, 0.0):
        assert events(watcher, of(heartbeat_s=unknown, last_frame_in_s=9000.0)) == []


def test_refused_publishes_are_counted_from_look_to_look():
    watcher = Watcher()
    assert events(watcher, of(replace(CHANNEL, nacks=2))) == [("nacked", 1, 2)]
    assert events(watcher, of(replace(CHANNEL, nacks=2))) == []
    assert events(watcher, of(replace(CHANNEL, nacks=5))) == [("nacked", 1, 3)]


@pytest.mark.parametrize(
    ("fact", "why"),
    [
        (FACT, ""),
        (of(WAITING), "unconfirmed"),
        (of(replace(WAITING, oldest_unconfirmed_s=5.0)), ""),
        (of(replace(WAITING, unconfirmed=None)), ""),
        (of(WAITING, closed=AmqpMethod("connection.close"), closed_by="client"), ""),
        (of(blocked=AmqpMethod("connection.blocked", 0, 1.0, None, "low on memory")), "blocked"),
        (of(replace(WAITING, oldest_unconfirmed_s=0.1, closed=CLOSE, closed_by="broker")), "channel-closed"),
        (of(replace(CHANNEL, closed=CLOSE, closed_by="broker")), ""),
        (of(replace(WAITING, oldest_unconfirmed_s=0.1, closed=CLOSE, closed_by="client")), ""),
    ],
)
def test_what_is_stuck(fact, why):
    assert stuck(fact) == why
    row = Row(fact.local, fact.remote, fact)
    assert ("STUCK" in "\n".join(shown.summary(row))) == bool(why)
    assert shown.summary_as_json(row, 0)["stuck"] == (why or None)
    assert not shown.summary_as_json(replace(row, open=False), 0)["stuck"]


def test_words():
    row = Row(FACT.local, FACT.remote, of(replace(CHANNEL, closed=CLOSE, closed_by="broker")), 9)
    text = "\n".join(shown.summary(row))
    assert "10.0.0.1:40000 -> 10.0.0.2:5672  (fd 9)" in text
    assert "published 7, confirmed 7" in text and "p50 0.40 ms  p95 10 ms  p99 100 ms  max 1.5 s" in text
    assert "every 30 s (negotiated)" in text
    assert "closed by the broker: 404 NOT_FOUND\\x1b[2J (because of basic.publish)" in text
    table = "\n".join(amqp_table.table([row, Row("10.0.0.1:40001", "10.0.0.2:5672")]))
    assert "REFUSED" not in table and "quiet 1 s" in table and "no frame yet" in table
    notice = Notice(0.25, FACT.local, FACT.remote, "returned", 1, "broker", 3, code=312, text="NO_ROUTE")
    assert shown.line(notice).endswith(".250  10.0.0.1:40000 -> 10.0.0.2:5672  3 publishes come back on channel 1 "
                                       "(basic.return): 312 NO_ROUTE")  # fmt: skip


def test_a_connection_of_which_nothing_passes_at_all():
    """By the interval that the client remembers it is silent; where bytes passed that cannot be read it is not known."""
    watcher = Watcher()
    quiet = of(last_frame_in_s=None, last_frame_out_s=None)
    for fact, watched_s, said in (
        (replace(quiet, encrypted=True), 100.0, []),
        (replace(quiet, unknown=("no frame boundary was found yet",)), 100.0, []),
        (quiet, 60.0, []),
        (quiet, 61.0, ["broker-silent", "client-silent"]),
    ):
        assert [notice.event for notice in watcher.look([fact], 0.0, watched_s)] == said
    text = "\n".join(shown.summary(Row(FACT.local, FACT.remote, quiet, watched_s=61.0)))
    assert "no frame passed" in text and "the broker has sent nothing for 61 s" in text
