"""blocked-loop and stale-epoll from literal snapshots, and loops at rest."""

from dataclasses import replace

import pytest
from stucktrace.facts import WorkerFact

from tests.unit.snapshots import (
    activity,
    black_hole,
    call,
    codes,
    epoll,
    lock,
    parent,
    pipe,
    process,
    snapshot,
    tcp,
    thread,
    verdict,
    watch,
)

MAIN = "<module> /srv/app/main.py:3"
RUN_ONCE = [
    "BaseEventLoop._run_once /usr/lib/python3.11/asyncio/base_events.py:1922",
    "BaseEventLoop.run_forever /usr/lib/python3.11/asyncio/base_events.py:607",
    "run /usr/lib/python3.11/asyncio/runners.py:190",
    MAIN,
]
ASYNCIO_REST = ["EpollSelector.select /usr/lib/python3.11/selectors.py:468", *RUN_ONCE]
HANDLE = ["Handle._run /usr/lib/python3.11/asyncio/events.py:80", *RUN_ONCE]
RECV = "HTTPConnection.recv /srv/app/blocking.py:9"
KOMBU = [
    "create_loop /v/lib/python3.11/site-packages/kombu/asynchronous/hub.py:373",
    "asynloop /v/lib/python3.11/site-packages/celery/worker/loops.py:97",
    MAIN,
]
REDIS = [
    "SocketBuffer._read_from_socket /v/lib/python3.11/site-packages/redis/_parsers/socket.py:65",
    "_RESP2Parser._read_response /v/lib/python3.11/site-packages/redis/_parsers/resp2.py:15",
    "Connection.read_response /v/lib/python3.11/site-packages/redis/connection.py:600",
]
GREEN_SERVER = [
    "StreamServer.handle /srv/app/wsgi.py:9",
    "_handle_and_close_when_done /v/lib/python3.11/site-packages/gevent/baseserver.py:34",
]
HUB = ["Hub.run /v/lib/python3.11/site-packages/gevent/hub.py:647"]
EVENTLET_HUB = [
    "Hub.wait /v/lib/python3.11/site-packages/eventlet/hubs/epolls.py:31",
    "BaseHub.run /v/lib/python3.11/site-packages/eventlet/hubs/hub.py:310",
]
GREEN_THREAD = [
    "work /srv/app/work.py:9",
    "GreenThread.main /v/lib/python3.11/site-packages/eventlet/greenthread.py:272",
]
TWISTED_REST = [
    "_PollLikeMixin.doPoll /v/lib/python3.11/site-packages/twisted/internet/epollreactor.py:232",
    "_SignalReactorMixin.mainLoop /v/lib/python3.11/site-packages/twisted/internet/base.py:1341",
    MAIN,
]
TWISTED_BUSY = [
    "query /srv/app/db.py:3",
    "ReactorBase.runUntilCurrent /v/lib/python3.11/site-packages/twisted/internet/base.py:1090",
    TWISTED_REST[1],
    MAIN,
]
TRIO_REST = [
    "EpollIOManager.get_events /v/lib/python3.11/site-packages/trio/_core/_io_epoll.py:225",
    "unrolled_run /v/lib/python3.11/site-packages/trio/_core/_run.py:2400",
    MAIN,
]


def blocked(stack, syscall="recvfrom", fd=7, blocked_s=60.0, **more):
    return snapshot(
        thread(syscall=syscall, fd=fd, blocked_s=blocked_s),
        stacks={100: stack},
        sockets=[tcp()],
        epolls=[epoll(4, watch(7))],
        **more,
    )


@pytest.mark.parametrize(
    ("stack", "loop"),
    [
        ([RECV, *HANDLE], "asyncio"),
        ([*REDIS, "loads /v/lib/python3.11/site-packages/kombu/transport/redis.py:5", *KOMBU], "kombu"),
        (TWISTED_BUSY, "Twisted"),
        ([RECV, "Task.step /v/x/task.py:3", TRIO_REST[1], MAIN], "trio"),
        ([RECV, *GREEN_SERVER], "gevent"),
        ([RECV, *GREEN_THREAD], "eventlet"),
        ([RECV, EVENTLET_HUB[1]], "eventlet"),
    ],
)
def test_a_callback_in_a_blocking_call(stack, loop):
    found = [finding for finding in codes(blocked(stack)) if finding[0] == "blocked-loop"]
    assert found == [("blocked-loop", "proven")]
    young = blocked(stack, blocked_s=8.0)
    assert ("blocked-loop", "likely") in codes(young)
    assert verdict(blocked(stack, blocked_s=2.0)).verdict_class == "healthy"


