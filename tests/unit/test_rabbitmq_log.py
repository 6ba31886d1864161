"""RabbitMQ's log in the formats of all its versions, as it writes them and as containers wrap them. Literal lines."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stucktrace import recorded_timeouts
from stucktrace.collectors import rabbitmq_log
from stucktrace.collectors.rabbitmq_records import moment_of
from stucktrace.errors import CannotInspect
from stucktrace.facts.correlation import ABRUPT, CLOSED, FAILED, HANDSHAKE, MISSED, BrokerEvent, BrokerLog

NOON = 1_795_262_400.0
"""2026-11-21 12:00:00 UTC."""
ENDS = "(10.0.0.5:51188 -> 10.0.0.9:5672"


def read(*lines: str, offset_s: float = 0.0) -> BrokerLog:
    parser = rabbitmq_log.Parser(offset_s, lambda event: True)
    parser.feed(line + "\n" for text in lines for line in text.split("\n"))
    return parser.log()


def one(*lines: str, offset_s: float = 0.0) -> BrokerEvent:
    (event,) = read(*lines, offset_s=offset_s).events
    return event


def new(text: str, level: str = "warning", at: str = "12:00:00.250000", process: str = "<0.677.0>") -> str:
    """As 3.9 and later write a message: every line with its head."""
    return "\n".join(f"2026-11-21 {at}+00:00 [{level}] {process} {line}" for line in text.split("\n"))


ABRUPTLY = (
    f"closing AMQP connection <0.677.0> {ENDS}, vhost: '/', user: 'app'):\nclient unexpectedly closed TCP connection"
)
BEATS = f"closing AMQP connection <0.677.0> {ENDS}):\nmissed heartbeats from client, timeout: 60s"


@pytest.mark.parametrize(
    "lines",
    [
        new(ABRUPTLY),
        # 4.x, with a duration
        new(ABRUPTLY.replace("user: 'app'", "user: 'app', duration: '4M, 36s'")),
        new(ABRUPTLY).replace("+00:00", "Z"),
        new(ABRUPTLY).replace("12:00:00.250000+00:00", "14:00:00.250000+02:00"),
        new(ABRUPTLY).replace("2026-11-21 12", "2026-11-21T12"),
        new(ABRUPTLY).replace("2026-11-21 12:00:00.250000+00:00", "1795262400250000"),
        # a terminal's colours, compose, kubectl --timestamps, CRI
        "\n".join(f"\x1b[38;5;214m{line}\x1b[0m" for line in new(ABRUPTLY).split("\n")),
        "\n".join(f"rabbitmq_1  | {line}" for line in new(ABRUPTLY).split("\n")),
        "\n".join(f"2026-11-21T12:00:07.999Z {line}" for line in new(ABRUPTLY).split("\n")),
        "\n".join(f"2026-11-21T12:00:07.99Z stdout F {line}" for line in new(ABRUPTLY).split("\n")),
        # docker's json-file
        "\n".join(
            json.dumps({"log": f"{line}\n", "stream": "stdout", "time": "x"}) for line in new(ABRUPTLY).split("\n")
        ),
        # 3.7 and 3.8
        f"2026-11-21 12:00:00.250 [warning] <0.677.0> {ABRUPTLY}",
        f"2026-11-21 12:00:00.250 [warn] <0.677.0> {ABRUPTLY}",
        # JSON
        json.dumps(
            {"time": "2026-11-21 12:00:00.250000+00:00", "level": "warning", "msg": ABRUPTLY, "pid": "<0.677.0>"}
        ),
        json.dumps({"ts": 1795262400.25, "level": "warning", "msg": ABRUPTLY}),
        "rabbit_1 | " + json.dumps({"time": 1795262400250000, "level": "warning", "msg": ABRUPTLY}),
    ],
)
def test_an_abrupt_close(lines: str) -> None:
    event = one(lines)
    assert (event.kind, event.client, event.server) == (ABRUPT, "10.0.0.5:51188", "10.0.0.9:5672")
    assert event.time == pytest.approx(NOON + 0.25) and event.process == "<0.677.0>"


def test_the_oldest_format() -> None:
    """3.6: a line of its own before the message, whole seconds, the broker's local time."""
    text = f"\n=WARNING REPORT==== 21-Nov-2026::14:00:00 ===\n{ABRUPTLY}\n\n=ERROR REPORT==== 21-Nov-2026::14:00:09 ===\n{BEATS}"
    abrupt, beats = read(text, offset_s=7200).events
    assert (abrupt.kind, abrupt.time) == (ABRUPT, NOON)
    assert (beats.kind, beats.timeout_s, beats.time) == (MISSED, 60.0, NOON + 9)
    log = read(text)
    assert log.zone_assumed and log.events[0].time == NOON + 7200 and not log.unreadable
    assert not read(new(ABRUPTLY)).zone_assumed


