"""`slow-client` and `peer-not-reading`, and the clients that only look slow."""

from __future__ import annotations

import pytest
from stucktrace.diagnosis import diagnose
from stucktrace.diagnosis.model import LIKELY, POSSIBLE, PROVEN, Budgets, Finding
from stucktrace.diagnosis.network_inbound import peer_not_reading, slow_client
from stucktrace.facts import Snapshot, WorkerFact

from tests.unit import known_stacks as k
from tests.unit.snapshots import STDLIB, black_hole, call, listen, parent, peer, snapshot, tcp, thread

BUDGETS = Budgets()
SYNC = WorkerFact("gunicorn-worker", worker_class="sync", timeout_s=30.0)
GTHREAD = WorkerFact("gunicorn-worker", worker_class="gthread", timeout_s=30.0)


def slow(snap: Snapshot) -> list[Finding]:
    return list(slow_client(snap, BUDGETS))


def blocked(snap: Snapshot) -> list[Finding]:
    return list(peer_not_reading(snap, BUDGETS))


def client(fd: int = 9, **more):  # type: ignore[no-untyped-def]
    values = {
        "local": "10.0.0.1:8000",
        "remote": "10.9.9.9:51234",
        "direction": "in",
        "bytes_received": 0,
        "bytes_sent": 0,
    }
    return tcp(fd, **(values | more))


def reading(stack, age_s: float, worker=SYNC, **more):  # type: ignore[no-untyped-def]
    return snapshot(
        thread(100, "recvfrom", fd=9, blocked_s=age_s),
        stacks={100: stack},
        sockets=[client(**more), listen(5)],
        worker=worker,
    )


def test_a_client_that_sends_nothing_holds_a_sync_worker() -> None:
    assert slow(reading(k.GUNICORN_READS, 2.0)) == []
    snap = reading(k.GUNICORN_READS, 12.0)
    (finding,) = slow(snap)
    assert (finding.code, finding.confidence) == ("slow-client", PROVEN)
    for word in ("10.9.9.9:51234", "12 s", "nothing at all"):
        assert word in finding.summary
    assert "gthread" in " ".join(later.do for later in finding.later)
    assert diagnose(snap, BUDGETS).verdict.code == "slow-client"


def test_a_client_that_stopped_amid_its_request() -> None:
    (finding,) = slow(reading(k.GUNICORN_READS, 12.0, bytes_received=40, last_receive_s=11.0))
    assert finding.confidence == LIKELY
    assert "11 s" in finding.summary and "nothing more" in finding.summary


def test_a_client_that_still_sends() -> None:
    assert slow(reading(k.GUNICORN_READS, 12.0, bytes_received=40_000, last_receive_s=0.3)) == []


def test_the_class_is_known_from_the_frames_too() -> None:
    (finding,) = slow(reading(k.GUNICORN_READS, 12.0, worker=WorkerFact("gunicorn-worker")))
    assert finding.confidence == PROVEN


def test_pythons_own_server_serves_one_at_a_time() -> None:
    (finding,) = slow(reading(k.HTTP_SERVER_READS, 12.0, worker=WorkerFact("python")))
    assert finding.confidence == PROVEN


@pytest.mark.parametrize(
    ("stack", "worker"),
    [("GTHREAD_READS", GTHREAD), ("HTTP_SERVER_THREAD_READS", WorkerFact("python"))],
)
def test_where_others_go_on_it_is_only_possible(stack: str, worker: WorkerFact) -> None:
    snap = reading(getattr(k, stack), 12.0, worker=worker)
    assert [finding.confidence for finding in slow(snap)] == [POSSIBLE]
    assert diagnose(snap, BUDGETS).verdict.verdict_class == "healthy"


@pytest.mark.parametrize("qualified", [True, False])
def test_a_child_forked_for_one_client_holds_nobody_up(qualified: bool) -> None:
    """ForkingMixIn: the parent goes on accepting. Before CPython 3.11 the class is not named."""
    names = ("ForkingMixIn.process_request", "BaseServer.serve_forever") if qualified else (
        "process_request", "serve_forever")  # fmt: skip
    stack = [
        f"SocketIO.readinto {STDLIB}socket.py:706",
        f"BaseHTTPRequestHandler.handle_one_request {STDLIB}http/server.py:402",
        f"{names[0]} {STDLIB}socketserver.py:625",
        f"{names[1]} {STDLIB}socketserver.py:238",
        *k.MAIN,
    ]
    alive = [] if qualified else [parent()]
    snap = snapshot(
        thread(100, "recvfrom", fd=9, blocked_s=60.0), stacks={100: stack}, relatives=alive,
        sockets=[client(bytes_received=80, last_receive_s=60.0), listen(5)], worker=WorkerFact("python"),
    )  # fmt: skip
    assert {finding.confidence for finding in slow(snap)} <= {POSSIBLE}
    assert diagnose(snap, BUDGETS).verdict.verdict_class == "healthy"


