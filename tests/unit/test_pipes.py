"""pipe-stuck from literal snapshots, and pipes that are waited for as they should be."""

import pytest
from stucktrace.collectors.process import handles_signals
from stucktrace.facts import WorkerFact

from tests.unit.snapshots import call, codes, lock, parent, pipe, process, relative, snapshot, thread, verdict

APP = ["read_all /srv/app/pipes.py:4", "<module> /srv/app/main.py:3"]
POOL_CHILD = [
    "Connection._recv /usr/lib/python3.11/multiprocessing/connection.py:382",
    "Queue.get /usr/lib/python3.11/multiprocessing/queues.py:103",
    "_process_worker /usr/lib/python3.11/concurrent/futures/process.py:249",
    "BaseProcess._bootstrap /usr/lib/python3.11/multiprocessing/process.py:314",
]
PREFORK = [
    "Connection._recv /v/lib/python3.11/site-packages/billiard/connection.py:422",
    "Worker.workloop /v/lib/python3.11/site-packages/billiard/pool.py:351",
    "BaseProcess._bootstrap /v/lib/python3.11/site-packages/billiard/process.py:323",
]


def reading(*pipes, stack=APP, syscall="read", **more):
    return snapshot(thread(syscall=syscall, fd=9), stacks={100: stack}, pipes=pipes, **more)


def test_a_reader_that_holds_the_only_write_end():
    assert codes(reading(pipe(9, "both")))[0] == ("pipe-stuck", "likely")
    assert verdict(reading(pipe(9, "both"), syscall=call("read", 9))).tid == 100


def test_another_thread_of_the_reader_may_write():
    facts = snapshot(
        thread(syscall="read", fd=9), thread(101, None), stacks={100: APP, 101: APP}, pipes=[pipe(9, "both")]
    )
    assert verdict(facts).verdict_class == "healthy"


def test_a_young_wait_is_none():
    facts = snapshot(thread(syscall="read", fd=9, blocked_s=1.0), stacks={100: APP}, pipes=[pipe(9, "both")])
    assert verdict(facts).code == "idle"


@pytest.mark.parametrize("syscall", ["poll", "select", "pselect6", "epoll_wait"])
def test_the_self_pipe_of_a_signal_handler(syscall):
    assert verdict(reading(pipe(9, "both"), syscall=syscall)).code == "idle"


def test_the_wakeup_pipe_of_signals_read_the_blocking_way():
    assert verdict(reading(pipe(9, "both", own_write_nonblocking=True))).code == "idle"


@pytest.mark.parametrize(
    ("worker", "code"), [("python", "idle"), ("gunicorn-worker", "pipe-stuck"), ("celery-child", "pipe-stuck")]
)
def test_a_pipe_that_a_signal_handler_may_write_to(worker, code):
    facts = reading(pipe(9, "both"), process=process(handles_signals=True, worker=WorkerFact(worker)))
    assert verdict(facts).code == code


def test_signals_that_every_python_handles():
    assert not handles_signals("0000000000000002")
    assert not handles_signals("0000000180000002")
    assert not handles_signals("")
    assert not handles_signals(f"{1 << 10 | 1 << 6 | 1 << 7 | 1 << 3 | 2:016x}"), "faulthandler's, without SIGABRT"
    assert handles_signals("0000000180004202")


def test_a_named_fifo_opened_for_both():
    assert verdict(reading(pipe(9, "both", path="/run/commands"))).code == "idle"


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("writers", [[50], [301], [50, 301, 302], []])
def test_a_live_writer_is_trusted(writers, complete):
    relatives = [parent("celery-main"), relative(301, "sibling"), relative(302, "sibling")]
    facts = reading(
        pipe(9, writers=writers, complete=complete), stack=PREFORK, relatives=relatives, worker="celery-child"
    )
    assert verdict(facts).code == "idle"


def test_a_stopped_writer():
    relatives = [parent(), relative(301, "child", state="T")]
    assert codes(reading(pipe(9, writers=[301]), relatives=relatives))[0] == ("pipe-stuck", "proven")
    assert codes(reading(pipe(9, writers=[301], complete=False), relatives=relatives))[0] == ("pipe-stuck", "likely")
    assert "kill -CONT 301" in verdict(reading(pipe(9, writers=[301]), relatives=relatives)).now[0].do
    assert verdict(reading(pipe(9, writers=[301, 302]), relatives=relatives)).code == "idle"