@pytest.mark.parametrize(
    ("text", "kind", "reason"),
    [
        (f"closing AMQP connection <0.677.0> {ENDS}, vhost: '/', user: 'app')", CLOSED, ""),
        (f"closing AMQP connection {ENDS}, vhost: '/', user: 'app', duration: '6ms')", CLOSED, ""),
        (f"closing AMQP connection <0.677.0> {ENDS}):\n{{handshake_timeout,frame_header}}", HANDSHAKE, ""),
        (f"closing AMQP connection <0.677.0> {ENDS}):\n{{writer,send_failed,timeout}}", FAILED, "{writer,send_failed,timeout}"),
        (f"closing AMQP connection <0.677.0> {ENDS}):\nconnection_closed_abruptly", ABRUPT, "connection_closed_abruptly"),
        (BEATS.replace(":\n", ": "), MISSED, "missed heartbeats from client, timeout: 60s"),
        (BEATS.replace("):", " - api: 7 (x -> y)):"), MISSED, "missed heartbeats from client, timeout: 60s"),
        (f"closing AMQP connection <0.677.0> {ENDS}):", FAILED, ""),
        # a name that a client gave itself proves nothing
        (f"closing AMQP connection <0.677.0> {ENDS} - client unexpectedly closed TCP connection, vhost: '/', user: 'u')", CLOSED, ""),
        (
            f"Error on AMQP connection <0.677.0> {ENDS}, vhost: '/', user: 'a', state: running), channel 0:\n operation none caused",
            FAILED,
            "operation none caused",
        ),
    ],
)  # fmt: skip
def test_how_it_ended(text: str, kind: str, reason: str) -> None:
    event = one(new(text))
    assert (event.kind, event.client) == (kind, "10.0.0.5:51188")
    assert event.reason == reason or kind == HANDSHAKE


def test_ipv6_and_names() -> None:
    event = one(
        new(
            "closing AMQP connection <0.1.0> ([fd00::5]:51188 -> [fd00::9]:5672):\nclient unexpectedly closed TCP connection"
        )
    )
    assert (event.client, event.server) == ("[fd00::5]:51188", "[fd00::9]:5672")
    event = one(
        new(
            "closing AMQP connection [::1]:49321 -> [::1]:5672 (duration: '0ms'):\nHTTP GET request detected",
            level="error",
        )
    )
    assert (event.kind, event.client) == (FAILED, "[::1]:49321")


def test_when_it_was_accepted_and_what_is_open() -> None:
    other = "(10.0.0.6:40000 -> 10.0.0.9:5672)"
    log = read(
        new(f"accepting AMQP connection <0.677.0> {ENDS})", "info", "11:00:00.000000"),
        new(f"accepting AMQP connection <0.700.0> {other}", "info", "11:30:00.000000"),
        new(ABRUPTLY),
    )
    assert log.events[0].accepted == NOON - 3600
    assert log.open == {"10.0.0.6:40000": NOON - 1800}
    assert log.counts == {"accepted": 2, ABRUPT: 1}
    assert (log.first, log.last) == (NOON - 3600, pytest.approx(NOON + 0.25))


def test_a_line_of_another_process_between() -> None:
    """Each message is whole: heads that differ keep two apart."""
    first, second = new(ABRUPTLY).split("\n"), new(BEATS, "error", process="<0.9.0>").split("\n")
    log = read(first[0], first[1], second[0], second[1], new("unrelated", "info"))
    assert [event.kind for event in log.events] == [ABRUPT, MISSED]


def test_alarms() -> None:
    banner = "memory resource limit alarm set on node rabbit@a.\n\n*** Publishers will be blocked until this alarm clears ***\n"
    log = read(
        new(banner, at="12:00:00.000000"),
        new("disk resource limit alarm set on node rabbit@b.", at="12:00:05.000000"),
        new("memory resource limit alarm cleared on node rabbit@a", at="12:00:10.000000"),
        new("memory resource limit alarm cleared across the cluster", at="12:00:10.000100"),
    )
    memory, disk = log.alarms
    assert (memory.resource, memory.node, memory.since, memory.until) == ("memory", "rabbit@a", NOON, NOON + 10)
    assert (disk.resource, disk.node, disk.until) == ("disk", "rabbit@b", None)


def test_garbage_is_counted_and_passed_over() -> None:
    log = read("\x00\x01\ufffd not a record", new(ABRUPTLY), "  ##  ##      RabbitMQ 3.10.8", "{}", '{"msg": 1}', "2026-99-99 12:00:00+00:00 [info] <0.1.0> closing AMQP connection", new(BEATS, "error"))  # fmt: skip
    assert [event.kind for event in log.events] == [ABRUPT, MISSED]
    assert log.unreadable == 5
    assert log.lines == 9


