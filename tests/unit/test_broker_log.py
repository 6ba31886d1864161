"""Which end of a connection belongs to which worker timeout: literal facts, and what must not be joined."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from stucktrace import correlate, recorded_timeouts
from stucktrace.diagnosis.broker_delays import CONNECTION, TIME, densest
from stucktrace.diagnosis.broker_log import Correlation, wanted
from stucktrace.diagnosis.broker_log import correlate as joined
from stucktrace.errors import UsageError
from stucktrace.facts.correlation import (
    ABRUPT,
    CLOSED,
    FAILED,
    MISSED,
    Alarm,
    BrokerEvent,
    BrokerLog,
    Connection,
    WorkerTimeout,
)
from stucktrace.sinks import correlate_text

NOON = 1_795_262_400.0
BROKER = "10.0.0.9:5672"
DAY_S = 86_400.0


def timeout(number: int = 0, *, known: bool = True, **changes: object) -> WorkerTimeout:
    """A worker that hung at NOON + 100 * number and was killed 30.5 s later."""
    began = NOON + 100 * number
    connection = Connection(f"10.0.0.5:{40000 + number}", BROKER)
    made = WorkerTimeout(100 + number, began + 30.5, "journal", began, 30.0, (connection,), began + 20, connection)
    if not known:
        made = replace(made, connections=(), hung_on=None, looked=None)
    return replace(made, **changes)  # type: ignore[arg-type]


def end(after_s: float, number: int = 0, kind: str = ABRUPT, **changes: object) -> BrokerEvent:
    """So long after the wait of `timeout(number)` began."""
    began = NOON + 100 * number
    beats_s = 60.0 if kind == MISSED else None
    made = BrokerEvent(began + after_s, kind, f"10.0.0.5:{40000 + number}", BROKER, "<0.1.0>", "", beats_s, began - 500)
    return replace(made, **changes)  # type: ignore[arg-type]


def log(*events: BrokerEvent, **changes: object) -> BrokerLog:
    counts = {kind: sum(event.kind == kind for event in events) for kind in (ABRUPT, MISSED, CLOSED)}
    made = BrokerLog(
        tuple(sorted(events, key=lambda event: event.time)), counts, lines=9, first=NOON - 1000, last=NOON + DAY_S
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def because(found: Correlation) -> str:
    (one,) = found.unmatched
    assert not found.pairs
    return one.because


def test_the_commonest_delay() -> None:
    """41 of 43 come with the kill; two heartbeats were missed instead."""
    timeouts = [timeout(number) for number in range(43)]
    closes = [end(30.5 + number % 5 / 10, number) for number in range(41)]
    beats = [end(125 + number, 41 + number, MISSED) for number in range(2)]
    found = joined(timeouts, log(*closes, *beats))
    assert len(found.pairs) == 43 and {pair.confidence for pair in found.pairs} == {"proven"}
    mode = next(mode for mode in found.modes if (mode.kind, mode.since) == (ABRUPT, "stuck"))
    assert (mode.count, mode.of, mode.seconds) == (41, 41, pytest.approx(30.7, abs=0.2))
    assert "gunicorn's timeout (30 s)" in mode.means and mode.histogram == ((30, 41),)
    after_kill = next(mode for mode in found.modes if (mode.kind, mode.since) == (ABRUPT, "kill"))
    assert after_kill.count == 41 and "the kill is the cause" in after_kill.means
    missed = next(mode for mode in found.modes if (mode.kind, mode.since) == (MISSED, "stuck"))
    assert missed.of == 2 and "heartbeat (60 s)" in missed.means


def test_the_connection_it_hung_on_comes_first() -> None:
    other = Connection("10.0.0.5:39999", BROKER)
    one = timeout()
    one = replace(one, connections=(other, *one.connections))
    events = end(30.4, client="10.0.0.5:39999"), end(30.6)
    (pair,) = joined([one], log(*events)).pairs
    assert pair.connection == one.hung_on and pair.by == CONNECTION


@pytest.mark.parametrize(
    "event",
    [
        end(-50),  # ended before it was looked at: an earlier connection from this port
        end(2000, accepted=NOON + 1500),  # accepted after: a later one
        end(2000, accepted=None),  # too late to be sure without the accept
        end(30.5, server="10.0.0.9:15672"),  # to another port
        end(30.5, kind=CLOSED),
    ],
)
def test_another_connection_with_this_address(event: BrokerEvent) -> None:
    found = joined([timeout()], log(event))
    assert not [pair for pair in found.pairs if pair.by == CONNECTION]


def test_what_was_closed_as_it_should_was_not_lost_with_another_connection_of_its_port() -> None:
    """Without the lines that tell when each was accepted."""
    closed, reused = end(25, kind=CLOSED, accepted=None), end(300, accepted=None)
    assert "was closed as it should" in because(joined([timeout()], log(closed, reused)))
    ended = replace(timeout(), connections=(Connection("10.0.0.5:40000", BROKER, True),))
    before = end(-300, accepted=NOON - 600)
    assert not joined([ended], log(before, end(10, kind=CLOSED, accepted=NOON - 100))).pairs
    # The reason for an exception comes first, and then that it is closed.
    (pair,) = joined([ended], log(before, end(9, kind=FAILED), end(10, kind=CLOSED))).pairs
    assert pair.event.kind == FAILED and pair.by == CONNECTION


def test_clocks_that_differ_are_named() -> None:
    assert "the clocks differ" in because(joined([timeout()], log(end(5))))


def test_behind_a_service_address_the_server_differs() -> None:
    (pair,) = joined([timeout()], log(end(30.5, server="10.8.1.7:5672"))).pairs
    assert pair.confidence == "proven"


def test_what_the_peer_had_closed_before_the_look() -> None:
    one = timeout()
    gone = Connection(one.connections[0].local, BROKER, ended=True)
    one = replace(one, connections=(gone,), hung_on=None)
    (pair,) = joined([one], log(end(-80, accepted=None), end(12, kind=MISSED, timeout_s=5.0))).pairs
    assert pair.event.kind == MISSED and pair.after_kill_s == pytest.approx(-18.5)


def test_by_time_alone() -> None:
    """One abrupt close a hundredth of a second after the kill, in a log with few others."""
    noise = [end(5000 + 900 * number, 0, client=f"10.0.0.7:{number}") for number in range(50)]
    found = joined([timeout(known=False)], log(end(30.51), *noise))
    (pair,) = found.pairs
    assert (pair.by, pair.confidence, pair.connection) == (TIME, "likely", None)
    assert pair.after_kill_s == pytest.approx(0.01)


def test_by_time_a_noisy_log_says_nothing() -> None:
    """With an abrupt close every ten seconds one after the kill is no wonder."""
    noise = [end(30.6 + 10 * number, 0, client=f"10.0.0.7:{number}") for number in range(-100, 800)]
    assert "stands out" in because(joined([timeout(known=False)], log(*noise, last=NOON + 8000)))


def test_each_event_belongs_to_one_timeout() -> None:
    twins = [timeout(known=False), timeout(known=False, pid=7)]
    (pair,) = joined(twins, log(end(30.6))).pairs
    assert pair.confidence == "possible", "it may be the other one's"
    both = joined(twins, log(end(30.6), end(30.7, client="10.0.0.5:2"))).pairs
    assert [pair.confidence for pair in both] == ["likely", "likely"]


def test_where_the_log_knows_the_connection_the_time_of_others_says_nothing() -> None:
    one = timeout()
    foreign = end(30.6, client="10.0.0.7:1")
    found = joined([one], log(foreign, open={one.connections[0].local: NOON - 500}))
    assert "it never noticed" in because(found)
    found = joined([one], log(foreign, end(31, kind=CLOSED)))
    assert "closed as it should" in because(found)


def test_outside_the_log() -> None:
    assert "before the log begins" in because(joined([timeout(known=False)], log(first=NOON + 500)))
    assert "after the log ends" in because(joined([timeout(known=False)], log(last=NOON - 500)))
    assert "addresses translated" in because(joined([timeout()], log()))


def test_alarms_at_that_time() -> None:
    alarms = (Alarm("memory", "rabbit@a", NOON - 10, NOON + 5), Alarm("disk", "", NOON + 40, None))
    found = joined([timeout(), timeout(3)], log(alarms=alarms))
    assert [(one.pid, alarm.resource) for one, alarm in found.in_alarm] == [(100, "memory"), (103, "disk")]


def test_what_has_to_be_kept_of_a_log() -> None:
    keep = wanted([timeout(), timeout(1)])
    assert keep(end(-400)) and keep(end(30, client="x:1")) and keep(end(900, client="x:1"))
    assert not keep(end(-400, client="x:1")) and not keep(end(DAY_S, client="x:1"))
    assert not wanted([])(end(1))


def test_the_densest_bucket() -> None:
    assert densest([30.0, 30.1, 30.9, 31.2, 50.0]) == (pytest.approx(30.4, abs=0.1), 3)
    assert densest([7.0]) == (7.0, 1)
    middle, count = densest([0.0, 0.0, 1.0])
    assert count == 3 and middle == 0.5


@pytest.mark.parametrize(("text", "seconds"), [(None, 0), ("Z", 0), ("+02:00", 7200), ("-0530", -19800), ("+5", 18000)])
def test_offsets(text: str | None, seconds: float) -> None:
    assert correlate.parse_offset(text) == seconds


@pytest.mark.parametrize("text", ["2", "+99:00", "CET", "+02:99"])
def test_no_offsets(text: str) -> None:
    with pytest.raises(UsageError):
        correlate.parse_offset(text)


def test_one_timeout_told_by_two_is_one(tmp_path: Path) -> None:
    """By the pid that its own PID namespace calls it, as gunicorn's log does. What cannot be used is said."""
    known = timeout(ns_pid=9)
    told = timeout(known=False, pid=9, killed=known.killed + 0.9, resolution_s=1.0, source="gunicorn's log")
    other = timeout(known=False, pid=9, killed=known.killed + 60, source="gunicorn's log")
    assert recorded_timeouts.merged([told, other, known]) == (known, other)
    torn: list[str] = []
    file = tmp_path / "alerts.jsonl"
    event = {"schema": "stucktrace.alert/1", "type": "updated", "code": "worker-timeout", "time": NOON, "report": None}
    event["affected"] = [{"pid": 4, "pod": None, "since_s": 31.0}]
    file.write_text("no json\n" + json.dumps(event) + "\n" + json.dumps({**event, "affected": None}) + "\n")
    (one,) = recorded_timeouts.from_alerts(str(file), torn.append)
    assert (one.pid, one.since, one.killed) == (4, NOON - 31, NOON) and "1 of 3 lines" in torn[0]


