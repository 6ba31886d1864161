"""Verdicts on incidents, from literal incidents and last looks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from stucktrace.alerts import fingerprint
from stucktrace.diagnosis.incidents import diagnose
from stucktrace.facts import Snapshot, WorkerFact
from stucktrace.incidents import WorkerAborted
from stucktrace.inspection import Inspection
from stucktrace.report import build

from tests.harness.command import validator
from tests.unit.snapshots import NOW, PID, black_hole, process, snapshot, thread

MASTER = 50
STACK = {
    PID: [
        "SocketIO.readinto /usr/lib/python3.11/socket.py:706",
        "read_response /usr/lib/python3/dist-packages/redis/connection.py:512",
        "checkout /srv/shop/views.py:31",
        "handle_request /usr/lib/python3/dist-packages/gunicorn/workers/sync.py:183",
    ]
}
NOBODY = Snapshot(NOW, process(worker=WorkerFact("gunicorn-worker", "sync", timeout_s=8.0)))


def hung(**more: Any) -> Snapshot:
    """A sync worker in a request to a Redis that is gone, 5 s after it began."""
    worker = WorkerFact("gunicorn-worker", "sync", timeout_s=8.0)
    return snapshot(
        thread(PID, "recvfrom", 7, blocked_s=5.0),
        stacks=STACK,
        sockets=[black_hole(age_s=5.0, remote="10.0.0.2:6379")],
        worker=worker,
        **more,
    )


def aborted(**more: Any) -> WorkerAborted:
    values: dict[str, Any] = {
        "master": MASTER,
        "time": NOW + 3.1,
        "timeout_s": 8.0,
        "heartbeat_age_s": 8.1,
        "application": "gunicorn shop:app",
    }
    return WorkerAborted(**(values | more))


def reported(facts: Snapshot, incident: Any) -> dict[str, Any]:
    report = build(Inspection(diagnose(facts, incident), facts, timings_ms={"total": 1.0}))
    validator().validate(report)
    return report


def test_a_timeout_names_what_the_worker_hung_in():
    diagnosis = diagnose(hung(), aborted())
    timeout, cause = diagnosis.findings[:2]
    assert diagnosis.verdict is timeout
    assert (timeout.code, timeout.confidence, timeout.severity) == ("worker-timeout", "proven", "critical")
    assert cause.code == "half-open" and cause.summary in timeout.summary
    assert (timeout.tid, timeout.fd, timeout.frame) == (cause.tid, cause.fd, cause.frame)
    assert f"master (pid {MASTER})" in timeout.summary and "no heartbeat for 8.1 s (timeout 8 s)" in timeout.summary
    assert fingerprint(reported(hung(), aborted()))[1:] == fingerprint(reported(hung(), aborted(master=51)))[1:]
    assert fingerprint(reported(hung(), aborted()))[2] == "10.0.0.2:6379"


def test_without_a_look_after_the_last_heartbeat_a_timeout_says_so():
    for facts in (NOBODY, replace(hung(), time=NOW - 60)):
        timeout = diagnose(facts, aborted()).verdict
        assert timeout.code == "worker-timeout" and "nobody had looked" in timeout.summary
        assert (timeout.tid, timeout.frame) == (None, None)
    assert fingerprint(reported(NOBODY, aborted())) == ("worker-timeout", "", "gunicorn shop:app")


def test_a_timeout_that_was_not_seen_is_likely():
    timeout = diagnose(hung(), aborted(seen=False)).verdict
    assert timeout.confidence == "likely" and "SIGABRT" not in timeout.summary


def test_a_worker_that_computed_for_too_long_names_its_own_code():
    facts = snapshot(
        thread(PID, None),
        stacks={PID: ["dumps /usr/lib/python3.11/json/__init__.py:231", *STACK[PID][2:]]},
        worker=WorkerFact("gunicorn-worker", "sync", timeout_s=8.0),
    )
    timeout = diagnose(facts, aborted()).verdict
    assert timeout.tid == PID and timeout.frame is not None
    assert facts.frames(PID)[timeout.frame].function == "checkout"
