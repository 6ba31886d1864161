"""deadlock: which frames it names, what it takes for granted, and the way there as a chain."""

from dataclasses import replace

import pytest
from stucktrace.diagnosis.entered_again import retold
from stucktrace.diagnosis.lock_words import title
from stucktrace.facts import Awaited, Frame, NativeStack, PoolFact, PoolMember

from tests.unit.snapshots import call, codes, diagnosed, lock, owned_by, process, snapshot, thread, verdict

APP = ["Work.step /srv/app/work.py:12", "<module> /srv/app/main.py:3"]
TAKEN = "Registry.update /srv/app/registry.py:30"
JOIN = "Thread.join /usr/lib/python3.13/threading.py:1112"


def entered_again(*inner, **more):
    stack = [*inner, TAKEN, "<module> /srv/app/main.py:3"]
    own = lock(kind="lock", owner=owned_by(100, "self", frame=len(inner)), path="Registry.lock")
    return verdict(snapshot(thread(), stacks={100: stack}, locks=[own], **more))


def test_a_lock_taken_twice_in_one_stack_names_both_frames():
    found = entered_again("on_signal /srv/app/registry.py:12")
    assert (found.code, found.confidence, found.frame) == ("deadlock", "proven", 0)
    assert (
        "the lock Registry.lock in on_signal (app/registry.py:12), which it took itself in Registry.update "
        "(app/registry.py:30)" in found.summary
    )
    assert [step for step in found.chain if "itself" in step]
    assert "held in Registry.update (app/registry.py:30)" in " ".join(line.text for line in found.evidence)


def test_the_locks_own_code_is_not_the_frame_that_takes_it():
    found = entered_again(
        "Condition.__enter__ /usr/lib/python3.11/threading.py:264", "on_signal /srv/app/registry.py:12"
    )
    assert found.frame == 1 and "in on_signal (app/registry.py:12)" in found.summary


@pytest.mark.parametrize(
    ("inner", "said", "advice"),
    [
        (["give_back /srv/app/pool.py:3", "Connection.__del__ /srv/app/pool.py:9"], "finalised", "__del__"),
        (["clean /srv/app/pool.py:3", "finalize.__call__ /usr/lib/python3.11/weakref.py:590"], "weakref", "__del__"),
        (["helper /srv/app/pool.py:3"], "", "recursive"),
    ],
    ids=["finaliser", "weakref", "call"],
)
def test_how_the_thread_came_to_take_it_again(inner, said, advice):
    found = entered_again(*inner)
    assert said in found.summary and advice in found.later[0].do
    assert ("ran in the middle" in found.summary) == bool(said)


@pytest.mark.parametrize(
    ("function", "inside", "said"),
    [
        ("_PyErr_CheckSignalsTstate", 1, "a signal handler ran in the middle of that"),
        ("PyObject_ClearWeakRefs", 1, "a weakref's callback ran in the middle of that"),
        ("os_kill", 1, ""),
        ("_PyErr_CheckSignalsTstate", 0, ""),
        ("_PyErr_CheckSignalsTstate", 2, ""),
    ],
    ids=["signal handler", "weakref", "another", "inside of both", "outside of both"],
)
def test_how_it_came_by_the_native_stack(function, inside, said):
    stack = ["on_term /srv/app/pool.py:3", TAKEN, "<module> /srv/app/main.py:3"]
    own = lock(kind="lock", owner=owned_by(100, "self", frame=1), path="Registry.lock")
    facts = snapshot(thread(), stacks={100: stack}, locks=[own])
    found = verdict(facts)
    frames = (Frame(function, "/usr/bin/python3.11", 0, native=True),)
    told = retold(replace(facts, native=(NativeStack(100, frames, (inside,)),)), found)
    assert ("in the middle" in told.summary) == bool(said) and said in told.summary
    assert told.summary.replace("; " + said, "", 1) == found.summary or not said


def test_a_signal_handler_is_not_guessed_at():
    found = entered_again("on_term /srv/app/pool.py:3", process=process(handles_signals=True))
    assert "signal" not in found.summary
    assert found.later[0].do.startswith("if on_term runs as a signal handler: take no lock")


