"""`self-call` and `shared-connection`, and the pools that only look like it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from stucktrace.diagnosis import diagnose
from stucktrace.diagnosis.model import LIKELY, PROVEN, Budgets, Finding
from stucktrace.diagnosis.network_sharing import self_call, shared_connection
from stucktrace.facts import Snapshot, WorkerFact

from tests.unit import known_stacks as k
from tests.unit.snapshots import (
    PARENT,
    PID,
    call,
    listen,
    lock,
    owned_by,
    parent,
    peer,
    relative,
    snapshot,
    tcp,
    thread,
)

BUDGETS = Budgets()
SYNC = WorkerFact("gunicorn-worker", worker_class="sync", timeout_s=30.0)
MASTER = parent("gunicorn-master")


def called(snap: Snapshot) -> list[Finding]:
    return list(self_call(snap, BUDGETS))


def shared(snap: Snapshot) -> list[Finding]:
    return list(shared_connection(snap, BUDGETS))


def queued(*listeners: int):  # type: ignore[no-untyped-def]
    return peer(0, pids=(), in_accept_queue=True, listener_pids=listeners, unread_bytes=150, command="gunicorn")


def own_url(age_s: float, other_end, relatives=(MASTER,), worker=SYNC, threads=()):  # type: ignore[no-untyped-def]
    return snapshot(
        thread(100, "recvfrom", fd=9, blocked_s=age_s), *threads, stacks={100: k.REQUESTS}, worker=worker,
        sockets=[tcp(9, remote="127.0.0.1:8000", peer=other_end), listen(5)], relatives=relatives,
    )  # fmt: skip


def test_one_sync_worker_that_requests_its_own_url() -> None:
    assert called(own_url(0.5, queued(PID, PARENT))) == []
    snap = own_url(4.0, queued(PID, PARENT))
    (finding,) = called(snap)
    assert (finding.code, finding.confidence) == ("self-call", PROVEN)
    for word in ("own pool", "accept queue", "only worker", "127.0.0.1:8000"):
        assert word in finding.summary
    verdict = diagnose(own_url(40.0, queued(PID, PARENT)), BUDGETS)
    assert [f.code for f in verdict.findings if f.verdict_class == "stuck"] == ["self-call"], "not silent besides"


def test_with_siblings_the_whole_pool_has_to_be_busy() -> None:
    sibling = relative(101, "sibling", kind="gunicorn-worker")
    assert called(own_url(2.0, queued(PID, 101, PARENT), (MASTER, sibling))) == []
    (finding,) = called(own_url(8.0, queued(PID, 101, PARENT), (MASTER, sibling)))
    assert finding.confidence == LIKELY


def test_accepted_by_the_own_process_and_not_read() -> None:
    worker = WorkerFact("gunicorn-worker", worker_class="gthread", threads=1)
    (finding,) = called(own_url(8.0, peer(PID, unread_bytes=150), worker=worker))
    assert finding.confidence == LIKELY


SERVING = [
    "Handler.do_GET /srv/app/web.py:9",
    "StreamRequestHandler.handle_one_request /usr/lib/python3.11/http/server.py:432",
]


def holding_what_a_request_needs(age_s: float, other_end, answers=SERVING) -> Snapshot:  # type: ignore[no-untyped-def]
    """Thread 100 waits for its own URL and holds a lock that thread 101 waits for."""
    return snapshot(
        thread(100, "recvfrom", fd=9, blocked_s=age_s), thread(101, blocked_s=age_s),
        stacks={100: k.REQUESTS, 101: answers}, sockets=[tcp(9, remote="127.0.0.1:8000", peer=other_end), listen(5)],
        locks=[lock(101, "lock", owner=owned_by(100))],
    )  # fmt: skip


def test_the_thread_that_would_answer_waits_for_the_callers_lock() -> None:
    snap = holding_what_a_request_needs(40.0, peer(PID))
    (finding,) = called(snap)
    assert finding.confidence == LIKELY
    assert "which is this very process" in finding.summary
    assert "(tid 101), which serves one here, waits for a lock that the caller holds" in finding.summary
    verdict = diagnose(snap, BUDGETS)
    assert verdict.findings[0].code == "self-call"
    assert "peer-silent" not in {each.code for each in verdict.findings}


@pytest.mark.parametrize(
    ("age_s", "other_end", "answers"),
    [
        (20.0, peer(PID), SERVING),
        (40.0, peer(812), SERVING),
        (40.0, peer(PID), ["work /srv/app/jobs.py:9"]),
    ],
    ids=["within the budget of a request", "another process", "a thread that answers no requests"],
)
def test_a_lock_held_over_a_call_that_may_yet_be_answered(age_s, other_end, answers) -> None:  # type: ignore[no-untyped-def]
    assert called(holding_what_a_request_needs(age_s, other_end, answers)) == []


def test_a_silent_server_thread_of_a_plain_program_is_just_silent() -> None:
    """Nothing serves requests here: the other end is a thread that accepted and does not read."""
    snap = own_url(8.0, peer(PID, unread_bytes=150), relatives=(), worker=WorkerFact("python"))
    assert called(snap) == []
    assert diagnose(snap, BUDGETS).verdict.code == "peer-silent"


@pytest.mark.parametrize(
    ("what", "snap"),
    [
        ("a sibling works on it", own_url(20.0, peer(101, unread_bytes=0), (MASTER, relative(101, "sibling")))),
        ("another thread of the process works on it", own_url(20.0, peer(PID, unread_bytes=0))),
        ("another service's queue", own_url(20.0, queued(700))),
        ("no peer is known", own_url(20.0, None)),
    ],
)
def test_not_a_self_call(what: str, snap: Snapshot) -> None:
    assert called(snap) == [], what


SIBLING = relative(101, "sibling")


def on_one_connection(length: int = 7, stack=k.CONFIRM, age_s: float = 20.0, **socket):  # type: ignore[no-untyped-def]
    receive = call("recvfrom", 7, args=(7, 0x7F00, length, 0, 0, 0))
    return snapshot(
        thread(100, receive, blocked_s=age_s),
        stacks={100: stack},
        sockets=[tcp(7, **socket)],
        relatives=[parent(), SIBLING],
    )


def test_two_processes_inside_calls_on_one_connection() -> None:
    snap = on_one_connection(shared_with=(101,), used_by=(101,))
    (finding,) = shared(snap)
    assert (finding.code, finding.confidence) == ("shared-connection", LIKELY)
    assert "pid 101" in finding.summary and "fork" in finding.summary
    stuck = [f.code for f in diagnose(snap, BUDGETS).findings if f.verdict_class == "stuck"]
    assert stuck == ["shared-connection"], "not silent besides"
    assert "force_close_all" in finding.later[0].do


def test_an_absurd_length_on_top_is_proof() -> None:
    (finding,) = shared(on_one_connection(0x4FFFFFF9, shared_with=(101,), used_by=(101,)))
    assert finding.confidence == PROVEN
    assert "1.3 GB" in finding.summary


def test_an_absurd_length_alone_is_likely() -> None:
    (finding,) = shared(on_one_connection(0x4FFFFFF9, shared_with=(101,)))
    assert finding.confidence == LIKELY


@pytest.mark.parametrize(
    ("what", "snap"),
    [
        ("merely inherited: the parent holds it", on_one_connection(shared_with=(PARENT,))),
        ("held by nobody else", on_one_connection(0x4FFFFFF9)),
        ("a large body outside of any frame parser", on_one_connection(0x4FFFFFF9, stack=k.REQUESTS, shared_with=(101,))),
        ("a client that two workers hold", on_one_connection(shared_with=(101,), used_by=(101,), direction="in")),
        ("a datagram socket", on_one_connection(shared_with=(101,), used_by=(101,), protocol="udp")),
        ("a moment", on_one_connection(age_s=0.1, shared_with=(101,), used_by=(101,))),
    ],
)  # fmt: skip
def test_not_shared(what: str, snap: Snapshot) -> None:
    assert shared(snap) == [], what


def test_a_listening_socket_in_many_workers() -> None:
    poll = call("pselect6", 5, endless=False, timeout_s=1.0)
    snap = snapshot(
        thread(100, poll), stacks={100: k.GUNICORN_SYNC_IDLE}, worker=SYNC,
        sockets=[listen(5, shared_with=(101, 102), used_by=(101, 102))],
    )  # fmt: skip
    assert shared(snap) == []
    assert diagnose(snap, BUDGETS).verdict.code == "idle"


def test_a_stopped_listener_is_no_full_pool():
    other_end = replace(queued(301), holder_state="T")
    snap = snapshot(
        thread(100, "recvfrom", 7),
        stacks={100: k.REQUESTS},
        sockets=[tcp(7, remote="127.0.0.1:8000", peer=other_end)],
        relatives=[relative(301, "child")],
    )
    assert called(snap) == []
    assert diagnose(snap, BUDGETS).verdict.code == "peer-silent"