def test_a_time_zone_that_would_match_is_named() -> None:
    """Not taken for granted: it is the user's to say."""
    timeouts = [timeout(number) for number in range(2)]
    ahead = log(*(end(30.6 + 7200, number, accepted=None) for number in range(2)), zone_assumed=True)
    found = joined(timeouts, ahead)
    assert not found.pairs and found.offset == (7200.0, 2)
    page = correlate_text.render(correlate.build(timeouts, ahead, found, None))
    assert "with --utc-offset +02:00" in page
    assert joined(timeouts, replace(ahead, zone_assumed=False)).offset is None
    assert correlate.offset_text(-19800) == "-05:30"


def test_the_page(tmp_path: Path) -> None:
    timeouts = [timeout(number) for number in range(3)]
    found = joined(timeouts, log(end(30.6), end(30.8, 1)))
    page = correlate_text.render(
        correlate.build(timeouts, log(end(30.6), unreadable=2, zone_assumed=True), found, None)
    )
    assert page.startswith("2 of 3 worker timeouts are in the broker's log: 2 by connection (proven)\n")
    assert "2 of 2 abrupt closes come 30.7 s (± 0.5 s) after the wait began" in page
    assert "taken for UTC" in page and "2 lines passed over" in page and "10.0.0.5:40001" in page