def test_a_raw_server_waiting_for_its_client_is_healthy() -> None:
    snap = reading([f"serve_client {k.APP}:9", *k.MAIN], 86400.0, worker=WorkerFact("python"))
    assert slow(snap) == []
    assert diagnose(snap, BUDGETS).verdict.verdict_class == "healthy"


def sending(age_s: float = 12.0, **socket):  # type: ignore[no-untyped-def]
    values = {"timer": "persist", "backoff": 5, "send_bytes": 2_600_000, "send_window_bytes": 0, "bytes_received": 80,
              "rto_s": 6.4}  # fmt: skip
    return snapshot(
        thread(100, "sendto", fd=9, blocked_s=age_s), stacks={100: k.GUNICORN_WRITES},
        sockets=[client(**(values | socket))], worker=SYNC,
    )  # fmt: skip


def test_a_client_that_reads_nothing() -> None:
    assert blocked(sending(3.0)) == []
    (finding,) = blocked(sending())
    assert (finding.code, finding.confidence) == ("peer-not-reading", LIKELY)
    for word in ("10.9.9.9:51234", "12 s", "2.6 MB", "window"):
        assert word in finding.summary
    assert blocked(sending(40.0))[0].confidence == PROVEN
    assert diagnose(sending(40.0), BUDGETS).verdict.code == "peer-not-reading"


def test_a_client_has_the_budget_of_a_request_where_one_was_given() -> None:
    given = Budgets(stuck_after_s=30.0, stuck_after_given=True)
    assert list(peer_not_reading(sending(12.0), given)) == []
    assert list(peer_not_reading(sending(31.0), given)) != []
    guarded = Budgets(stuck_after_s=30.0, stuck_after_given=True, guarded_s=8.0)
    assert list(peer_not_reading(sending(12.0), guarded)) != []


def test_how_long_a_window_has_been_closed() -> None:
    """Probes after 0.2, 0.6, 1.4, 3.0, 6.2 and 12.6 s; the next one comes in a second."""
    (finding,) = blocked(sending(600.0, backoff=6, rto_s=0.2, timer_expires_s=1.0))
    assert "24 s" in finding.summary


def test_a_poll_for_writing_is_a_send_too() -> None:
    poll = call("poll", 9, endless=False, timeout_s=30.0, waits_to="write")
    snap = snapshot(
        thread(100, poll, blocked_s=12.0), stacks={100: k.MAIN},
        sockets=[client(timer="persist", backoff=5, send_bytes=2_600_000, send_window_bytes=0)],
    )  # fmt: skip
    assert blocked(snap)


def test_a_peer_of_this_node_with_a_full_queue() -> None:
    full = peer(600, command="nc", unread_bytes=6_000_000)
    (finding,) = blocked(sending(timer="", backoff=0, peer=full))
    assert "nc" in finding.summary


def test_a_unix_peer_that_does_not_read() -> None:
    unix = tcp(9, family="unix", protocol="unix-stream", state="CONNECTED", local="", remote="/run/log.sock", timer="",
               peer=peer(600, command="logd", unread_bytes=200_000, holder_state="T"), unacked=None, send_bytes=None)  # fmt: skip
    (finding,) = blocked(snapshot(thread(100, "sendto", fd=9, blocked_s=12.0), stacks={100: k.MAIN}, sockets=[unix]))
    assert finding.confidence == PROVEN
    assert "stopped" in finding.summary


@pytest.mark.parametrize(
    ("what", "snap"),
    [
        ("a slow reader whose window opens now and then", sending(window_acked_bytes=65536)),
        ("a window that closed a second ago", sending(backoff=2, rto_s=0.204, timer_expires_s=0.4)),
        ("a reader behind: data went out to it a second ago",
         sending(timer="", backoff=0, last_send_s=1.0, peer=peer(600, command="nc", unread_bytes=6_000_000))),
        ("bytes are acknowledged", sending(timer="retransmit", backoff=0, unacked=10)),
        ("a dead path", snapshot(thread(100, "sendto", fd=7, blocked_s=20), sockets=[black_hole(send_bytes=2_600_000)])),
        ("a closed window with nothing to send", sending(send_bytes=0)),
        ("a thread that receives", snapshot(
            thread(100, "recvfrom", fd=9, blocked_s=60), stacks={100: k.BLPOP}, sockets=[client(timer="persist")])),
    ],
)  # fmt: skip
def test_not_blocked(what: str, snap: Snapshot) -> None:
    assert blocked(snap) == [], what