def test_an_orphan_whose_queue_only_orphans_hold():
    relatives = [relative(1, "parent", kind="other", command="init"), relative(301, "sibling")]
    orphan = reading(pipe(9, "both", readers=[301], writers=[301]), stack=POOL_CHILD, relatives=relatives)
    assert codes(orphan)[0] == ("pipe-stuck", "likely")
    child = reading(
        pipe(9, "both", readers=[301, 50], writers=[301, 50]),
        stack=POOL_CHILD,
        relatives=[parent(), relative(301, "sibling")],
    )
    assert verdict(child).code == "idle"


def test_an_orphan_behind_its_sibling():
    stack = ["SemLock.__enter__ /usr/lib/python3.11/multiprocessing/synchronize.py:95", *POOL_CHILD[1:]]
    relatives = [relative(1, "parent", kind="other", command="init"), relative(301, "sibling")]

    def facts(writers, relatives):
        shared = lock(kind="shared-semaphore", shared=True)
        return snapshot(
            thread(),
            stacks={100: stack},
            pipes=[pipe(9, "both", readers=writers, writers=writers)],
            locks=[shared],
            relatives=relatives,
        )

    assert codes(facts([301], relatives))[0] == ("pipe-stuck", "likely")
    assert verdict(facts([301, 50], [parent(), relative(301, "sibling")])).code == "idle"


def test_a_main_process_under_init_that_joins_its_queue_is_no_orphan():
    """As in a container, where its parent is pid 1 or a shell: it feeds the queue itself."""
    stack = [
        "Condition.wait /usr/lib/python3.11/multiprocessing/synchronize.py:268",
        "JoinableQueue.join /usr/lib/python3.11/multiprocessing/queues.py:331",
        "<module> /app/main.py:7",
    ]
    facts = snapshot(
        thread(),
        stacks={100: stack},
        pipes=[pipe(9, "both", readers=[301], writers=[301])],
        locks=[lock(kind="shared-semaphore", shared=True)],
        relatives=[relative(1, "parent", kind="other", command="sh"), relative(301, "child")],
    )
    assert "pipe-stuck" not in [code for code, _ in codes(facts)]


def test_a_writer_that_holds_the_only_read_end():
    facts = reading(pipe(9, "both", unread_bytes=65536), syscall="write")
    assert codes(facts)[0] == ("pipe-stuck", "proven")


def test_a_reader_that_does_not_read():
    def facts(blocked_s, state="S"):
        writing = thread(syscall="write", fd=9, blocked_s=blocked_s)
        return snapshot(
            writing, stacks={100: APP}, pipes=[pipe(9, "write", readers=[50])], relatives=[parent(state=state)]
        )

    assert verdict(facts(12)).code == "waiting"
    assert codes(facts(40))[0] == ("pipe-stuck", "likely")
    assert codes(facts(12, "T"))[0] == ("pipe-stuck", "proven")


def test_waiting_for_a_child_whose_output_nobody_reads():
    stack = [
        "Popen._try_wait /usr/lib/python3.11/subprocess.py:1999",
        "Popen.wait /usr/lib/python3.11/subprocess.py:1264",
        *APP,
    ]

    def facts(unread, **more):
        waiting = thread(syscall=call("wait4", args=(301, 0, 0, 0, 0, 0)))
        return snapshot(
            waiting,
            stacks={100: stack},
            pipes=[pipe(9, "read", writers=[301], unread_bytes=unread, **more)],
            relatives=[parent(), relative(301, "child")],
        )

    assert codes(facts(None, blocked_writers=(301,)))[0] == ("pipe-stuck", "proven")
    assert codes(facts(None, blocked_writers=(301,), complete=False))[0] == ("pipe-stuck", "likely")
    assert codes(facts(None, blocked_writers=(302,)))[0] == ("pipe-stuck", "likely")
    assert codes(facts(65536))[0] == ("pipe-stuck", "likely")
    assert verdict(facts(100)).code == "waiting"
    assert verdict(facts(None)).code == "waiting"


