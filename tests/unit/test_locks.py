"""deadlock, orphaned-lock and lock-held from literal snapshots, and the waits that look like them."""

from dataclasses import replace

import pytest

from tests.unit.snapshots import (
    call,
    codes,
    lock,
    owned_by,
    parent,
    process,
    relative,
    snapshot,
    tcp,
    thread,
    verdict,
)

APP = ["Work.step /srv/app/work.py:12", "<module> /srv/app/main.py:3"]
LOGGING = [
    "Handler.acquire /usr/lib/python3.11/logging/__init__.py:917",
    "Handler.handle /usr/lib/python3.11/logging/__init__.py:966",
]
EVENT = ["Condition.wait /usr/lib/python3.11/threading.py:320", "Event.wait /usr/lib/python3.11/threading.py:622"]
JOIN = [
    "Thread._wait_for_tstate_lock /usr/lib/python3.11/threading.py:1132",
    "Thread.join /usr/lib/python3.11/threading.py:1112",
]
QUEUE = ["Condition.wait /usr/lib/python3.11/threading.py:320", "Queue.get /usr/lib/python3.11/queue.py:171"]
POOL = [
    "_worker /usr/lib/python3.11/concurrent/futures/thread.py:81",
    "Thread.run /usr/lib/python3.11/threading.py:975",
]
SEMAPHORE = [
    "Condition.wait /usr/lib/python3.11/threading.py:320",
    "Semaphore.acquire /usr/lib/python3.11/threading.py:480",
]
MP_QUEUE = [
    "SemLock.__enter__ /usr/lib/python3.11/multiprocessing/synchronize.py:95",
    "Queue.get /usr/lib/python3.11/multiprocessing/queues.py:102",
    "_process_worker /usr/lib/python3.11/concurrent/futures/process.py:249",
    "BaseProcess._bootstrap /usr/lib/python3.11/multiprocessing/process.py:314",
]
IMPORT = ["_ModuleLock.acquire <frozen importlib._bootstrap>:110", "_find_and_load <frozen importlib._bootstrap>:1170"]


@pytest.mark.parametrize("kind", ["pthread-mutex", "robust-mutex", "pi-mutex", "lock", "pymutex"])
def test_a_thread_that_waits_for_itself(kind):
    facts = snapshot(thread(), stacks={100: APP}, locks=[lock(kind=kind, owner=owned_by(100, "self"))])
    found = verdict(facts)
    assert (found.code, found.confidence, found.tid, found.lock) == ("deadlock", "proven", 100, 0x7F00_0000_1000)
    assert "holds itself" in found.summary
    assert any(line.what == "owner" and line.value == 100 for line in found.evidence)


def test_a_thread_that_waits_for_itself_without_python():
    facts = snapshot(thread(), locks=[lock(owner=owned_by(100, "self"))])
    assert codes(facts)[0] == ("deadlock", "proven")


def test_an_rlock_lets_its_owner_in():
    facts = snapshot(thread(), stacks={100: APP}, locks=[lock(kind="rlock", owner=owned_by(100, "self"), count=1)])
    assert verdict(facts).verdict_class != "stuck"


def test_a_timed_wait_ends_by_itself():
    timed = thread(syscall=call("futex", endless=False, timeout_s=600.0))
    facts = snapshot(timed, stacks={100: APP}, locks=[lock(owner=owned_by(100, "self"))])
    assert verdict(facts).verdict_class == "healthy"


def test_two_threads_and_two_locks():
    locks = [lock(100, owner=owned_by(101), address=0x1000), lock(101, owner=owned_by(100), address=0x2000)]
    found = verdict(snapshot(thread(), thread(101), stacks={100: APP, 101: APP}, locks=locks))
    assert (found.code, found.confidence, found.tid, found.explains) == ("deadlock", "proven", 100, (101,))


