"""Healthy look-alikes: what each process does, in which words, and never stuck at any age."""

import pytest
from stucktrace.facts import Missing, Seen, WorkerFact

from tests.unit.snapshots import (
    activity,
    call,
    file_lock,
    listen,
    lock,
    owned_by,
    parent,
    peer,
    pipe,
    process,
    relative,
    snapshot,
    tcp,
    thread,
    verdict,
)

LIB, SITE = "/usr/lib/python3.11/", "/v/lib/python3.11/site-packages/"
MAIN = "<module> /srv/app/main.py:3"
EVENT = [f"Condition.wait {LIB}threading.py:320", f"Event.wait {LIB}threading.py:622", MAIN]
POOL = [f"_worker {LIB}concurrent/futures/thread.py:81", f"Thread.run {LIB}threading.py:975"]
SLEEP = call("clock_nanosleep", endless=None)


def one(syscall, stack, fd=None, blocked_s=86_400.0, **more):
    return snapshot(thread(syscall=syscall, fd=fd, blocked_s=blocked_s), stacks={100: stack}, **more)


PREFORK = [
    f"Connection._recv {SITE}billiard/connection.py:422",
    f"Worker.workloop {SITE}billiard/pool.py:351",
    f"BaseProcess._bootstrap {SITE}billiard/process.py:323",
]
ASYNLOOP = [f"create_loop {SITE}kombu/asynchronous/hub.py:373", f"asynloop {SITE}celery/worker/loops.py:97", MAIN]
KOMBU = [
    f"Transport.read_frame {SITE}amqp/transport.py:294",
    f"Connection.drain_events {SITE}amqp/connection.py:526",
    f"ConsumerMixin.consume {SITE}kombu/mixins.py:195",
    f"ConsumerMixin.run {SITE}kombu/mixins.py:175",
]
BLPOP = [
    f"Connection.read_response {SITE}redis/connection.py:600",
    f"Redis.blpop {SITE}redis/commands/core.py:2500",
    MAIN,
]
SYNC = [
    f"SyncWorker.wait {SITE}gunicorn/workers/sync.py:35",
    f"SyncWorker.run_for_one {SITE}gunicorn/workers/sync.py:84",
]
ARBITER = [f"Arbiter.wait_for_signals {SITE}gunicorn/arbiter.py:380", f"Arbiter.run {SITE}gunicorn/arbiter.py:200"]
BEAT = [f"Service.start {SITE}celery/beat.py:650", MAIN]
QUEUE = [f"Condition.wait {LIB}threading.py:320", f"Queue.get {LIB}queue.py:171", MAIN]
JOIN = [f"Thread._wait_for_tstate_lock {LIB}threading.py:1132", f"Thread.join {LIB}threading.py:1112", MAIN]
ASYNCIO = [
    f"EpollSelector.select {LIB}selectors.py:468",
    f"BaseEventLoop._run_once {LIB}asyncio/base_events.py:1898",
    MAIN,
]
MP_CHILD = [
    f"SemLock.__enter__ {LIB}multiprocessing/synchronize.py:95",
    f"Queue.get {LIB}multiprocessing/queues.py:102",
    f"_process_worker {LIB}concurrent/futures/process.py:249",
]

