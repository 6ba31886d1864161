"""stopped, uninterruptible, gil-held and spinning from literal snapshots, and processes that only look so."""

import pytest

from tests.unit.snapshots import activity, call, codes, epoll, lock, pipe, process, snapshot, thread, verdict, watch

APP = ["step /srv/app/work.py:12", "<module> /srv/app/main.py:3"]
GIL_POLL = call("futex", endless=False, timeout_s=0.005)


def test_stopped_by_a_signal():
    facts = snapshot(thread(state="T"), thread(101, state="T"), stacks={100: APP, 101: APP})
    found = verdict(facts)
    assert (found.code, found.confidence) == ("stopped", "proven")
    assert found.now[0].do == "kill -CONT 100"


def test_stopped_is_the_root_of_every_other_wait():
    facts = snapshot(thread(state="T"), thread(101, state="T"), locks=[lock(101)], process=process(frozen=False))
    assert verdict(facts).code == "stopped"


def test_frozen():
    facts = snapshot(thread(), process=process(frozen=True), stacks={100: APP})
    assert codes(facts)[0] == ("stopped", "proven")
    assert "frozen" in verdict(facts).summary


def test_held_by_a_debugger():
    held = process(tracer_pid=4242)
    facts = snapshot(thread(state="t", slept_through=True), process=held)
    assert codes(facts)[0] == ("stopped", "proven")
    assert "4242" in verdict(facts).summary


def test_strace_stops_a_thread_for_an_instant():
    traced = process(tracer_pid=4242)
    assert verdict(snapshot(thread(state="t", slept_through=False), process=traced)).verdict_class == "healthy"
    facts = snapshot(thread(state="t", slept_through=False), thread(101, "futex"), process=traced, stacks={100: APP})
    assert verdict(facts).verdict_class == "healthy"
    for more in ({"blocked_s": None}, {"blocked_s": 0.2}):
        once = snapshot(thread(state="t", **more), process=traced, stacks={100: APP})
        assert verdict(once).verdict_class != "stuck"


def test_uninterruptible():
    facts = snapshot(
        thread(syscall="read", fd=3, state="D", kernel_stack=("rpc_wait_bit_killable", "nfs_file_read")),
        fds={3: "/mnt/nfs/data"},
    )
    found = verdict(facts)
    assert (found.code, found.confidence) == ("uninterruptible", "proven")
    assert "/mnt/nfs/data" in found.summary and "rpc_wait_bit_killable" in found.summary


@pytest.mark.parametrize("more", [{"blocked_s": 0.3}, {"blocked_s": None}, {"slept_through": False}])
def test_a_short_disk_wait_works(more):
    assert verdict(snapshot(thread(syscall="read", fd=3, state="D", **more), stacks={100: APP})).code == "working"


def gil(holder, *others, **more):
    stacks = {100: APP} | {other.tid: APP for other in others}
    return snapshot(holder, *others, stacks=stacks, gil=more.pop("gil", 100), **more)


def test_the_gil_holder_sleeps():
    waiting = thread(101, GIL_POLL, blocked_s=0.003)
    facts = gil(thread(syscall=call("clock_nanosleep")), waiting, locks=[lock(101, "gil")])
    found = verdict(facts)
    assert (found.code, found.confidence, found.tid, found.explains) == ("gil-held", "proven", 100, (101,))
    young = thread(syscall=call("clock_nanosleep"), blocked_s=3.0)
    assert codes(gil(young, waiting, locks=[lock(101, "gil")]))[0] == ("gil-held", "likely")


@pytest.mark.parametrize("locks", [[], [lock(101, "condition")]])
def test_short_polls_of_a_c_library_do_not_wait_for_the_gil(locks):
    polling = thread(101, GIL_POLL, blocked_s=0.003)
    assert verdict(gil(thread(syscall=call("clock_nanosleep")), polling, locks=locks)).verdict_class == "healthy"


def test_a_gil_holder_that_harms_nobody():
    assert verdict(gil(thread(syscall=call("clock_nanosleep")))).code == "idle"
    parked = thread(101, "futex")
    assert verdict(gil(thread(syscall=call("clock_nanosleep")), parked)).verdict_class == "healthy"