def test_an_owner_under_an_assumption_is_likely_and_says_so():
    owner = owned_by(100, "self", frame=1, assumes="nobody released it by hand")
    facts = snapshot(thread(), stacks={100: APP}, locks=[lock(kind="lock", owner=owner)])
    found = verdict(facts)
    assert (found.code, found.confidence) == ("deadlock", "likely")
    assert found.summary.endswith(", assuming that nobody released it by hand")


@pytest.mark.parametrize("more", [{"assumes": "so"}, {"state": "unknown"}], ids=["assumed", "unknown"])
def test_one_owner_that_is_not_certain_makes_the_circle_likely(more):
    owners = [owned_by(101), owned_by(100, **more)]
    locks = [lock(100, owner=owners[0], address=0x1000), lock(101, owner=owners[1], address=0x2000)]
    facts = snapshot(thread(), thread(101), stacks={100: APP, 101: APP}, locks=locks)
    assert codes(facts)[0] == ("deadlock", "likely")


def ring(size, **more):
    """Thread N waits in `waits` for a lock that thread N + 1 holds in `holds`."""
    tids = range(101, 101 + size)
    stack = ["waits /srv/app/bank.py:7", "holds /srv/app/bank.py:4"]
    owners = {tid: 101 + (tid - 100) % size for tid in tids}
    return snapshot(
        *(thread(tid) for tid in tids),
        stacks=dict.fromkeys(tids, stack),
        locks=[
            lock(tid, "lock", owner=owned_by(owner, frame=1), address=0x1000 * owner, path=f"to.lock{owner}", **more)
            for tid, owner in owners.items()
        ],
    )


def test_a_circle_names_the_line_that_waits_and_the_line_that_holds_of_each_member():
    found = verdict(ring(3))
    assert (found.code, found.confidence) == ("deadlock", "proven")
    assert (
        "Thread-1 (tid 101) in waits (app/bank.py:7) for the lock to.lock102, held by Thread-2 in holds (app/bank.py:4)"
        in found.summary
    )
    assert found.chain[0] == "Thread-1 (tid 101) in waits (app/bank.py:7)"
    assert found.chain[2] == "held by Thread-2 (tid 102) in holds (app/bank.py:4)"
    assert found.chain[3].startswith("waits in waits (app/bank.py:7) for the lock to.lock103")
    assert found.chain[-1].startswith("held by Thread-1 (tid 101) again, which took it in holds (app/bank.py:4)")


def test_the_with_statement_that_took_a_lock_goes_before_the_line_that_its_frame_is_at():
    took = Frame("holds", "/srv/app/bank.py", 3)
    facts = ring(2)
    locks = [replace(own, owner=replace(own.owner, frame=0, taken=took)) for own in facts.locks]
    found = verdict(replace(facts, locks=tuple(locks)))
    assert found.summary.count(", taken in holds (app/bank.py:3)") == 2
    assert found.chain[2:4] == (
        "held by Thread-2 (tid 102), taken in holds (app/bank.py:3)",
        "waits in waits (app/bank.py:7) for the lock to.lock101 at 0x65000, for 60 s",
    )


def test_a_circle_of_forty_fits_a_screen():
    found = verdict(ring(40))
    assert found.code == "deadlock" and len(found.explains) == 39
    assert len(found.chain) <= 16 and any("steps more" in step for step in found.chain)
    assert found.chain[-1].startswith("held by Thread-1 (tid 101) again")
    assert len(found.summary) < 1_000


def test_a_circle_through_a_join():
    locks = [
        lock(101, "lock", owner=owned_by(102), address=0x1000),
        lock(102, "join", owner=owned_by(103), address=0x2000),
        lock(103, "rlock", owner=owned_by(101), address=0x3000),
    ]
    stacks = {101: APP, 102: [JOIN, *APP], 103: APP}
    facts = snapshot(*(thread(tid) for tid in stacks), stacks=stacks, locks=locks)
    found = verdict(facts)
    assert (found.code, found.confidence, found.tid) == ("deadlock", "proven", 101)
    assert "for the end of Thread-3" in found.summary