def test_the_main_thread_joins_a_deadlocked_pair():
    locks = [lock(101, owner=owned_by(102), address=0x1000), lock(102, "rlock", owner=owned_by(101), address=0x2000)]
    threads = [thread(tid) for tid in (100, 101, 102)]
    found = verdict(snapshot(*threads, stacks={100: [*JOIN, *APP], 101: APP, 102: APP}, locks=locks))
    assert (found.code, found.confidence, found.tid) == ("deadlock", "proven", 101)


def test_a_circle_of_three_and_a_bystander():
    owners = {101: 102, 102: 103, 103: 101, 104: 101}
    locks = [lock(waiter, owner=owned_by(owner), address=0x1000 * owner) for waiter, owner in owners.items()]
    facts = snapshot(thread(syscall="epoll_wait", fd=4), *(thread(tid) for tid in owners), locks=locks)
    found = verdict(facts)
    assert (found.code, found.tid) == ("deadlock", 101)
    assert set(found.explains) == {102, 103, 104}


def test_a_circle_read_while_a_member_was_awake_is_likely():
    locks = [lock(100, owner=owned_by(101), address=0x1000), lock(101, owner=owned_by(100), address=0x2000)]
    facts = snapshot(thread(slept_through=False), thread(101), stacks={100: APP, 101: APP}, locks=locks)
    assert codes(facts)[0] == ("deadlock", "likely")


def test_owners_that_were_not_read_twice_alike_prove_nothing():
    facts = snapshot(thread(), stacks={100: APP}, locks=[lock(owner=owned_by(100, "self"), stable=False)])
    assert verdict(facts).verdict_class != "stuck"


def test_the_owner_word_of_a_semaphore_is_no_owner():
    facts = snapshot(
        thread(),
        stacks={100: MP_QUEUE},
        locks=[lock(kind="shared-semaphore", owner=owned_by(128, "absent"), shared=True)],
        relatives=[parent()],
    )
    assert verdict(facts).code == "idle"


def test_a_logging_lock_inherited_over_fork():
    owner = owned_by(77, "absent", name="writer", parent_thread=True)
    facts = snapshot(
        thread(), stacks={100: [*LOGGING, *APP]}, locks=[lock(kind="rlock", owner=owner)], relatives=[parent()]
    )
    found = verdict(facts)
    assert (found.code, found.confidence) == ("orphaned-lock", "proven")
    assert "writer" in found.summary and "a thread of its parent, pid 50" in found.summary


def test_an_owner_that_ended():
    facts = snapshot(thread(), thread(101, "epoll_wait", 4), locks=[lock(owner=owned_by(102, "absent"))])
    found = verdict(facts)
    assert (found.code, found.confidence) == ("orphaned-lock", "proven")
    assert "ended without releasing" in found.summary


def test_an_absent_owner_of_a_shared_lock_is_likely_where_not_all_who_share_it_were_read():
    facts = snapshot(thread(), locks=[lock(owner=owned_by(102, "absent"), shared=True)])
    assert codes(facts)[0] == ("orphaned-lock", "proven")
    hidden = owned_by(102, "absent", assumes="no process whose mappings may not be read shares it")
    facts = snapshot(thread(), locks=[lock(owner=hidden, shared=True)])
    assert codes(facts)[0] == ("orphaned-lock", "likely")


@pytest.mark.parametrize("stack", [APP, [*LOGGING, *APP], [*IMPORT, *APP]])
def test_a_plain_lock_in_a_forked_child_with_one_thread(stack):
    facts = snapshot(
        thread(),
        stacks={100: stack},
        locks=[lock(kind="lock")],
        relatives=[parent("celery-main")],
        worker="celery-child",
    )
    assert codes(facts)[0] == ("orphaned-lock", "likely")


PUT = [
    "Condition.__enter__ /usr/lib/python3.11/threading.py:264",
    "Queue.put /usr/lib/python3.11/queue.py:133",
]


def parked(*tids, operation=0x189):
    return [thread(tid, call("futex", args=(0x1000 + tid, operation, 0, 0, 0, 0))) for tid in tids]


def test_a_queues_mutex_that_nobody_can_ever_release_is_proven():
    facts = snapshot(*parked(100), stacks={100: [*PUT, *APP]}, locks=[lock(kind="lock")], relatives=[parent()])
    assert codes(facts)[0] == ("orphaned-lock", "proven")