def test_a_gil_holder_that_computes_works():
    waiting = thread(101, GIL_POLL, blocked_s=0.003)
    assert verdict(gil(thread(syscall=None), waiting, locks=[lock(101, "gil")])).code == "working"
    assert (
        verdict(gil(thread(syscall="write", fd=1, blocked_s=0.1), waiting, locks=[lock(101, "gil")])).verdict_class
        == "healthy"
    )


def test_a_gil_that_nobody_holds():
    waiting = [thread(tid, GIL_POLL, blocked_s=0.003, cpu_s_in_window=0.001) for tid in (100, 101)]
    locks = [lock(100, "gil"), lock(101, "gil")]
    assert codes(gil(*waiting, locks=locks, window_s=0.5, gil=None))[0] == ("gil-held", "likely")
    assert verdict(gil(*waiting, locks=locks, gil=None)).verdict_class == "healthy"


def spin(*entries, cpu_s=0.48, **more):
    running = thread(syscall=None, cpu_s_in_window=cpu_s)
    return snapshot(running, stacks={100: APP}, activity=entries, activity_complete=True, window_s=0.5, **more)


@pytest.mark.parametrize(
    "entry",
    [
        activity(name="sched_yield", fd=None, returns=300_000),
        activity(name="epoll_wait", fd=4, returns=200_000, empty=200_000),
        activity(name="poll", fd=None, returns=200_000, empty=199_999),
        activity(name="accept4", fd=5, returns=90_000, empty=90_000, last_error=11),
    ],
)
def test_a_storm_that_moves_nothing(entry):
    assert codes(spin(entry))[0] == ("spinning", "likely")


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [activity(name="epoll_wait", returns=400, empty=400)],
        [
            activity(name="epoll_wait", returns=20_000, empty=100),
            activity(name="recvfrom", fd=7, returns=20_000, moved_bytes=9_000),
        ],
        [
            activity(name="poll", fd=None, returns=9_000, empty=9_000),
            activity(name="write", fd=1, returns=1, moved_bytes=20),
        ],
        [activity(name="futex", fd=None, returns=50_000, empty=50_000)],
        [activity(name="poll", fd=None, returns=18_000, empty=18_000)],
    ],
    ids=["cpu alone", "few", "serves", "writes", "contended", "computes between"],
)
def test_a_busy_process_works(entries):
    assert verdict(spin(*entries)).code == "working"


def test_a_contended_lock_is_no_spinning_where_its_thread_is_met_asleep():
    waits = thread(syscall=GIL_POLL, cpu_s_in_window=0.3)
    storm = [activity(name="futex", fd=None, returns=50_000, empty=50_000)]
    assert verdict(snapshot(waits, stacks={100: APP}, activity=storm, window_s=0.5)).code == "working"


BUSY_LOOP = [
    "count /srv/app/work.py:12",
    "Handle._run /usr/lib/python3.11/asyncio/events.py:80",
    "BaseEventLoop._run_once /usr/lib/python3.11/asyncio/base_events.py:1922",
]


@pytest.mark.parametrize(
    ("stack", "libraries", "code"),
    [
        (BUSY_LOOP, (), "working"),
        (APP, ("_gevent_cgreenlet.cpython-311.so",), "working"),
        (APP, (), "spinning"),
    ],
    ids=["asyncio", "gevent", "no loop"],
)
def test_a_loop_with_callbacks_ready_polls_between_them(stack, libraries, code):
    facts = snapshot(
        thread(syscall=None, cpu_s_in_window=0.48),
        process=process(libraries=libraries),
        stacks={100: stack},
        fds={3: "anon_inode:[eventpoll]"},
        activity=[activity(name="epoll_wait", fd=3, returns=100_000, empty=100_000)],
        activity_complete=True,
        window_s=0.5,
    )
    assert verdict(facts).code == code


@pytest.mark.parametrize(("writers", "code"), [([], "spinning"), ([300], "working")])
def test_an_epoll_set_with_a_pipe_that_has_ended(writers, code):
    facts = snapshot(
        thread(syscall=None, cpu_s_in_window=0.5),
        stacks={100: ["EpollSelector.select /usr/lib/python3.11/selectors.py:468", "<module> /srv/app/main.py:3"]},
        pipes=[pipe(9, writers=writers)],
        epolls=[epoll(4, watch(9))],
        activity=[activity(returns=150_000)],
        window_s=0.5,
    )
    assert verdict(facts).code == code