def test_the_sentence_names_loop_call_and_age():
    found = verdict(blocked([RECV, *HANDLE], blocked_s=47.0))
    assert found.code == "blocked-loop"
    assert "asyncio event loop" in found.summary and "47 s" in found.summary and "blocking.py" in found.summary
    assert found.frame == 0


@pytest.mark.parametrize(
    "stack",
    [
        ASYNCIO_REST,
        RUN_ONCE,
        HUB,
        EVENTLET_HUB,
        TWISTED_REST,
        TRIO_REST,
        KOMBU,
        ["poll /v/site-packages/kombu/utils/eventio.py:81", *KOMBU],
    ],
)
@pytest.mark.parametrize("syscall", ["epoll_wait", "select"])
def test_a_loop_at_rest(stack, syscall):
    assert verdict(blocked(stack, syscall=syscall, fd=4, blocked_s=86_400)).code == "idle"


def test_uvloop_has_no_frames_of_its_own():
    uvloop = process(packages={"uvloop": "0.21.0"})
    rest = [
        "Runner.run /usr/lib/python3.11/asyncio/runners.py:118",
        "run /usr/lib/python3.11/asyncio/runners.py:190",
        MAIN,
    ]
    assert verdict(blocked(rest, syscall="epoll_wait", fd=4, process=uvloop)).code == "idle"
    handler = [RECV, "app /srv/app/app.py:3", *rest]
    assert codes(blocked(handler, process=uvloop))[0] == ("blocked-loop", "proven")


def test_a_sleep_in_a_callback_is_likely_at_most():
    facts = blocked(["handler /srv/app/app.py:3", *HANDLE], syscall=call("clock_nanosleep"), blocked_s=600)
    assert codes(facts)[0] == ("blocked-loop", "likely")
    assert (
        verdict(
            blocked(["handler /srv/app/app.py:3", *HANDLE], syscall=call("clock_nanosleep"), blocked_s=0.2)
        ).verdict_class
        == "healthy"
    )


def test_a_future_awaited_the_blocking_way():
    stack = [
        "Condition.wait /usr/lib/python3.11/threading.py:320",
        "Future.result /usr/lib/python3.11/concurrent/futures/_base.py:451",
        "handler /srv/app/app.py:3",
    ]
    facts = blocked([*stack, *HANDLE], syscall="futex", fd=None, locks=[lock(kind="lock")])
    assert codes(facts)[0] == ("blocked-loop", "proven")
    found = verdict(facts)
    assert "Future.result (futures/_base.py:451), called in handler (app/app.py:3)," in found.summary
    assert "await the future" in found.later[0].do


def test_a_consumer_inside_a_coroutine_is_no_verdict():
    stack = [
        *REDIS,
        "Redis.blpop /v/lib/python3.11/site-packages/redis/commands/core.py:2500",
        "consume /srv/app/app.py:3",
    ]
    facts = blocked([*stack, *HANDLE], blocked_s=86_400)
    assert verdict(facts).code == "idle"
    assert ("blocked-loop", "possible") in codes(facts)


def test_celery_main_on_a_silent_redis_has_the_network_as_its_root():
    stack = [*REDIS, "Channel._brpop_read /v/lib/python3.11/site-packages/kombu/transport/redis.py:990", *KOMBU]
    facts = replace(blocked(stack, worker="celery-main"), sockets=(black_hole(7, 45.0),))
    assert codes(facts)[:2] == [("half-open", "proven"), ("blocked-loop", "proven")]