IDLE = {
    "prefork child": lambda: one(
        "read", PREFORK, 9, pipes=[pipe(9, writers=[50])], relatives=[parent("celery-main")], worker="celery-child"
    ),
    "celery main": lambda: one("epoll_wait", ASYNLOOP, 4, blocked_s=1.2, worker="celery-main"),
    "gunicorn master in a futex": lambda: one(
        "futex", ARBITER, locks=[lock(kind="semaphore")], worker="gunicorn-master"
    ),
    "gunicorn master in select": lambda: one(
        call("select", 3, endless=False, timeout_s=1.0), ARBITER, worker="gunicorn-master", pipes=[pipe(3, "both")]
    ),
    "gunicorn sync worker": lambda: one(
        "pselect6", SYNC, 5, sockets=[listen()], worker=WorkerFact("gunicorn-worker", "sync", timeout_s=30.0)
    ),
    "pool thread": lambda: snapshot(
        thread(), thread(101), stacks={100: EVENT, 101: POOL}, locks=[lock(100, "lock"), lock(101, "semaphore")]
    ),
    "queue.get": lambda: one("futex", QUEUE, locks=[lock(kind="lock")]),
    "event": lambda: one("futex", EVENT, locks=[lock(kind="lock")], relatives=[parent()]),
    "asyncio": lambda: one("epoll_wait", ASYNCIO, 4),
    "kombu consumer": lambda: one("recvfrom", KOMBU, 7, sockets=[tcp()]),
    "blpop": lambda: one("recvfrom", BLPOP, 7, sockets=[tcp(last_send_s=86_400)]),
    "time.sleep": lambda: one(SLEEP, ["main /srv/app/main.py:3"]),
    "beat": lambda: one(SLEEP, BEAT, worker="celery-beat"),
    "raw accept": lambda: one("accept4", ["serve /srv/app/raw.py:3"], 5, sockets=[listen()]),
    "raw consumer": lambda: one("recvfrom", ["anything /srv/app/raw.py:3"], 7, sockets=[tcp()]),
    "mp child": lambda: one(
        "futex",
        MP_CHILD,
        locks=[lock(kind="shared-semaphore", shared=True, owner=owned_by(128, "absent"))],
        relatives=[parent()],
    ),
    "inotify": lambda: one("read", ["loop /srv/app/watch.py:3"], 6, fds={6: "anon_inode:inotify"}),
    "timerfd": lambda: one("read", ["loop /srv/app/tick.py:3"], 6, fds={6: "anon_inode:[timerfd]"}),
    "stdin": lambda: one("read", ["ask /srv/app/tool.py:3"], 0, fds={0: "/dev/pts/3"}),
    "signal wait": lambda: one("rt_sigtimedwait", ["main /srv/app/main.py:3"]),
    "hidden writer": lambda: one("read", ["main /srv/app/main.py:3"], 0, pipes=[pipe(0, complete=False)]),
    "keepalive http": lambda: one(
        "epoll_wait", ASYNCIO, 4, sockets=[listen(), tcp(7, direction="in", last_receive_s=900.0)]
    ),
    "C loop": lambda: one("select", ["main /srv/app/main.py:3"], None),
    "not python": lambda: snapshot(
        thread(syscall="epoll_wait", fd=4), process=process(is_python=False, argv=("/usr/sbin/nginx",))
    ),
    "not python, futex": lambda: snapshot(thread(), process=process(is_python=False), locks=[lock(kind="semaphore")]),
}


@pytest.mark.parametrize("case", IDLE)
def test_idle(case):
    found = verdict(IDLE[case]())
    assert (found.code, found.verdict_class) == ("idle", "healthy"), found.summary
    assert found.evidence and found.severity == "info"


REQUESTS = [
    f"HTTPConnection.getresponse {LIB}http/client.py:1395",
    f"HTTPAdapter.send {SITE}requests/adapters.py:667",
    MAIN,
]
PSYCOPG2 = ["report /srv/app/db.py:9", MAIN]

WAITING = {
    "slow http": lambda: one("recvfrom", REQUESTS, 7, 12.0, sockets=[tcp(remote="10.0.0.9:80")]),
    "retry": lambda: one(SLEEP, [f"retry_over_time {SITE}kombu/utils/functional.py:320", MAIN], blocked_s=4.0),
    "rlock": lambda: snapshot(
        thread(blocked_s=12.0),
        thread(101, None),
        stacks={100: PSYCOPG2, 101: PSYCOPG2},
        locks=[lock(kind="rlock", owner=owned_by(101))],
    ),
    "flock": lambda: one("flock", PSYCOPG2, 8, 3.0, file_locks=[file_lock()]),
    "child": lambda: one(
        call("wait4", args=(301,)),
        [f"Popen.wait {LIB}subprocess.py:1264", MAIN],
        relatives=[relative(301, "child", command="tar")],
    ),
    "join": lambda: snapshot(
        thread(), thread(101), stacks={100: JOIN, 101: QUEUE}, locks=[lock(100, "lock"), lock(101, "lock")]
    ),
}


@pytest.mark.parametrize("case", WAITING)
def test_waiting(case):
    found = verdict(WAITING[case]())
    assert (found.code, found.verdict_class) == ("waiting", "healthy"), found.summary


WORKING = {
    "computes": lambda: one(None, PSYCOPG2),
    "join on one that computes": lambda: snapshot(thread(), thread(101, None), stacks={100: JOIN, 101: PSYCOPG2}),
    "busy in the window": lambda: snapshot(
        thread(syscall="futex", cpu_s_in_window=0.4), stacks={100: PSYCOPG2}, window_s=0.5
    ),
    "streams": lambda: one("recvfrom", REQUESTS, 7, 0.1, sockets=[tcp(window_received_bytes=4000)], window_s=0.5),
    "streams slowly": lambda: one(
        "recvfrom",
        REQUESTS,
        7,
        0.1,
        sockets=[tcp()],
        window_s=2.0,
        activity=[activity(name="recvfrom", fd=7, returns=1, moved_bytes=10)],
    ),
}


@pytest.mark.parametrize("case", WORKING)
def test_working(case):
    found = verdict(WORKING[case]())
    assert (found.code, found.verdict_class) == ("working", "healthy"), found.summary


