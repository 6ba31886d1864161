"""Advice: true of the live socket, beside a verdict and never instead of one."""

from __future__ import annotations

import pytest
from stucktrace.diagnosis import configuration, diagnose
from stucktrace.diagnosis.model import Budgets
from stucktrace.facts import Keepalive, WorkerFact

from tests.unit import known_stacks as k
from tests.unit.snapshots import call, peer, snapshot, tcp, thread

BUDGETS = Budgets()
SLOW = Keepalive(True, 7200.0, 75.0, 9, 0)
FAST = Keepalive(True, 10.0, 2.0, 3, 0)


def request(stack=k.REQUESTS, age_s: float = 3.0, worker=None, poll=None, **socket):  # type: ignore[no-untyped-def]
    return snapshot(
        thread(100, poll or "recvfrom", **({} if poll else {"fd": 7}), blocked_s=age_s),
        stacks={100: stack}, sockets=[tcp(7, **socket)], worker=worker,
    )  # fmt: skip


WORKER = WorkerFact("gunicorn-worker", worker_class="gthread", timeout_s=30.0)


def test_keepalive_slower_than_the_workers_timeout() -> None:
    (finding,) = configuration.keepalive_too_slow(request(worker=WORKER, keepalive=SLOW), BUDGETS)
    assert finding.verdict_class == "advice"
    assert "2 h" in finding.summary or "131 min" in finding.summary
    assert "30 s" in finding.summary
    assert list(configuration.keepalive_too_slow(request(worker=WORKER, keepalive=FAST), BUDGETS)) == []
    assert list(configuration.keepalive_too_slow(request(keepalive=SLOW), BUDGETS)) == [], "no timeout to compare with"


def test_a_request_without_an_end() -> None:
    (finding,) = configuration.no_timeout(request(), BUDGETS)
    assert "without a timeout" in finding.summary
    assert "timeout" in finding.later[0].do


@pytest.mark.parametrize(
    ("what", "snap"),
    [
        ("a timeout of its own", request(poll=call("poll", 7, endless=False, timeout_s=60.0))),
        ("keepalive", request(keepalive=FAST)),
        ("a user timeout", request(user_timeout_s=20.0)),
        ("options not readable", request(keepalive=None)),
        ("young", request(age_s=0.2)),
        ("on this node", request(peer=peer())),
        ("loopback", request(remote="127.0.0.1:5432")),
        ("a subscription", request(stack=k.BLPOP)),
        ("a client of ours", request(direction="in")),
    ],
)
def test_no_advice(what: str, snap) -> None:  # type: ignore[no-untyped-def]
    assert list(configuration.no_timeout(snap, BUDGETS)) == [], what


def test_a_consumer_that_hears_no_heartbeat() -> None:
    (finding,) = configuration.no_heartbeat(request(k.KOMBU_CONSUMER, 600.0, last_receive_s=600.0), BUDGETS)
    assert "heartbeat" in finding.summary
    beats = request(k.KOMBU_CONSUMER, 25.0, last_receive_s=25.0)
    assert list(configuration.no_heartbeat(beats, BUDGETS)) == []
    armed = request(k.KOMBU_CONSUMER, 600.0, last_receive_s=600.0, keepalive=SLOW)
    assert list(configuration.no_heartbeat(armed, BUDGETS)) == []
    assert list(configuration.no_heartbeat(request(k.BLPOP, 600.0, last_receive_s=600.0), BUDGETS)) == []


def test_advice_does_not_change_a_healthy_verdict() -> None:
    diagnosis = diagnose(request(k.KOMBU_CONSUMER, 600.0, last_receive_s=600.0, last_send_s=600.0), BUDGETS)
    assert diagnosis.verdict.verdict_class == "healthy"
    assert "no-heartbeat" in [finding.code for finding in diagnosis.findings]
