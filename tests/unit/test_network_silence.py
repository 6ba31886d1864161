"""`peer-silent`: a reply that is overdue on a living connection, and every wait that may last."""

from __future__ import annotations

import pytest
from stucktrace.diagnosis import diagnose
from stucktrace.diagnosis.model import LIKELY, PROVEN, Budgets, Finding
from stucktrace.diagnosis.network_silence import peer_silent
from stucktrace.facts import Keepalive, Snapshot, WorkerFact

from tests.unit import known_stacks as k
from tests.unit.snapshots import SITE, black_hole, call, peer, process, snapshot, tcp, thread

BUDGETS = Budgets()


def found(snap: Snapshot, budgets: Budgets = BUDGETS) -> list[Finding]:
    return list(peer_silent(snap, budgets))


def receiving(stack, age_s: float, **more):  # type: ignore[no-untyped-def]
    worker = more.pop("worker", None)
    rest = {"process": more.pop("process")} if "process" in more else {}
    values = {"last_send_s": age_s, "last_receive_s": age_s, "last_ack_s": age_s, **more}
    return snapshot(
        thread(100, "recvfrom", fd=7, blocked_s=age_s),
        stacks={100: stack},
        sockets=[tcp(**values)],
        worker=worker,
        **rest,
    )


@pytest.mark.parametrize(
    "stack", ["CONFIRM", "CANCEL", "AMQP_HANDSHAKE", "TLS", "SMTP_GREETING", "PIKA_PUBLISH_IN_CALLBACK"]
)
def test_a_reply_that_is_owed_at_once(stack: str) -> None:
    assert found(receiving(getattr(k, stack), 4.0)) == []
    (finding,) = found(receiving(getattr(k, stack), 7.0))
    assert (finding.code, finding.confidence) == ("peer-silent", LIKELY)


def test_the_summary_says_what_and_since_when() -> None:
    (finding,) = found(receiving(k.CONFIRM, 35.0))
    for word in ("MainThread", "35 s", "basic_publish_confirm", "10.0.0.2:5672", "acknowledged"):
        assert word in finding.summary
    assert "alarm" in finding.summary, "the assumption that is left has a name"
    text = " ".join(line.text for line in finding.evidence)
    assert "nobody knows whether the peer still lives" in text
    assert "read_timeout" in finding.later[0].do


def test_armed_keepalive_says_that_the_peer_lives() -> None:
    (finding,) = found(receiving(k.CONFIRM, 35.0, keepalive=Keepalive(True, 60.0, 10.0, 6, 0)))
    text = " ".join(line.text for line in finding.evidence)
    assert "nobody knows" not in text


@pytest.mark.parametrize("stack", ["REQUESTS", "REDIS_GET", "PSYCOPG3", "SQLALCHEMY_C"])
def test_an_open_ended_request_has_the_budget(stack: str) -> None:
    assert found(receiving(getattr(k, stack), 28.0)) == []
    (finding,) = found(receiving(getattr(k, stack), 40.0))
    assert finding.confidence == LIKELY
    assert "budget" in finding.summary


def test_the_workers_own_timeout_is_the_budget() -> None:
    worker = WorkerFact("gunicorn-worker", worker_class="gthread", timeout_s=120.0)
    assert found(receiving(k.REQUESTS, 60.0, worker=worker)) == []
    assert found(receiving(k.REQUESTS, 130.0, worker=worker))
    assert found(receiving(k.REQUESTS, 60.0, worker=worker), Budgets(stuck_after_s=50.0, stuck_after_given=True))


def test_libpq_without_a_frame() -> None:
    def libpq(age_s: float):  # type: ignore[no-untyped-def]
        return snapshot(
            thread(100, call("poll", 7, waits_to="read"), blocked_s=age_s),
            stacks={100: k.MAIN},
            sockets=[tcp(remote="10.0.0.2:5432", last_send_s=age_s, last_receive_s=age_s)],
            process=process(hooked_c_clients=("libpq",), packages={"psycopg2-binary": "2.9.9"}),
        )

    assert found(libpq(20.0)) == []
    (finding,) = found(libpq(40.0))
    assert "statement_timeout" in finding.later[0].do


def test_psycopg3_polls_are_one_wait() -> None:
    poll = call("poll", 7, endless=False, timeout_s=0.1)
    snap = snapshot(
        thread(100, poll, blocked_s=0.05),
        stacks={100: k.PSYCOPG3},
        sockets=[tcp(last_send_s=42.0, last_receive_s=42.0)],
    )
    (finding,) = found(snap)
    assert "42 s" in finding.summary


@pytest.mark.parametrize(
    "stack",
    ["BLPOP", "XREAD", "PUBSUB", "KOMBU_CONSUMER", "KOMBU_MIXIN", "PIKA_CONSUMER", "PSYCOPG3_LISTEN", "STREAM", "GUNICORN_READS"],
)  # fmt: skip
def test_a_wait_whose_purpose_is_to_wait_never_ends_up_here(stack: str) -> None:
    assert found(receiving(getattr(k, stack), 86400.0)) == []
    assert diagnose(receiving(getattr(k, stack), 86400.0), BUDGETS).verdict.verdict_class == "healthy"