def test_the_sentence_tells_what_each_group_does():
    threads = [thread(syscall="epoll_wait", fd=4), *(thread(tid) for tid in range(101, 105))]
    stacks = {100: ASYNCIO} | dict.fromkeys(range(101, 105), POOL)
    found = verdict(snapshot(*threads, stacks=stacks))
    assert (
        found.summary
        == "the process is idle: MainThread (tid 100): its event loop is idle; 4 threads: parked in its pool's queue"
    )


def test_a_wait_for_a_peer_names_peer_and_budget():
    found = verdict(one("recvfrom", REQUESTS, 7, 12.0, sockets=[tcp(remote="10.0.0.9:80", peer=peer(command="nginx"))]))
    assert "10.0.0.9:80" in found.summary
    assert any(line.what == "budget_s" and line.value == 30.0 for line in found.evidence)
    assert any("nginx (pid 812)" in step for step in found.chain)


def test_neither_stacks_nor_calls():
    seen = Seen("none", missing=(Missing("system calls", "not permitted", "add CAP_SYS_PTRACE"),))
    found = verdict(snapshot(thread(syscall=None, state="S"), seen=seen))
    assert (found.code, found.verdict_class) == ("inconclusive", "unknown")
    assert found.later[0].do == "add CAP_SYS_PTRACE"


def test_a_parked_python_thread_without_its_stack_is_not_called_idle():
    assert verdict(snapshot(thread(), locks=[lock(kind="lock")])).code == "inconclusive"
    assert verdict(snapshot(thread(syscall="epoll_wait", fd=4))).code == "idle"


def test_a_socket_wait_without_its_stack_past_the_budget():
    assert (
        verdict(snapshot(thread(syscall="recvfrom", fd=7, blocked_s=10.0), sockets=[tcp()])).verdict_class == "healthy"
    )
    assert verdict(snapshot(thread(syscall="recvfrom", fd=7, blocked_s=100.0), sockets=[tcp()])).code == "inconclusive"


def test_an_fd_that_could_not_be_read():
    facts = one("recvfrom", ["main /srv/app/main.py:3"], 7, fds_complete=False)
    assert verdict(facts).code == "inconclusive"
    consumer = one("recvfrom", KOMBU, 7, fds_complete=False)
    assert verdict(consumer).code == "idle"


def test_a_native_thread_beside_python_ones():
    facts = snapshot(
        thread(syscall="epoll_wait", fd=4), thread(101), stacks={100: ASYNCIO}, locks=[lock(101, "condition")]
    )
    assert verdict(facts).code == "idle"


def test_two_thousand_idle_threads_make_one_short_sentence():
    threads = [thread(tid) for tid in range(100, 2_100)]
    found = verdict(snapshot(*threads, stacks=dict.fromkeys(range(100, 2100), POOL)))
    assert found.code == "idle" and len(found.summary) < 200 and len(found.evidence) < 20


def test_a_lock_shared_between_processes():
    enter = f"SemLock.__enter__ {LIB}multiprocessing/synchronize.py:95"
    shared = [lock(kind="shared-semaphore", shared=True)]
    assert verdict(one("futex", [enter, MAIN], blocked_s=12.0, locks=shared)).code == "waiting"
    assert verdict(one("futex", [enter, MAIN], blocked_s=60.0, locks=shared)).code == "inconclusive"


HIDDEN_CALLS = Seen("none", missing=(Missing("system calls", "may not be read", "grant CAP_DAC_READ_SEARCH"),))
CROSSED = ["takes /srv/app/locks.py:41", MAIN]


@pytest.mark.parametrize(
    ("stack", "wchan", "code"),
    [
        (EVENT, "futex_do_wait", "idle"),
        (QUEUE, "futex_do_wait", "idle"),
        (POOL, "futex_do_wait", "idle"),
        (SYNC, "do_select", "idle"),
        (JOIN, "futex_do_wait", "waiting"),
        (BLPOP, "wait_woken", "inconclusive"),
        (KOMBU, "wait_woken", "inconclusive"),
        (ASYNLOOP, "do_epoll_wait", "inconclusive"),
        (CROSSED, "futex_do_wait", "inconclusive"),
    ],
)
def test_by_the_stack_alone_only_what_is_healthy_whatever_the_call_is(stack, wchan, code):
    """System calls may not be read: with SYS_PTRACE but without DAC_READ_SEARCH."""
    found = verdict(
        snapshot(
            thread(syscall=None, state="S", blocked_s=86_400.0, wchan=wchan), stacks={100: stack}, seen=HIDDEN_CALLS
        )
    )
    assert found.code == code, found.summary
    assert code != "inconclusive" or found.later[0].do == "grant CAP_DAC_READ_SEARCH"
