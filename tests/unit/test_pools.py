"""Pools that cannot go on: closed sets of threads that wait for each other's results, lost work, lent connections."""

from dataclasses import replace

import pytest
from stucktrace.facts import Awaited, PoolFact, PoolMember

from tests.unit.snapshots import black_hole, call, codes, snapshot, thread, verdict

WAITS = [
    "Condition.wait /usr/lib/python3.11/threading.py:327",
    "Future.result /usr/lib/python3.11/concurrent/futures/_base.py:451",
    "task /srv/app/main.py:8",
    "_worker /usr/lib/python3.11/concurrent/futures/thread.py:83",
]
POOL = PoolFact(
    0x7F00_0000_2000,
    "threads",
    "fetch",
    2,
    (PoolMember(100, 101, 0xA1, "task"), PoolMember(100, 102, 0xA2, "task")),
    2,
    (Awaited(101, 0xB1, "queued", frame=1), Awaited(102, 0xB2, "queued", frame=1)),
    complete=True,
)


def pooled(*pools, threads=(101, 102), **more):
    more = {"syscall": "futex"} | more
    found = [thread(100), *(thread(tid, **more) for tid in threads)]
    return snapshot(*found, stacks=dict.fromkeys((100, *threads), WAITS), pools=pools)


def test_every_member_waits_for_the_queue():
    found = verdict(pooled(POOL))
    assert (found.code, found.confidence, found.tid, found.frame) == ("pool-starved", "proven", 101, 2)
    assert "every thread of the thread pool fetch" in found.summary
    assert found.explains == (102,)


@pytest.mark.parametrize(
    "pool",
    [
        replace(POOL, complete=False),
        replace(POOL, awaited=POOL.awaited[:1]),
        replace(POOL, awaited=(replace(POOL.awaited[0], of=2), POOL.awaited[1])),
        replace(POOL, awaited=(POOL.awaited[0], replace(POOL.awaited[1], state="unknown"))),
        replace(POOL, awaited=(POOL.awaited[0], replace(POOL.awaited[1], state="running", runs_on=100))),
    ],
    ids=["may grow", "one does something else", "of two results one is elsewhere", "unknown", "another runs it"],
)
def test_one_way_out_is_enough(pool: PoolFact):
    assert "pool-starved" not in dict(codes(pooled(pool)))


def test_a_timeout_is_a_way_out():
    timed = call("futex", endless=False, timeout_s=20.0)
    assert "pool-starved" not in dict(codes(pooled(POOL, syscall=timed)))


def test_two_pools_in_a_circle():
    left = replace(POOL, size=1, members=POOL.members[:1], awaited=(replace(POOL.awaited[1]),))
    right = replace(
        left, address=1, name="right", members=POOL.members[1:], awaited=(Awaited(101, 0xA2, "running", 102, frame=1),)
    )
    found = verdict(pooled(left, right))
    assert (found.code, found.confidence) == ("pool-starved", "proven")
    assert "fetch (1 thread) and right (1 thread)" in found.summary


LOST = PoolFact(
    0x7F00_0000_3000,
    "processes",
    "Pool(2)",
    2,
    (PoolMember(200, 200, idle=True, age_s=900.0), PoolMember(201, 201, idle=True, age_s=30.0)),
    0,
    (Awaited(100, 7, "nowhere", frame=1),),
    complete=True,
)


def test_the_worker_died_with_the_task():
    found = verdict(pooled(LOST))
    assert (found.code, found.confidence, found.tid) == ("work-lost", "proven", 100)
    (young,) = (line for line in found.evidence if line.what == "replaced")
    assert "pid 201" in young.text
    assert "pid 200" not in young.text


def test_work_that_may_still_come():
    assert "work-lost" not in dict(codes(pooled(replace(LOST, awaited=(Awaited(100, 7, "unknown"),)))))


def test_the_pool_was_made_before_the_fork():
    found = verdict(pooled(replace(LOST, made_by=50, awaited=(Awaited(100, 7, "unsent"),), members=())))
    assert (found.code, found.confidence) == ("work-lost", "proven")
    assert "pid 50" in found.summary


def test_the_workers_wait_for_a_lock_that_nobody_has():
    found = verdict(pooled(replace(LOST, awaited=(Awaited(100, 7, "locked"),))))
    assert (found.code, found.confidence) == ("orphaned-lock", "likely")


LENT = PoolFact(
    0x7F00_0000_4000,
    "connections",
    "ConnectionPool",
    1,
    (PoolMember(100, 101, 0xC1, "connection"),),
    0,
    (Awaited(101, 0, "none free", frame=2),),
    complete=True,
    certain=True,
)


@pytest.mark.parametrize(("certain", "confidence"), [(True, "proven"), (False, "likely")])
def test_a_thread_has_the_only_connection_and_wants_another(certain: bool, confidence: str):
    found = verdict(pooled(replace(LENT, certain=certain)))
    assert (found.code, found.confidence, found.tid) == ("pool-starved", confidence, 101)


def test_not_every_connection_was_found():
    assert "pool-starved" not in dict(codes(pooled(replace(LENT, size=2, complete=False))))


def test_the_holder_works():
    pool = replace(LENT, awaited=(Awaited(102, 0, "none free", frame=2),))
    threads = [thread(100), thread(101, None), thread(102)]
    assert verdict(snapshot(*threads, stacks={102: WAITS}, pools=[pool])).verdict_class == "healthy"


def test_the_holders_own_fault_is_the_root():
    pool = replace(LENT, awaited=(Awaited(102, 0, "none free", frame=2),))
    threads = [thread(100), thread(101, "recvfrom", fd=7, blocked_s=90.0), thread(102, blocked_s=80.0)]
    stacks = {101: ["query /srv/app/db.py:9"], 102: WAITS}
    found = codes(snapshot(*threads, stacks=stacks, pools=[pool], sockets=[black_hole(age_s=90.0)]))
    assert found[0][0] == "half-open"
    assert ("pool-starved", "likely") in found
