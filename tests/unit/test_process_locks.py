"""Rules for locks that processes share, on literal snapshots."""

from __future__ import annotations

from dataclasses import replace

import pytest
from stucktrace.facts import OwnerElsewhere

from tests.unit.snapshots import call, codes, lock, owned_by, snapshot, thread, verdict

QUEUE = [
    "SemLock.__enter__ /usr/lib/python3.11/multiprocessing/synchronize.py:95",
    "SimpleQueue.get /usr/lib/python3.11/multiprocessing/queues.py:364",
    "worker /usr/lib/python3.11/multiprocessing/pool.py:114",
]


FOREVER = thread(syscall=call("futex", endless=True))


def shared(kind: str = "process-lock", **more):
    return lock(kind=kind, shared=True, **more)


def gone(assumes: str = ""):
    return owned_by(None, "absent", how="semaphore count", assumes=assumes)


def test_a_holder_that_is_gone_is_no_idleness():
    facts = snapshot(FOREVER, stacks={100: QUEUE}, locks=[shared(owner=gone())])
    found = verdict(facts)
    assert (found.code, found.confidence) == ("orphaned-lock", "proven")
    assert "a process that is gone" in found.summary


def test_what_is_taken_for_granted_is_said():
    facts = snapshot(FOREVER, stacks={100: QUEUE}, locks=[shared(owner=gone("who acquires it releases it"))])
    found = verdict(facts)
    assert (found.code, found.confidence) == ("orphaned-lock", "likely")
    assert "who acquires it releases it" in found.summary


def test_a_wait_that_just_began_is_not_proven():
    facts = snapshot(replace(FOREVER, blocked_s=0.1), stacks={100: QUEUE}, locks=[shared(owner=gone())])
    assert codes(facts)[0] == ("orphaned-lock", "likely")


@pytest.mark.parametrize(
    "kind_and_owner",
    [
        ("process-semaphore", None),
        ("shared-semaphore", gone()),
        ("process-lock", owned_by(300, "alive", pid=300)),
        ("process-lock", owned_by(None, "unknown")),
    ],
)
def test_idle_workers_take_turns(kind_and_owner):
    kind, owner = kind_and_owner
    facts = snapshot(FOREVER, stacks={100: QUEUE}, locks=[shared(kind, owner=owner)])
    assert verdict(facts).code == "idle"


def test_a_wait_that_ends_by_itself():
    facts = snapshot(thread(syscall=call("futex", endless=False)), stacks={100: QUEUE}, locks=[shared(owner=gone())])
    assert verdict(facts).verdict_class == "healthy"


def test_a_circle_over_two_processes():
    beyond = (
        OwnerElsewhere(300, 300, "python", "S", 0x7000, "process-lock"),
        OwnerElsewhere(100, 100, "python", "S"),
    )
    facts = snapshot(FOREVER, stacks={100: QUEUE}, locks=[shared(owner=owned_by(300, pid=300), beyond=beyond)])
    found = verdict(facts)
    assert (found.code, found.confidence) == ("deadlock", "proven")
    assert "python (pid 300)" in found.summary


@pytest.mark.parametrize("ours, theirs", [("", "who acquires it releases it"), ("who acquires it releases it", "")])
def test_a_circle_of_locks_that_others_may_release(ours: str, theirs: str):
    beyond = (
        OwnerElsewhere(300, 300, "python", "S", 0x7000, "process-lock", assumes=theirs),
        OwnerElsewhere(100, 100, "python", "S"),
    )
    owner = owned_by(300, pid=300, assumes=ours)
    facts = snapshot(FOREVER, stacks={100: QUEUE}, locks=[shared(owner=owner, beyond=beyond)])
    found = verdict(facts)
    assert (found.code, found.confidence) == ("deadlock", "likely")
    assert "provided that who acquires it releases it" in found.summary


def test_a_circle_that_it_only_waits_for_is_not_its_own():
    beyond = (
        OwnerElsewhere(300, 300, "python", "S", 0x7000, "process-lock"),
        OwnerElsewhere(301, 301, "python", "S", 0x7000, "process-lock"),
        OwnerElsewhere(300, 300, "python", "S"),
    )
    facts = snapshot(FOREVER, stacks={100: QUEUE}, locks=[shared(owner=owned_by(300, pid=300), beyond=beyond)])
    assert ("deadlock", "proven") not in codes(facts)


def test_a_stopped_holder():
    beyond = (OwnerElsewhere(300, 300, "python", "T"),)
    facts = snapshot(FOREVER, stacks={100: QUEUE}, locks=[shared(owner=owned_by(300, pid=300), beyond=beyond)])
    found = verdict(facts)
    assert found.code == "lock-held"
    assert found.now[0].do == "kill -CONT 300"


def test_the_parent_of_those_who_wait():
    locks = tuple(shared(owner=gone(), waiter=pid) for pid in (301, 302))
    facts = snapshot(thread(syscall="epoll_wait"), child_locks=locks)
    found = verdict(facts)
    assert (found.code, found.confidence) == ("orphaned-lock", "proven")
    assert "pid 301 and pid 302" in found.summary