@pytest.mark.parametrize("stack", [[*IMPORT, *APP], ["Queue.qsize /usr/lib/python3.11/queue.py:95", *APP]])
def test_other_locks_that_are_always_a_mutex(stack):
    own = lock(kind="lock", part_of="queue.Queue")
    facts = snapshot(*parked(100, 101), stacks={100: stack, 101: [*EVENT, *APP]}, locks=[own], relatives=[parent()])
    assert codes(facts)[0] == ("deadlock", "proven")


@pytest.mark.parametrize(
    ("changed", "stack"),
    [
        ({"process": process(handles_signals=True)}, PUT),
        ({"threads": tuple(parked(100, operation=0x109))}, PUT),
        ({"threads": (*parked(100), thread(101, call("futex", args=(1, 0x109, 0, 0, 0, 0))))}, PUT),
        ({"locks": (lock(kind="lock", path="signal_of_ours"),)}, APP),
    ],
    ids=["a handler may run", "a shared futex", "another thread's shared futex", "a lock that may be a signal"],
)
def test_what_may_yet_be_released_is_likely(changed, stack):
    stacks = {100: [*stack, *APP], 101: APP}
    facts = snapshot(*parked(100), stacks=stacks, locks=[lock(kind="lock")], relatives=[parent()])
    assert {confidence for code, confidence in codes(replace(facts, **changed))} == {"likely"}


def test_a_queues_mutex_beside_a_thread_that_will_wake():
    threads = [*parked(100), thread(101, call("clock_nanosleep"))]
    facts = snapshot(*threads, stacks={100: [*PUT, *APP], 101: APP}, locks=[lock(kind="lock")], relatives=[parent()])
    assert "proven" not in dict(map(reversed, codes(facts)))


def test_a_plain_lock_taken_twice_by_the_only_thread():
    facts = snapshot(
        thread(), stacks={100: APP}, locks=[lock(kind="lock")], relatives=[parent("other", command="bash")]
    )
    assert codes(facts)[0] == ("deadlock", "likely")
    started = snapshot(thread(), stacks={100: APP}, locks=[lock(kind="lock")], relatives=[parent(same_program=False)])
    assert codes(started)[0] == ("deadlock", "likely")


def test_plain_locks_while_every_thread_is_parked():
    locks = [lock(101, "lock", address=0x1000), lock(102, "lock", address=0x2000)]
    threads = [thread(tid) for tid in (100, 101, 102)]
    facts = snapshot(*threads, stacks={100: [*JOIN, *APP], 101: APP, 102: APP}, locks=locks)
    assert codes(facts)[0] == ("deadlock", "likely")
    assert [code for code, _ in codes(facts)].count("deadlock") == 1


def test_a_plain_lock_is_waiting_within_its_budget_and_inconclusive_past_it():
    def facts(blocked_s):
        loop = [
            "select /usr/lib/python3.11/selectors.py:469",
            "_run_once /usr/lib/python3.11/asyncio/base_events.py:1890",
        ]
        threads = [thread(syscall="epoll_wait", fd=4), thread(101, blocked_s=blocked_s)]
        return snapshot(*threads, stacks={100: loop, 101: APP}, locks=[lock(101, "lock")])

    assert verdict(facts(12)).code == "waiting"
    found = verdict(facts(40))
    assert found.code == "inconclusive" and "keeps no owner" in found.summary
    assert verdict(facts(40), stuck_after_s=60, stuck_after_given=True).code == "waiting"


@pytest.mark.parametrize(
    "stack", [EVENT, QUEUE, JOIN, SEMAPHORE, POOL], ids=["event", "queue", "join", "semaphore", "pool"]
)
@pytest.mark.parametrize("kind", ["lock", "semaphore", "pymutex", "condition", "unknown"])
@pytest.mark.parametrize("child", [False, True])
def test_waits_for_a_notification_are_never_stuck(stack, kind, child):
    relatives = [parent("celery-main")] if child else []
    facts = snapshot(
        thread(blocked_s=86_400),
        stacks={100: [*stack, *APP]},
        locks=[lock(kind=kind)],
        relatives=relatives,
        worker="celery-child" if child else None,
    )
    assert verdict(facts).verdict_class == "healthy"


