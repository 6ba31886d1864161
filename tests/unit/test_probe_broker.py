"""URLs of brokers and what is shown of them; percentiles, bands and exit status; who answers in place of a broker."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from stucktrace import probe_amqp, probe_connect
from stucktrace.broker_urls import BrokerUrl, parse
from stucktrace.collectors.resp import Resp, RespError
from stucktrace.errors import UsageError
from stucktrace.output import _SECRET
from stucktrace.probe_broker import Outcome, Series, Wanted, _in_the_air, _judge, run
from stucktrace.probe_connect import Phases, ProbeFailed, Tls, connect, greeting
from stucktrace.probe_show import as_json, as_text

HEADER = b"AMQP\x00\x00\x09\x01"


@pytest.mark.parametrize(
    "text, shown, vhost",
    [
        ("amqp://host", "amqp://host:5672", "/"),
        ("amqp://host/", "amqp://host:5672", "/"),
        ("amqp://host//", "amqp://host:5672", "/"),
        ("amqp://host/%2F", "amqp://host:5672", "/"),
        ("amqp://host/a%2Fb", "amqp://host:5672/a/b", "a/b"),
        ("pyamqp://u:p%40ss@host:1/v", "amqp://u@host:1/v", "v"),
        ("amqps://u:p:q@[fe80::1]/v", "amqps://u@[fe80::1]:5671/v", "v"),
        ("amqp://u:p@ss@10.0.0.5:5673", "amqp://u@10.0.0.5:5673", "/"),
        ("rediss://:secret@host/2?ssl_cert_reqs=none", "rediss://host:6379/2", "2"),
    ],
)
def test_urls(text, shown, vhost):
    url = parse(text)
    assert (str(url), url.vhost) == (shown, vhost)
    assert url.password not in repr(url) or not url.password


@pytest.mark.parametrize(
    "text",
    [
        "host:5672",
        "",
        "amqp://",
        "amqp://[::1",
        "amqp://h:x/",
        "ftp://u:geheim@h",
        "amqp://a;amqp://b",
        "amqp://u:geheim@h\n",
    ],
)
def test_what_is_no_url_of_a_broker_is_not_repeated(text):
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert "geheim" not in caught.value.message + caught.value.remedy


def test_passwords_from_the_environment(monkeypatch):
    monkeypatch.setenv("STUCKTRACE_BROKER_PASSWORD", "from the environment")
    assert parse("amqp://u@h").password == "from the environment"
    assert parse("amqp://u:own@h").password == "own"


@pytest.mark.parametrize(
    "line, clean",
    [
        ("unexpected argument (amqp://u:geh@eim@h/v)", "unexpected argument (amqp://u:***@h/v)"),
        ("unexpected argument (u:geheim@h)", "unexpected argument (u:***@h)"),
        ("user: mail@h; try `--help`", "user: mail@h; try `--help`"),
    ],
)
def test_complaints_have_no_passwords(line, clean):
    assert _SECRET.sub(r"\1:***@", line) == clean


def outcome_of(milliseconds: list[float], *more: list[float], threshold_ms: float | None = None) -> Outcome:
    wanted = Wanted(parse("amqp://u:geheim@h"), Tls(), samples=len(milliseconds), threshold_ms=threshold_ms)
    outcome = Outcome(wanted, 0.0)
    kinds = ("persistent", "transient")
    _judge(outcome, {kind: [ms / 1000 for ms in times] for kind, times in zip(kinds, (milliseconds, *more))})
    return outcome


def test_percentiles_by_nearest_rank():
    series = Series("ping", tuple(number / 1000 for number in range(100, 0, -1)))
    assert [series.percentile_s(share) for share in (0.5, 0.95, 0.99, 1.0)] == [0.05, 0.095, 0.099, 0.1]
    assert Series("ping", (0.007,)).percentile_s(0.5) == 0.007


@pytest.mark.parametrize(
    "p99_ms, code, status",
    [
        (19.9, "healthy", 0),
        (20, "slow", 5),
        (99, "slow", 5),
        (100, "degraded", 1),
        (999, "degraded", 1),
        (1000, "broken", 1),
    ],
)
def test_bands(p99_ms, code, status):
    outcome = outcome_of([1.0] * 98 + [p99_ms, p99_ms])
    assert (outcome.code, outcome.exit_status) == (code, status)
    # One of a hundred may be slower than the 99 % that are spoken of.
    assert outcome_of([1.0] * 99 + [p99_ms]).code == "healthy"


def test_a_threshold_and_a_slow_disk():
    assert outcome_of([5.0], threshold_ms=4).exit_status == 1
    assert outcome_of([5.0], threshold_ms=6).exit_status == 0
    assert outcome_of([50.0], threshold_ms=60).exit_status == 5
    assert "disk" in outcome_of([500.0], [1.0]).remedy
    answer = as_json(outcome_of([500.0], [1.0], threshold_ms=100))
    assert answer["verdict"]["over_threshold"] is True
    assert "geheim" not in str(answer) + as_text(outcome_of([500.0]), True)


@contextmanager
def answering(*answers: bytes) -> Iterator[BrokerUrl]:
    """A server that answers one connection after the other with these bytes, and ends it; b"" ends it at once."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for answer in answers:
                client, _ = server.accept()
                with client:
                    client.recv(64)
                    client.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield parse(f"amqp://u:geheim@127.0.0.1:{server.getsockname()[1]}")
        thread.join(60)


