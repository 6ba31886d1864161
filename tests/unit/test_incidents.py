"""Verdicts on incidents, from literal incidents and last looks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from stucktrace.alerts import fingerprint
from stucktrace.diagnosis.incidents import diagnose
from stucktrace.facts import ConntrackFact, Snapshot, WorkerFact
from stucktrace.facts_codec import decode_as, encode_as
from stucktrace.incidents import (
    FDS,
    RSS,
    BeatStopped,
    BeatTwice,
    ConntrackPressure,
    Growth,
    Incident,
    LoopStalled,
    OomKilled,
    OrphanedWorker,
    RestartStorm,
    Start,
    WorkerAborted,
    code_of,
)
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
    assert "its main thread stood in dumps, called from checkout" in timeout.summary


def test_a_killed_worker_is_not_called_idle():
    facts = snapshot(
        thread(PID, "futex", blocked_s=8.0),
        stacks={PID: ["Condition.wait /usr/lib/python3.11/threading.py:320", *STACK[PID][2:]]},
        worker=WorkerFact("gunicorn-worker", "sync", timeout_s=8.0),
    )
    timeout = diagnose(facts, aborted()).verdict
    assert "idle" not in timeout.summary and "stood in wait, called from checkout" in timeout.summary


STARTS = tuple(Start(200 + number, NOW + number, 0.5, 11) for number in range(7)) + (Start(208, NOW + 8, None),)
SAMPLES = tuple((NOW - 3600 + 60.0 * step, 2e8 + 1e7 * step) for step in range(61))
TABLE = ConntrackFact(4026531840, 990, 1000)

ALL: list[tuple[Incident, str, tuple[str, str, str], tuple[str, ...]]] = [
    (
        RestartStorm("gunicorn-master", STARTS, 8.0, application="gunicorn shop:app"),
        "gunicorn-master",
        ("restart-storm", "proven", "critical"),
        ("8 starts in 8 s", "0.5 s each", "SIGSEGV (7)"),
    ),
    (
        RestartStorm("celery-main", (Start(200, NOW, 2.0, 0x9B00),), 8.0, "--max-memory-per-child=1"),
        "celery-main",
        ("restart-storm", "proven", "critical"),
        ("--max-memory-per-child=1", "exit status 155"),
    ),
    (
        OrphanedWorker(MASTER, NOW - 30, 1, "init"),
        "celery-child",
        ("orphaned-worker", "proven", "critical"),
        ("outlived its master (pid 50) by 30 s", "no task"),
    ),
    (
        OrphanedWorker(MASTER, NOW - 30, 1, "init"),
        "gunicorn-worker",
        ("orphaned-worker", "likely", "critical"),
        ("still accepts",),
    ),
    (
        OomKilled(NOW, 480_000_000, 512_000_000, 511_000_000, "/kubepods/pod1"),
        "celery-child",
        ("oom-killed", "proven", "critical"),
        ("while it held 480.0 MB", "may use 512.0 MB"),
    ),
    (
        OomKilled(NOW, None, None, 9_000_000, "/system.slice/shop.service"),
        "",
        ("oom-killed", "proven", "critical"),
        ("the node ran out",),
    ),
    (OomKilled(NOW, None, None, None, seen=False), "", ("oom-killed", "likely", "critical"), ("get memory back",)),
    (
        Growth(RSS, SAMPLES, 1e7 / 60, 2e9, "cgroup /x"),
        "gunicorn-worker",
        ("memory-growth", "likely", "warning"),
        ("from 200.0 MB to 800.0 MB of memory in 60 min", "2.0 GB (cgroup /x) in 2 h"),
    ),
    (
        Growth(FDS, ((NOW - 1200, 60.0), (NOW, 700.0)), 0.53, 1024.0, "RLIMIT_NOFILE"),
        "gunicorn-worker",
        ("fd-growth", "likely", "warning"),
        ("from 60 open files to 700 open files", "1024 open files (RLIMIT_NOFILE)"),
    ),
    (LoopStalled(3, 31.0), "celery-main", ("blocked-loop", "likely", "critical"), ("stands still", "31 s")),
    (
        BeatStopped(400.0, 300.0, "--max-interval"),
        "celery-beat",
        ("beat-stopped", "likely", "critical"),
        ("not ticked for 7 min", "at most 5 min"),
    ),
    (
        BeatTwice(51, 600.0, "/srv/celerybeat-schedule", True),
        "celery-beat",
        ("beat-twice", "proven", "warning"),
        ("pids 51 and 100", "both have /srv/celerybeat-schedule open"),
    ),
    (BeatTwice(51, 600.0, "", False), "celery-beat", ("beat-twice", "likely", "warning"), ("the same command",)),
    (
        ConntrackPressure(TABLE, replace(TABLE, drop=4), 10.0),
        "gunicorn-worker",
        ("conntrack-pressure", "proven", "warning"),
        ("990 of 1000 entries", "4 new connections were dropped"),
    ),
]


@pytest.mark.parametrize(("incident", "kind", "what", "said"), ALL)
def test_what_each_incident_is_called_and_what_it_says(
    incident: Incident, kind: str, what: tuple[str, str, str], said: tuple[str, ...]
):
    facts = Snapshot(NOW, process(worker=WorkerFact(kind or "python")))
    found = diagnose(facts, incident).verdict
    assert (found.code, found.confidence, found.severity) == what
    assert found.code == code_of(incident) and found.chain and (found.now or found.later)
    for text in said:
        assert text in found.summary, found.summary
    verdict = reported(facts, incident)["verdict"]
    assert all("None" not in line["text"] for line in verdict["evidence"]), verdict["evidence"]
    assert decode_as(Incident, encode_as(Incident, incident)) == incident


def test_storms_of_two_applications_are_two_alerts():
    facts = Snapshot(NOW, process(worker=WorkerFact("gunicorn-master")))
    one, other = (
        RestartStorm("gunicorn-master", STARTS, 8.0, application=name) for name in ("gunicorn a", "gunicorn b")
    )
    assert fingerprint(reported(facts, one)) == fingerprint(reported(facts, replace(one, window_s=9.0)))
    assert fingerprint(reported(facts, one)) != fingerprint(reported(facts, other))