def test_a_simple_queue_in_the_only_thread_waits_for_a_signal_handler():
    facts = snapshot(
        thread(), stacks={100: APP}, locks=[lock(kind="semaphore", note="of a queue.SimpleQueue")], relatives=[parent()]
    )
    assert verdict(facts).code == "idle"


def test_a_lock_whose_holder_is_stuck_defers_to_it():
    stacks = {100: APP, 101: ["recv /srv/app/client.py:3", *APP]}
    holder = thread(101, blocked_s=70.0)
    locks = [lock(100, owner=owned_by(101), address=0x1000), lock(101, owner=owned_by(101, "self"), address=0x2000)]
    facts = snapshot(thread(), holder, stacks=stacks, locks=locks)
    assert codes(facts)[0] == ("deadlock", "proven")
    assert ("lock-held", "likely") in codes(facts)


def test_a_lock_whose_holder_sleeps_past_the_budget():
    stacks = {100: APP, 101: EVENT}
    facts = snapshot(
        thread(), thread(101, blocked_s=90.0), stacks=stacks, locks=[lock(100, "rlock", owner=owned_by(101))]
    )
    found = verdict(facts)
    assert (found.code, found.confidence) == ("lock-held", "likely")
    assert "waits to be notified" in found.summary


def test_an_import_lock_is_called_so():
    of_module = {"path": "_ModuleLock('slow_module')", "part_of": "_frozen_importlib._ModuleLock"}
    locks = [
        lock(100, "lock", owner=owned_by(101), **of_module),
        lock(101, "lock", owner=owned_by(100), address=0x2000),
    ]
    found = verdict(snapshot(thread(), thread(101), stacks={100: IMPORT, 101: APP}, locks=locks))
    assert found.code == "deadlock"
    assert "for the import lock of module 'slow_module', held by" in found.summary
    assert "the import lock of module 'slow_module' at 0x7f0000001000, for" in "\n".join(found.chain)


ACCEPT = ["socket.accept /usr/lib/python3.11/socket.py:294", "serve /srv/app/server.py:8"]


@pytest.mark.parametrize(
    ("held", "second", "stuck"),
    [
        ([*QUEUE, "serve /srv/app/server.py:8"], "serve /srv/app/server.py:8", False),
        ([*QUEUE, "serve /srv/app/server.py:8"], "fill /srv/app/server.py:20", True),
        (ACCEPT, "serve /srv/app/server.py:8", False),
        ([*EVENT, "serve /srv/app/server.py:8"], "serve /srv/app/server.py:8", True),
    ],
    ids=["all read the queue", "one may bring the work", "all accept", "an event that should have come"],
)
def test_idle_threads_that_take_turns(held, second, stuck):
    stacks = {100: ["serve /srv/app/server.py:8"], 101: held, 102: [second]}
    owner = owned_by(101, frame=len(held) - 1)
    locks = [lock(100, "lock", owner=owner), lock(102, "lock", owner=owner)]
    call_of_holder = thread(101, "accept4", 3) if held is ACCEPT else thread(101)
    facts = snapshot(thread(), call_of_holder, thread(102), stacks=stacks, locks=locks)
    assert (verdict(facts).code == "lock-held") == stuck


@pytest.mark.parametrize(
    ("waiter_s", "holder"),
    [
        (12.0, thread(101, blocked_s=90.0)),
        (60.0, thread(101, None)),
        (60.0, thread(101, "recvfrom", 7, blocked_s=3.0)),
        (60.0, thread(101, "recvfrom", 7, blocked_s=90.0, slept_through=False)),
        (60.0, thread(101, call("clock_nanosleep"), blocked_s=0.5)),
    ],
    ids=["young", "computes", "moves", "awake", "short sleeps"],
)
def test_a_lock_whose_holder_comes_round(waiter_s, holder):
    facts = snapshot(
        thread(blocked_s=waiter_s),
        holder,
        stacks={100: APP, 101: APP},
        sockets=[tcp()],
        locks=[lock(100, "rlock", owner=owned_by(101))],
    )
    assert verdict(facts).verdict_class == "healthy"