def test_what_the_broker_left_out() -> None:
    line = "2026-11-21 12:00:00.000 [warning] <0.32.0> lager_error_logger_h dropped 228 messages in the last second that exceeded"
    assert read(line).dropped == 228


def test_the_same_in_two_files_is_one(tmp_path: Path) -> None:
    plain, packed = tmp_path / "rabbit.log", tmp_path / "rabbit.log.1.gz"
    plain.write_text(new(ABRUPTLY) + "\n")
    accepted = new(f"accepting AMQP connection <0.677.0> {ENDS})", "info", "11:00:01.000000")
    older = new(BEATS, "error", "11:00:00.000000"), accepted, new(ABRUPTLY)
    packed.write_bytes(gzip.compress("".join(f"{one}\n" for one in older).encode()))
    torn: list[str] = []
    log = rabbitmq_log.read([str(plain), str(packed)], 0.0, lambda event: True, torn.append)
    assert [event.kind for event in log.events] == [MISSED, ABRUPT] and log.counts == {
        ABRUPT: 1,
        MISSED: 1,
        "accepted": 1,
    }
    assert log.events[1].accepted == NOON - 3599 and not log.open
    packed.write_bytes(packed.read_bytes()[:-9])
    log = rabbitmq_log.read([str(packed)], 0.0, lambda event: True, torn.append)
    assert len(torn) == 1 and "torn" in torn[0]


def test_files_that_are_none(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CannotInspect):
            rabbitmq_log.read([str(path)], 0.0, lambda event: True, print)


@given(
    st.lists(
        st.one_of(
            st.text(),
            st.sampled_from([*new(ABRUPTLY).split("\n"), ABRUPTLY, "=INFO REPORT==== 1-Jan-2020::00:00:00 ==="]),
        )
    )
)
@example(
    [
        "=INFO REPORT==== 99-Xxx-2020::99:99:99 ===",
        '{"log": "{\\"log\\": 1}"}',
        '{"time": 1e999, "msg": ""}',
        '{"time": true, "msg": ""}',
    ]
)
@settings(max_examples=60, deadline=None)
def test_nothing_breaks_it(lines: list[str]) -> None:
    log = read(*lines)
    assert log.unreadable <= log.lines


@pytest.mark.parametrize(
    ("line", "time", "exact"),
    [
        ("[2026-11-21 12:00:30 +0000] [7] [CRITICAL] WORKER TIMEOUT (pid:9)", NOON + 30, False),
        ("[2026-11-21 14:00:30 +0200] [7] [CRITICAL] WORKER TIMEOUT (pid:9)", NOON + 30, False),
        (
            "2026-11-21T12:00:30.250Z [2026-11-21 14:00:30 +0200] [7] [CRITICAL] WORKER TIMEOUT (pid:9)",
            NOON + 30.25,
            True,
        ),
        ("2026-11-21 12:00:30,250 CRITICAL gunicorn.error WORKER TIMEOUT (pid:9)", NOON + 30.25, True),
        ("[CRITICAL] WORKER TIMEOUT (pid:9)", None, False),
        ("[21/Nov/2026:14:00:30 +0200] CRITICAL WORKER TIMEOUT (pid:9)", NOON + 30, False),
        ("[21/Nov/2026 12:00:30] CRITICAL WORKER TIMEOUT (pid:9)", NOON + 30, False),
        (f'{{"ts": {NOON + 30.25}, "msg": "WORKER TIMEOUT (pid:9)"}}', NOON + 30.25, True),
        (f'{{"msg": "WORKER TIMEOUT (pid:9)", "timestamp":{NOON + 30:.0f}250}}', NOON + 30.25, True),
        (f'{{"job": {NOON:.0f}, "msg": "WORKER TIMEOUT (pid:9)"}}', None, False),
    ],
)
def test_the_time_of_other_programs_lines(line: str, time: float | None, exact: bool) -> None:
    assert moment_of(line, 0.0) == (time, exact)


def test_gunicorns_log_may_be_packed_and_one_without_timeouts_is_said(tmp_path: Path) -> None:
    packed, other = tmp_path / "error.log.gz", tmp_path / "celery.log"
    packed.write_bytes(gzip.compress(b"[2026-11-21 12:00:30 +0000] [7] [CRITICAL] WORKER TIMEOUT (pid:9)\n"))
    other.write_text("[2026-11-21 12:00:30,1: ERROR/MainProcess] Hard time limit (30s) exceeded for app.hang[6d]\n")
    torn: list[str] = []
    (found,) = recorded_timeouts.read((), (), (str(packed), str(other), "/dev/null"), 0.0, torn.append)
    assert (found.pid, found.killed) == (9, NOON + 30)
    assert "1 hard time limit of Celery" in torn[0] and "/dev/null: no WORKER TIMEOUT" in torn[1]