@pytest.mark.parametrize("function", ["main", "consume", "run", "pull", "query", "fetch", "request"])
def test_a_raw_socket_under_any_name(function: str) -> None:
    """Whether it asked for an answer or subscribed to something cannot be told, so it is not called stuck."""
    snap = receiving([f"{function} {k.APP}:9", *k.MAIN], 86400.0, bytes_sent=30, bytes_received=0)
    assert found(snap) == []


def test_an_unknown_library_is_read_by_its_names() -> None:
    library = [f"Conn._read_packet {SITE}brandnewdb/conn.py:40", f"Client.query {SITE}brandnewdb/client.py:70", *k.MAIN]
    assert found(receiving(library, 20.0)) == []
    (finding,) = found(receiving(library, 40.0))
    assert finding.confidence == LIKELY
    assert "Client.query" in " ".join(line.text for line in finding.evidence)


UNREAD = peer(unread_bytes=120)


def test_two_servers_that_hold_a_request_for_12_s() -> None:
    assert found(receiving(k.REQUESTS, 12.0, peer=peer(unread_bytes=0))) == []
    (finding,) = found(receiving(k.REQUESTS, 12.0, peer=UNREAD))
    assert finding.confidence == LIKELY
    assert "120 bytes" in finding.summary and "unread" in finding.summary
    assert "redis-server" in finding.summary


def test_a_raw_request_that_the_peer_left_unread() -> None:
    asked = {"last_send_s": 12.0, "last_receive_s": 12.0, "bytes_sent": 18, "bytes_received": 0}
    assert found(receiving(k.MAIN, 12.0, peer=UNREAD, **asked))
    assert not found(receiving(k.MAIN, 3.0, peer=UNREAD, **(asked | {"last_send_s": 3.0})))


def test_a_raw_reader_that_was_answered_since() -> None:
    snap = receiving(k.MAIN, 12.0, peer=UNREAD, last_send_s=600.0, last_receive_s=12.0, bytes_sent=9, bytes_received=99)
    assert found(snap) == []


def test_a_subscriber_that_a_server_does_not_read_from() -> None:
    """Of a raw subscriber nobody knows whether its server ever reads; of Redis one does."""
    raw = [f"listen {k.APP}:9", *k.MAIN]
    assert found(receiving(raw, 600.0, peer=UNREAD)) == []
    (finding,) = found(receiving(k.BLPOP, 12.0, peer=UNREAD))
    assert finding.code == "peer-silent"


def test_a_stopped_peer_is_proof() -> None:
    stopped = peer(unread_bytes=563, holder_state="T", command="beam.smp")
    (finding,) = found(receiving(k.CONFIRM, 8.0, peer=stopped))
    assert finding.confidence == PROVEN
    assert "beam.smp (pid 812) is stopped" in finding.summary
    assert finding.now[0].do == "kill -CONT 812"


def test_a_connection_that_nobody_accepts() -> None:
    queued = peer(unread_bytes=80, pids=(), in_accept_queue=True, listener_pids=(700,))
    (finding,) = found(receiving(k.REQUESTS, 12.0, peer=queued))
    assert "accepted" in finding.summary
    assert found(receiving([f"listen {k.APP}:9", *k.MAIN], 600.0, peer=queued)) == []


@pytest.mark.parametrize(
    ("what", "snap"),
    [
        ("data on its way: half-open's matter", snapshot(
            thread(100, "recvfrom", fd=7, blocked_s=35), stacks={100: k.CONFIRM}, sockets=[black_hole()])),
        ("a client of ours", receiving(k.REQUESTS, 60.0, direction="in")),
        ("bytes still come in", snapshot(
            thread(100, call("poll", 7, endless=False, timeout_s=0.1), blocked_s=0.01), stacks={100: k.REQUESTS},
            sockets=[tcp(last_receive_s=0.2, last_send_s=90.0, window_received_bytes=900)], window_s=1.0)),
        ("a thread that sends", snapshot(
            thread(100, "sendto", fd=7, blocked_s=60), stacks={100: k.REQUESTS}, sockets=[tcp()])),
        ("a loop at rest", snapshot(
            thread(100, call("epoll_wait", 4), blocked_s=600), stacks={100: k.ASYNCIO_IDLE}, sockets=[tcp()])),
        ("nothing is known of its age", snapshot(
            thread(100, "recvfrom", fd=7, blocked_s=None), stacks={100: k.REQUESTS}, sockets=[tcp()])),
    ],
)  # fmt: skip
def test_not_silent(what: str, snap: Snapshot) -> None:
    assert found(snap) == [], what


def test_a_unix_socket_can_be_silent_too() -> None:
    unix = tcp(family="unix", protocol="unix-stream", state="CONNECTED", local="", remote="/run/postgresql/.s.PGSQL.5432",
               unacked=None, last_send_s=None, last_receive_s=None, keepalive=None, user_timeout_s=None)  # fmt: skip
    snap = snapshot(thread(100, "recvfrom", fd=7, blocked_s=40), stacks={100: k.PSYCOPG3}, sockets=[unix])
    (finding,) = found(snap)
    assert "/run/postgresql" in finding.summary


def test_a_streaming_server_is_judged_by_its_last_bytes() -> None:
    """A body that comes in slowly: each receive is young."""
    assert found(receiving(k.REQUESTS, 2.0, last_send_s=300.0)) == []