def test_a_shared_mutex_held_in_a_stopped_process():
    facts = snapshot(
        thread(),
        locks=[lock(owner=owned_by(300, pid=300), shared=True)],
        relatives=[relative(300, "sibling", state="T")],
    )
    assert codes(facts)[0] == ("lock-held", "likely")
    unknown = snapshot(thread(), locks=[lock(owner=owned_by(300, pid=300), shared=True)])
    assert verdict(unknown).code == "inconclusive"


def test_a_crowd_behind_one_lock_is_one_finding():
    crowd = range(101, 2_100)
    threads = [thread(tid, blocked_s=40.0 + tid) for tid in (100, *crowd)]
    facts = snapshot(
        *threads,
        stacks=dict.fromkeys((100, *crowd), APP),
        locks=[lock(tid, "rlock", owner=owned_by(100)) for tid in crowd],
    )
    assert [code for code, _ in codes(facts)].count("lock-held") == 1
    assert verdict(facts).tid == 2_099 and len(verdict(facts).explains) == len(crowd) - 1


@pytest.mark.parametrize("kind", ["lock", "rlock", "pthread-mutex"])
def test_the_holder_of_a_lock_joins_its_waiter(kind):
    facts = snapshot(
        thread(), thread(101), stacks={100: [*JOIN, *APP], 101: APP}, locks=[lock(101, kind, owner=owned_by(100))]
    )
    found = verdict(facts)
    assert (found.code, found.confidence, found.tid) == ("deadlock", "likely", 101)
    assert "waits for that thread to end" in found.summary
    assert ("lock-held", "likely") not in codes(facts)


def test_whom_a_join_is_for_read_from_its_word():
    joins = lock(100, "join", owner=owned_by(101), address=0x2000)
    facts = snapshot(
        thread(),
        thread(101),
        thread(102, "epoll_wait", 4),
        stacks={100: [*JOIN, *APP], 101: APP, 102: APP},
        locks=[lock(101, "lock", owner=owned_by(100)), joins],
    )
    assert codes(facts)[0] == ("deadlock", "proven")


def test_a_join_that_may_be_for_another_thread():
    facts = snapshot(
        thread(),
        thread(101),
        thread(102, "epoll_wait", 4),
        stacks={100: [*JOIN, *APP], 101: APP, 102: APP},
        locks=[lock(101, "lock", owner=owned_by(100))],
    )
    assert codes(facts)[0][0] == "lock-held"


RUN = [
    "BaseProcess.run /usr/lib/python3.11/multiprocessing/process.py:108",
    "BaseProcess._bootstrap /usr/lib/python3.11/multiprocessing/process.py:314",
]


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({}, "orphaned-lock"),
        ({"note": "of a SimpleQueue"}, "idle"),
        ({"shared": True}, "idle"),
    ],
)
def test_a_lock_inside_c_code_inherited_over_fork(more, code):
    facts = snapshot(thread(), stacks={100: RUN}, locks=[lock(kind="semaphore", **more)], relatives=[parent()])
    assert verdict(facts).code == code


def test_a_main_thread_parked_in_a_lock_until_a_signal_handler_releases_it():
    handles = process(handles_signals=True)
    facts = snapshot(thread(), stacks={100: APP}, locks=[lock(kind="lock")], process=handles)
    assert verdict(facts).verdict_class != "stuck"
    forked = replace(facts, relatives=(parent(),))
    assert codes(forked)[0] == ("orphaned-lock", "likely")


def test_a_lock_inside_c_code_that_a_signal_handler_may_post():
    facts = snapshot(
        thread(),
        stacks={100: RUN},
        locks=[lock(kind="semaphore")],
        relatives=[parent()],
        process=process(handles_signals=True),
    )
    assert verdict(facts).code == "idle"