def waits_for_a_result(**more):
    """The main thread waits, inside a lock, for what a member of a pool works on; that one waits for the lock."""
    result = [
        "Condition.wait /usr/lib/python3.11/threading.py:320",
        "Future.result /usr/lib/python3.11/concurrent/futures/_base.py:451",
    ]
    awaited = Awaited(100, 0xF0, more.pop("state", "running"), runs_on=101, of=more.pop("of", 1))
    pool = PoolFact(
        0xA0, "threads", "ThreadPoolExecutor-0", 4, members=(PoolMember(100, 101, 0xF0),), awaited=(awaited,)
    )
    main = thread(100, call("futex", **({"endless": False, "timeout_s": 60.0} if more.pop("timed", False) else {})))
    return snapshot(
        main,
        thread(101),
        stacks={100: [*result, *APP], 101: APP},
        locks=[lock(100, "lock", address=0x2000), lock(101, "lock", owner=owned_by(100), address=0x1000)],
        pools=(pool,),
    )


def test_a_circle_through_a_result():
    found = verdict(waits_for_a_result())
    assert (found.code, found.confidence, found.tid) == ("deadlock", "proven", 101)
    assert "wait for each other in a circle" in found.summary
    assert found.chain[-1].startswith(
        "waits in Future.result (futures/_base.py:451) for the result that is worked on by"
    )
    assert found.chain[-1].endswith("Thread-1 (tid 101) again, for 60 s: the circle is closed")


@pytest.mark.parametrize("more", [{"timed": True}, {"of": 2}, {"state": "queued"}])
def test_a_result_that_may_come_otherwise_is_no_circle(more):
    assert "deadlock" not in dict(codes(waits_for_a_result(**more)))


def test_a_result_in_the_graph():
    edges = {(edge.source, edge.target, edge.label) for edge in diagnosed(waits_for_a_result()).edges}
    assert edges == {
        ("thread:100", "pool:0xa0", "waits for a result, running"),
        ("pool:0xa0", "thread:101", "runs it"),
        ("thread:101", "lock:0x1000", "futex"),
        ("lock:0x1000", "thread:100", "held by, alive"),
    }


def test_threads_that_join_each_other_in_turn_wait_for_no_lock():
    locks = [lock(101, "join", owner=owned_by(102), address=1), lock(102, "join", owner=owned_by(101), address=2)]
    facts = snapshot(thread(101), thread(102), stacks={101: [JOIN, *APP], 102: [JOIN, *APP]}, locks=locks)
    assert verdict(facts).code != "deadlock"


def test_a_timed_join_breaks_the_circle():
    locks = [lock(101, "lock", owner=owned_by(102), address=1), lock(102, "join", owner=owned_by(101), address=2)]
    timed = thread(102, call("futex", endless=False, timeout_s=60.0))
    facts = snapshot(thread(101), timed, stacks={101: APP, 102: [JOIN, *APP]}, locks=locks)
    assert "deadlock" not in dict(codes(facts))


@pytest.mark.parametrize(
    ("path", "part_of", "called"),
    [
        ("Cache.lock", "__main__.Cache", "the lock Cache.lock at 0x10"),
        ("Queue.not_full", "queue.Queue", "the lock Queue.not_full at 0x10"),
        ("jobs.mutex", "queue.Queue", "the lock jobs.mutex of a queue.Queue at 0x10"),
        ("guard", "", "the lock guard at 0x10"),
        ("", "__main__.Cache", "the lock of a Cache at 0x10"),
    ],
)
def test_what_a_lock_is_called(path, part_of, called):
    assert title(lock(kind="lock", path=path, part_of=part_of, address=0x10)) == called


def entered_by_hand(blocked_s, tid=100, **more):
    stack = ["Request.wait /srv/app/client.py:20", "Request.run /srv/app/client.py:30"]
    by_hand = owned_by(tid, "self", how="acquire", assumes="that Request.run did not release it", frame=1)
    other = thread(102, "epoll_wait", 4)
    facts = snapshot(
        thread(tid, blocked_s=blocked_s), other, stacks={tid: stack}, locks=[lock(tid, "lock", owner=by_hand)], **more
    )
    return verdict(facts).code


def test_a_lock_taken_twice_by_hand_may_be_a_signal_that_another_thread_gives():
    assert entered_by_hand(6.0) != "deadlock"
    assert entered_by_hand(60.0) == "deadlock"
    handles = process(handles_signals=True)
    assert entered_by_hand(86_400.0, process=handles) != "deadlock", "the main thread is parked until a handler runs"
    assert entered_by_hand(60.0, 101, process=handles) == "deadlock"
