"""The glance at many processes: who has waited for too long, and who for a mutex. By the kernel and by /proc alike."""

from __future__ import annotations

import pytest
from stucktrace.collectors import inflight
from stucktrace.collectors.inflight import KernelScan, Limit, ProcScan, Scan, Waiting

from tests.harness.kernel import children, tids, wait_until
from tests.harness.scripts import running

PARKED = """
import ctypes, json, multiprocessing, os, queue, threading
libc = ctypes.CDLL(None, use_errno=True)
class Deadline(ctypes.Structure): _fields_ = [("s", ctypes.c_long), ("ns", ctypes.c_long)]
def mutex(**attributes):
    made, attribute = ctypes.create_string_buffer(64), ctypes.create_string_buffer(16)
    libc.pthread_mutexattr_init(attribute)
    for name, value in attributes.items():
        assert getattr(libc, "pthread_mutexattr_set" + name)(attribute, value) == 0
    assert libc.pthread_mutex_init(made, attribute) == 0
    libc.pthread_mutex_lock(made)
    return made
plain, shared, inherit, robust = mutex(), mutex(pshared=1), mutex(protocol=1), mutex(robust=1)
held, condition, never = threading.Lock(), threading.Condition(), threading.Event()
held.acquire()
recursive = threading.RLock()
recursive.acquire()
parked = threading.Thread(target=never.wait, daemon=True)
parked.start()
tids, begun = {"parked": parked.native_id}, threading.Semaphore(0)
pausing = ctypes.c_ulong()
libc.pthread_create(ctypes.byref(pausing), None, libc.pause, None)
gate, barrier = multiprocessing.Semaphore(0), ctypes.create_string_buffer(64)
libc.pthread_barrier_init(barrier, None, 2)
unlocked, signalled = ctypes.create_string_buffer(64), ctypes.create_string_buffer(64)
def wait_natively():
    libc.pthread_mutex_lock(unlocked)
    libc.pthread_cond_wait(signalled, unlocked)
def wait():
    with condition: condition.wait()
def read_then_write():
    rwlock = ctypes.create_string_buffer(64)
    libc.pthread_rwlock_rdlock(rwlock)
    libc.pthread_rwlock_wrlock(rwlock)
CALLS = {
    "plain": lambda: libc.pthread_mutex_lock(plain), "shared": lambda: libc.pthread_mutex_lock(shared),
    "inherit": lambda: libc.pthread_mutex_lock(inherit), "robust": lambda: libc.pthread_mutex_lock(robust),
    "timed": lambda: libc.pthread_mutex_timedlock(plain, ctypes.byref(Deadline(1 << 40, 0))),
    "lock": held.acquire, "rlock": recursive.acquire, "event": never.wait, "condition": wait, "join": parked.join,
    "native join": lambda: libc.pthread_join(pausing, None), "queue": queue.Queue().get,
    "simple queue": queue.SimpleQueue().get, "semaphore": gate.acquire, "native condition": wait_natively,
    "barrier": lambda: libc.pthread_barrier_wait(barrier), "rwlock": read_then_write, "pipe": lambda: os.read(os.pipe()[0], 1),
}
def begin(name):
    tids[name] = threading.get_native_id()
    begun.release()
    CALLS[name]()
for name in CALLS:
    threading.Thread(target=begin, args=(name,), daemon=True).start()
for name in CALLS: begun.acquire()
print(json.dumps(tids), flush=True)
libc.pthread_mutex_lock(plain)
"""
MUTEXES = {"plain", "shared", "inherit", "robust"}


@pytest.fixture(params=["core", "proc"])
def scan(request):
    if request.param == "proc":
        return ProcScan()
    return KernelScan(request.getfixturevalue("core"))


def names(found: list[Waiting], named: dict[str, int]) -> set[str]:
    known = {tid: name for name, tid in named.items()}
    return {"main" if waiting.tid == waiting.pid else known.get(waiting.tid, "pausing") for waiting in found}


def test_a_mutex_is_told_soon_and_nothing_else_is_taken_for_one(scan: Scan):
    with running(PARKED) as target:
        scan.watch({target.pid: Limit(1e6, rests_in_select=True, lock_after_s=1.0)})
        wait_until(lambda: names(scan.look(), target.says) == {*MUTEXES, "main"}, "the waits on mutexes")
        # By the same look's clock, not by ours: everybody has slept for longer than the limit by now.
        scan.watch({target.pid: Limit(1.0, rests_in_select=True, lock_after_s=1.0)})
        everybody = {*target.says, "main", "pausing"}
        wait_until(lambda: not everybody - names(scan.look(), target.says), "all waits")
        found = scan.look()
        assert names([waiting for waiting in found if waiting.on_lock], target.says) == {*MUTEXES, "main"}
        assert all(waiting.sleep_s >= 1.0 for waiting in found)


def test_a_waiter_in_a_pid_namespace_of_its_own(core):
    with running(PARKED, "unshare", "--pid", "--fork", "--kill-child") as target:
        (inside,) = children(target.pid)
        scan = KernelScan(core)
        scan.watch({inside: Limit(1e6, rests_in_select=False, lock_after_s=0.1)})
        found = wait_until(lambda: len(look := scan.look()) > len(MUTEXES) and look, "the waits on mutexes")
        assert {waiting.pid for waiting in found} == {inside}
        assert {waiting.tid for waiting in found} <= set(tids(inside)) and inside in {waiting.tid for waiting in found}


def test_a_healthy_busy_mutex_is_not_told(scan: Scan):
    """Somebody waits for it at nearly every look, but never for long."""
    source = """
import ctypes, json, threading
libc = ctypes.CDLL(None)
mutex = ctypes.create_string_buffer(64)
def work():
    while True:
        libc.pthread_mutex_lock(mutex)
        libc.usleep(20_000)
        libc.pthread_mutex_unlock(mutex)
for _ in range(4): threading.Thread(target=work, daemon=True).start()
print(json.dumps({}), flush=True)
input()
"""
    with running(source) as target:
        scan.watch({target.pid: Limit(1e6, rests_in_select=False, lock_after_s=0.0)})
        looks = [[waiting for waiting in scan.look() if waiting.on_lock] for _ in range(40)]
        assert any(looks), "nobody ever waited: the test shows nothing"
        scan.watch({target.pid: Limit(1e6, rests_in_select=False, lock_after_s=20.0)})
        assert not any(scan.look() for _ in range(40))


def test_more_processes_than_fit(core):
    with running(PARKED) as target:
        scan = KernelScan(core)
        first = {target.pid: Limit(1e6, rests_in_select=False, lock_after_s=0.0)}
        scan.watch(first)
        assert scan.missing == ()
        limits = first | {pid: Limit(30.0, rests_in_select=False) for pid in range(1 << 22, (1 << 22) + inflight.MOST)}
        scan.watch(limits)
        (missing,) = scan.missing
        assert str(len(limits)) in missing.because and str(inflight.MOST) in missing.because
        wait_until(lambda: names(scan.look(), target.says) == {*MUTEXES, "main"}, "the rest is watched")
        scan.watch(first)
        assert scan.missing == ()
