"""Who waits for whom: edges, waits_for, and cycles of owners."""

from stucktrace.diagnosis import graph
from stucktrace.diagnosis.model import Edge
from stucktrace.facts import OwnerElsewhere

from tests.unit.snapshots import call, diagnosed, file_lock, lock, owned_by, peer, pipe, snapshot, tcp, thread


def test_each_thing_that_a_thread_can_wait_for():
    facts = snapshot(
        thread(100, "recvfrom", 7),
        thread(101),
        thread(102, "read", 9),
        thread(103, call("wait4", args=(222, 0, 0, 0, 0, 0))),
        thread(104, call("clock_nanosleep")),
        thread(105, "epoll_wait", 4),
        thread(106, None),
        thread(107, "flock", 8),
        thread(108, call("futex", args=(0xBEEF, 0, 0, 0, 0, 0))),
        sockets=[tcp()],
        pipes=[pipe(9, writers=[50])],
        locks=[lock(101, owner=owned_by(102))],
        file_locks=[file_lock(107)],
    )
    assert graph.waits_for(facts) == {
        100: ("socket", "7007"),
        101: ("lock", "0x7f0000001000"),
        102: ("pipe", "9009"),
        103: ("child", "222"),
        104: ("timer", ""),
        105: ("none", ""),
        106: ("none", ""),
        107: ("lock", "/run/app.lock"),
        108: ("lock", "0xbeef"),
    }
    edges = {(edge.source, edge.target) for edge in graph.edges(facts)}
    assert ("thread:100", "socket:7007") in edges and ("socket:7007", "peer:10.0.0.2:5672") in edges
    assert ("lock:0x7f0000001000", "thread:102") in edges
    assert ("pipe:9009", "process:50") in edges
    assert ("thread:103", "process:222") in edges
    assert ("file:/run/app.lock", "process:300") in edges


def test_a_local_peer_is_a_process():
    facts = snapshot(thread(100, "recvfrom", 7), sockets=[tcp(peer=peer(812))])
    assert Edge("socket:7007", "process:812", "peer") in graph.edges(facts)


def test_who_is_behind_a_lock():
    def behind(owner, **more):
        facts = snapshot(thread(100), thread(101), locks=[lock(100, owner=owner, **more)])
        return [(edge.target, edge.label) for edge in graph.edges(facts) if edge.source.startswith("lock:")]

    assert behind(None) == []
    assert behind(owned_by(101)) == [("thread:101", "held by, alive")]
    assert behind(owned_by(None, "self")) == [("thread:100", "held by, self")]
    assert behind(owned_by(101, assumes="so")) == [("thread:101", "held by, alive, most likely")]
    assert behind(owned_by(None, "absent", ns_tid=77)) == [("absent:77", "held by, absent")]
    assert behind(owned_by(None, "absent")) == [("absent:", "held by, absent")]
    assert behind(owned_by(301, pid=300)) == [("process:300", "held by thread 301, alive")]
    assert behind(owned_by(101), kind="join") == [("thread:101", "until it ends")]


def test_a_circle_of_processes():
    other = OwnerElsewhere(300, 300, "worker", "S", lock=0xB0, kind="process-lock")
    back = OwnerElsewhere(100, 100, "python3", "S", lock=0xA0, kind="process-lock")
    own = lock(100, "process-lock", owner=owned_by(300, pid=300), address=0xA0, shared=True, beyond=(other, back))
    facts = snapshot(thread(100), locks=[own])
    assert [(edge.source, edge.target) for edge in graph.edges(facts)] == [
        ("thread:100", "lock:0xa0"),
        ("lock:0xa0", "process:300"),
        ("process:300", "lock:300/0xb0"),
        ("lock:300/0xb0", "thread:100"),
    ]


def test_labels_of_nodes():
    gone = owned_by(None, "absent", ns_tid=77, name="writer", parent_thread=True)
    facts = snapshot(thread(100), stacks={100: ["put /srv/app/q.py:9"]}, locks=[lock(owner=gone, path="q.mutex")])
    labels = diagnosed(facts).labels
    assert labels == {
        "thread:100": "MainThread (tid 100) in put (app/q.py:9), for 60 s",
        "lock:0x7f0000001000": "the pthread mutex q.mutex at 0x7f0000001000",
        "absent:77": "thread writer (tid 77), a thread of the parent: not in this process",
    }


def test_which_child_is_waited_for():
    def child(name, *args):
        return graph.waited_child(thread(syscall=call(name, args=args)))

    assert child("wait4", 222, 0, 0, 0) == 222
    assert child("wait4", 0xFFFF_FFFF_FFFF_FFFF, 0, 0, 0) is None
    assert child("waitid", 1, 222, 0, 0) == 222
    assert child("waitid", 0, 0, 0, 0) is None
    assert child("recvfrom", 222) is None


def test_cycles():
    def circles(owners):
        locks = [lock(waiter, owner=owned_by(owner), address=0x1000 * owner) for waiter, owner in owners.items()]
        return [{wait.waiter_tid for wait in circle} for circle in graph.cycles(snapshot(locks=locks))]

    assert circles({1: 2, 2: 3}) == []
    assert circles({1: 2, 2: 1}) == [{1, 2}]
    assert circles({1: 1}) == []
    assert circles({5: 1, 1: 2, 2: 3, 3: 1, 6: 5}) == [{1, 2, 3}]
    assert circles({1: 2, 2: 1, 3: 4, 4: 3}) == [{1, 2}, {3, 4}]


def test_two_thousand_threads_in_one_chain():
    locks = [lock(tid, owner=owned_by(tid + 1), address=tid) for tid in range(1, 2_000)]
    assert graph.cycles(snapshot(locks=locks)) == ()
    assert len(graph.cycles(snapshot(locks=[*locks, lock(2_000, owner=owned_by(1), address=9)]))[0]) == 2_000


def test_a_condition_is_no_edge_of_a_cycle():
    locks = [lock(1, "condition", owner=owned_by(2)), lock(2, owner=owned_by(1))]
    assert graph.cycles(snapshot(locks=locks)) == ()