def test_a_reader_that_waits_for_its_writer_to_end():
    writing = thread(syscall="write", fd=1, blocked_s=12)
    full = pipe(1, "write", readers=[50], waiting_readers=(50,))
    assert codes(snapshot(writing, stacks={100: APP}, pipes=[full], relatives=[parent()]))[0] == (
        "pipe-stuck",
        "likely",
    )


RESULTS = [
    "Connection._recv /usr/lib/python3.11/multiprocessing/connection.py:378",
    "SimpleQueue.get /usr/lib/python3.11/multiprocessing/queues.py:367",
    "<module> /srv/app/main.py:3",
]


@pytest.mark.parametrize("ppid", [1, 50])
@pytest.mark.parametrize("writers", [[301], [100, 301, 302]])
def test_a_parent_of_workers_that_a_shell_or_init_started_is_no_orphan(ppid, writers):
    """Its children hold the write end of its results, and its own parent is no Python."""
    relatives = [relative(301, "child"), relative(302, "child")]
    relatives += [parent("other", command="bash")] if ppid == 50 else []
    facts = reading(
        pipe(9, "both" if 100 in writers else "read", writers=writers),
        stack=RESULTS,
        relatives=relatives,
        process=process(ppid=ppid),
    )
    assert verdict(facts).verdict_class == "healthy"


def test_an_orphan_that_waits_for_children_of_its_own():
    bootstrap = "BaseProcess._bootstrap /usr/lib/python3.11/multiprocessing/process.py:314"
    facts = reading(
        pipe(9, "read", writers=[301]),
        stack=[*RESULTS[:-1], bootstrap],
        relatives=[relative(301, "child"), relative(302, "sibling")],
        process=process(ppid=1),
    )
    assert verdict(facts).verdict_class == "healthy"


COMMUNICATE = ["Popen.communicate /usr/lib/python3.11/subprocess.py:1196", *APP]


@pytest.mark.parametrize(("blocked", "code"), [([300], "pipe-stuck"), ([], "idle")])
def test_two_processes_that_read_from_each_other(blocked, code):
    """The other reads what only this process could write, and this one reads what only the other could."""
    feeds = pipe(8, "write", readers=[300], blocked_readers=tuple(blocked))
    found = verdict(reading(pipe(9, writers=[300]), feeds))
    assert found.code == code
    if blocked:
        assert found.confidence == "likely" and "pid 300" in found.summary


def test_another_thread_may_feed_the_one_that_is_read():
    feeds = pipe(8, "write", readers=[300], blocked_readers=(300,))
    facts = snapshot(
        thread(syscall="read", fd=9),
        thread(101, None),
        stacks={100: APP, 101: APP},
        pipes=[pipe(9, writers=[300]), feeds],
    )
    assert verdict(facts).verdict_class == "healthy"


@pytest.mark.parametrize(("state", "code"), [("Z", "pipe-stuck"), ("S", "waiting")])
def test_a_grandchild_that_keeps_the_output_of_an_ended_child(state, code):
    child = relative(300, "child", command="sh", state=state, kind="other")
    found = verdict(reading(pipe(9, writers=[301]), stack=COMMUNICATE, relatives=[child]))
    assert found.code == code
    if code == "pipe-stuck":
        assert "pid 301" in found.summary and "pid 300 (sh)" in found.summary


def test_a_live_child_writes_when_it_likes():
    children = [relative(300, "child", state="Z"), relative(301, "child")]
    assert verdict(reading(pipe(9, writers=[301]), stack=COMMUNICATE, relatives=children)).code == "waiting"


def test_a_forked_child_that_flushes_its_queue_while_it_is_joined():
    full = pipe(9, "both", readers=[300], writers=[300], blocked_writers=(300,))
    facts = snapshot(
        thread(syscall=call("wait4", args=(300, 0, 0, 0, 0, 0))),
        stacks={
            100: [
                "Popen.wait /usr/lib/python3.11/multiprocessing/popen_fork.py:43",
                "BaseProcess.join /usr/lib/python3.11/multiprocessing/process.py:149",
                *APP,
            ]
        },
        pipes=[full],
        relatives=[relative(300, "child")],
    )
    assert codes(facts)[0] == ("pipe-stuck", "likely")
    assert "before join()" in verdict(facts).later[0].do
