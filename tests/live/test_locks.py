"""Locks that cannot be had: the verdict on each program of tests/targets/stuck_locks.py, with both engines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness import command, crowd

pytestmark = pytest.mark.xdist_group("locks")

CIRCLES = ["mutexes_crossed", "mutexes_in_a_ring", "rlocks_crossed", "locks_crossed", "rlock_and_mutex_crossed"]
HELD = ["held_by_a_receiver", "held_by_a_sleeper"]
engines = pytest.mark.parametrize("engine", ["auto", "none"])


@pytest.fixture(scope="module")
def hung() -> Iterator[dict[str, crowd.Hung]]:
    with crowd.start("stuck_locks.py", ["mutex_twice", "lock_twice", "ended_owner", *CIRCLES, *HELD]) as programs:
        yield programs


@engines
def test_a_mutex_locked_twice(hung: dict[str, crowd.Hung], engine: str):
    target = hung["mutex_twice"]
    target.wait("futex")
    report = command.check(target.pid, "deadlock", "--engine", engine, confidence="proven")
    (lock,) = (lock for lock in report["locks"] if lock["kind"] == "pthread-mutex")
    assert [(owner["tid"], owner["state"]) for owner in lock["owners"]] == [(target.words[1], "self")]
    assert report.verdict["tid"] == target.words[1]
    assert "holds itself" in report.summary
    assert report.evidence("owner") == target.words[1]
    assert report.verdict["remedy"]["now"]


@engines
@pytest.mark.parametrize("case", CIRCLES)
def test_a_circle(hung: dict[str, crowd.Hung], case: str, engine: str):
    target = hung[case]
    target.wait("futex")
    report = command.check(target.pid, "deadlock", "--engine", engine, confidence="proven")
    assert report.verdict["tid"] in target.words[1:]
    assert "in a circle" in report.summary
    owners = {owner["tid"] for lock in report["locks"] for owner in lock["owners"]}
    assert set(target.words[1:]) <= owners
    edges = {(edge["from"], edge["to"]) for edge in report["graph"]["edges"]}
    for tid in target.words[1:]:
        locks = [to for source, to in edges if source == f"thread:{tid}"]
        assert any((lock, f"thread:{other}") in edges for lock in locks for other in target.words[1:]), edges


@engines
def test_a_plain_lock_taken_twice_by_the_only_thread(hung: dict[str, crowd.Hung], engine: str):
    target = hung["lock_twice"]
    target.wait("futex", 6)
    report = command.check(target.pid, "deadlock", "--engine", engine)
    assert report.confidence in ("proven", "likely")


@engines
def test_the_owner_ended(hung: dict[str, crowd.Hung], engine: str):
    target = hung["ended_owner"]
    target.wait("futex")
    report = command.check(target.pid, "orphaned-lock", "--engine", engine, confidence="proven")
    assert "ended without releasing it" in report.summary


@engines
@pytest.mark.parametrize("case", HELD)
def test_the_owner_lives_and_sleeps(hung: dict[str, crowd.Hung], case: str, engine: str):
    target = hung[case]
    waiter, holder = target.words[1:]
    target.wait("futex", 6, [waiter])
    within = command.check(target.pid, "waiting", "--engine", engine, "--stuck-after", 3600)
    assert within["locks"]
    report = command.check(target.pid, "lock-held", "--engine", engine, "--stuck-after", 5)
    assert report.verdict["tid"] == waiter
    assert str(holder) in report.summary
    assert report.evidence("owner") == holder