def test_a_task_of_the_solo_pool_runs_in_the_loop_on_purpose():
    site = "/v/lib/python3.11/site-packages/celery"
    task = [f"trace_task {site}/app/trace.py:451", f"apply_target {site}/concurrency/base.py:30", *KOMBU]
    sleeps = blocked(["nap /srv/app/tasks.py:3", *task], syscall=call("clock_nanosleep"), blocked_s=20)
    assert verdict(sleeps).verdict_class == "healthy"
    asks = blocked([*REDIS, "nap /srv/app/tasks.py:3", *task], worker="celery-main")
    assert codes(replace(asks, sockets=(black_hole(7, 45.0),)))[0] == ("half-open", "proven")


def test_a_forked_child_does_not_inherit_its_parents_loop():
    child = [
        "Connection._recv /v/lib/python3.11/site-packages/billiard/connection.py:422",
        "Worker.workloop /v/lib/python3.11/site-packages/billiard/pool.py:351",
        "BaseProcess._bootstrap /v/lib/python3.11/site-packages/billiard/process.py:323",
        "Popen._launch /v/lib/python3.11/site-packages/billiard/popen_fork.py:77",
        "Pool._create_worker_process /v/lib/python3.11/site-packages/billiard/pool.py:1158",
        *KOMBU,
    ]
    facts = snapshot(
        thread(syscall="read", fd=9),
        stacks={100: child},
        pipes=[pipe(9, writers=[50])],
        relatives=[parent("celery-main")],
        worker="celery-child",
    )
    assert verdict(facts).code == "idle"


def test_a_thread_beside_the_loop_may_block():
    stacks = {
        100: ASYNCIO_REST,
        101: ["query /srv/app/db.py:3", "_worker /usr/lib/python3.11/concurrent/futures/thread.py:83"],
    }
    facts = snapshot(thread(syscall="epoll_wait", fd=4), thread(101, "recvfrom", 7), stacks=stacks, sockets=[tcp()])
    assert "blocked-loop" not in dict(codes(facts))


def test_a_spawned_greenlet_is_told_by_where_its_stack_begins():
    gevent = process(libraries=("_gevent_cgreenlet.cpython-311-x86_64-linux-gnu.so", "libc.so.6"))
    stack = ["fetch /srv/app/jobs.py:8", "job /srv/app/jobs.py:20"]
    assert codes(blocked(stack, process=gevent))[0][0] == "blocked-loop"
    assert "blocked-loop" not in dict(codes(blocked([*stack, MAIN], process=gevent)))
    native = [*stack, "ThreadPool._worker /v/lib/python3.11/site-packages/gevent/threadpool.py:300"]
    assert "blocked-loop" not in dict(codes(blocked(native, process=gevent)))


def stale(**more):
    more.setdefault("window_s", 0.5)
    more.setdefault("activity_complete", True)
    running = thread(syscall=None, cpu_s_in_window=0.45)
    return snapshot(
        running,
        stacks={100: ["poll /v/kombu/utils/eventio.py:81", *KOMBU]},
        epolls=[epoll(4, watch(9, present=False, held_by=(301,)), watch(7))],
        sockets=[tcp()],
        **more,
    )


def test_a_stale_registration_with_a_storm():
    found = verdict(stale(activity=[activity(returns=20_000)]))
    assert (found.code, found.confidence, found.fd) == ("stale-epoll", "proven", 4)
    assert any("301" in line.text for line in found.evidence)


def test_a_stale_registration_without_a_storm_is_harmless():
    facts = replace(stale(), threads=(thread(syscall="epoll_wait", fd=4, cpu_s_in_window=0.0),))
    assert verdict(facts).code == "idle"
    assert ("stale-epoll", "possible") in codes(facts)


def test_a_busy_loop_with_a_stale_registration_moves_bytes():
    facts = stale(
        activity=[activity(returns=5_000), activity(name="recvfrom", fd=7, returns=4_000, moved_bytes=400_000)]
    )
    assert verdict(facts).code == "working"


def test_a_stale_registration_without_the_probes():
    assert codes(stale(activity_complete=False))[0] == ("stale-epoll", "likely")


def test_a_gevent_worker_that_waits_in_its_hub():
    worker = WorkerFact("gunicorn-worker", worker_class="gevent", timeout_s=30)
    assert verdict(blocked(HUB, syscall="epoll_wait", fd=4, blocked_s=0.9, worker=worker)).code == "idle"