@pytest.mark.parametrize(
    "answers, words",
    [
        ([b"HTTP/1.1 400 Bad Request\r\n"], "is an HTTP server"),
        ([b"", b"HTTP/1.1 400 Bad Request\r\n"], "is an HTTP server"),
        ([b"", b"-NOAUTH Authentication required.\r\n"], "is a Redis server"),
        ([b"\x15\x03\x01\x00\x02\x02\x46"], "speaks TLS"),
        ([b"AMQP\x03\x01\x00\x00"], "speaks AMQP 1-0-0"),
        ([b"SSH-2.0-OpenSSH_9\x1b[31m\r\n"], "does not speak AMQP: it answers 'SSH-2.0-OpenSSH_9\\x1b[31m'"),
        ([b"", b""], "ends the connection instead of an AMQP greeting"),
    ],
)
def test_who_answers_in_place_of_a_broker(answers, words):
    with answering(*answers) as url, pytest.raises(ProbeFailed) as caught:
        greeting(connect(url, Tls(), Phases()), url, Tls(), HEADER)
    assert words in caught.value.message
    assert "geheim" not in caught.value.message + caught.value.remedy


def test_a_broker_that_accepts_and_is_silent(monkeypatch):
    monkeypatch.setattr(probe_connect, "STEP_S", 0.6)
    monkeypatch.setattr(probe_connect, "_PATIENCE_S", 0.2)
    monkeypatch.setattr(probe_connect, "_SECOND_QUESTION_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        outcome = run(Wanted(parse(f"amqp://u:geheim@127.0.0.1:{server.getsockname()[1]}"), Tls()))
    assert (outcome.code, outcome.reason, outcome.exit_status) == ("broken", "silent", 1)
    assert "connection.start" in outcome.summary


def test_replies_of_redis():
    ours, theirs = socket.socketpair()
    resp = Resp(ours)
    theirs.sendall(b"+PONG\r\n:3\r\n$5\r\na\r\nbc\r\n*2\r\n$-1\r\n:1\r\n-NOAUTH no\r\n!odd\r\n")
    assert [resp.ask("PING") for _ in range(4)] == ["PONG", 3, "a\r\nbc", [None, 1]]
    assert theirs.recv(14) == b"*1\r\n$4\r\nPING\r\n"
    with pytest.raises(RespError) as caught:
        resp.ask("PING")
    assert caught.value.code == "NOAUTH"
    with pytest.raises(ValueError):
        resp.ask("PING")
    theirs.close()
    with pytest.raises(OSError):
        resp.ask("PING")


@pytest.mark.parametrize("text", ["amqp://u:12/geheim@h/v", "amqp://u:12#geheim@h", "amqp://u@d:12?geheim@h"])
def test_the_end_of_a_password_is_no_virtual_host(text):
    """A bare / ? or # in a password makes its beginning look like a port, and its end like a path."""
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert "%-encode" in caught.value.remedy and "geheim" not in caught.value.message


def test_a_server_of_single_bytes_does_not_hold_us():
    ours, theirs = socket.socketpair()
    ours.settimeout(0.5)

    def trickle() -> None:
        with contextlib.suppress(OSError):
            while True:
                theirs.sendall(b"+")
                time.sleep(0.1)

    thread = threading.Thread(target=trickle, daemon=True)
    thread.start()
    with pytest.raises(TimeoutError):
        Resp(ours).ask("PING")
    ours.close()
    thread.join(60)


def test_heartbeats_are_no_reply(monkeypatch):
    """A broker whose queue hangs still sends them: each used to begin the ten seconds anew."""
    monkeypatch.setattr(probe_amqp, "STEP_S", 0.8)
    start = b"\x00\x0a\x00\x0a\x00\x09" + b"\x00\x00\x00\x00" + b"\x00\x00\x00\x05PLAIN" + b"\x00\x00\x00\x05en_US"
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            client, _ = server.accept()
            with client, contextlib.suppress(OSError):
                client.recv(64)
                client.sendall(b"\x01\x00\x00" + len(start).to_bytes(4, "big") + start + b"\xce")
                while True:
                    client.sendall(b"\x08\x00\x00\x00\x00\x00\x00\xce")
                    time.sleep(0.2)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        outcome = run(Wanted(parse(f"amqp://u:geheim@127.0.0.1:{server.getsockname()[1]}"), Tls()))
        thread.join(60)
    assert (outcome.code, outcome.reason) == ("broken", "silent")


def test_stopped_in_a_round_trip_that_hangs():
    outcome = outcome_of([1.0, 2.0])
    _in_the_air(outcome, 0.2)
    assert outcome.code == "healthy"
    _in_the_air(outcome, 4.0)
    assert (outcome.code, outcome.exit_status) == ("broken", 1) and "no answer for 4 s" in outcome.summary
