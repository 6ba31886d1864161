"""Who waits behind a fault: the holder's own finding is the verdict, and says whom it blocks."""

import pytest
from stucktrace.facts import Frame

from tests.unit.snapshots import black_hole, codes, lock, owned_by, snapshot, tcp, thread, verdict

WAITER = ["Cache.get /srv/app/cache.py:20", "handle /srv/app/main.py:3"]
TAKEN = Frame("Cache.refresh", "/srv/app/cache.py", 12)
HOLDER = ["request /srv/app/cache.py:31", "Cache.refresh /srv/app/cache.py:12", "handle /srv/app/main.py:3"]


def held(holder_socket, *, waiters=(101, 102, 103), owner=owned_by(100, frame=1, taken=TAKEN), **more):
    return snapshot(
        thread(100, "recvfrom", 7, blocked_s=70.0, **more),
        *(thread(tid, blocked_s=tid - 60.0) for tid in waiters),
        stacks={100: HOLDER} | dict.fromkeys(waiters, WAITER),
        sockets=[holder_socket],
        locks=[lock(tid, "lock", owner=owner, path="Cache.lock") for tid in waiters],
    )


def test_the_verdict_is_the_connections_and_names_the_lock():
    found = verdict(held(black_hole(age_s=70.0)))
    assert (found.code, found.confidence, found.tid) == ("half-open", "proven", 100)
    assert (
        "it holds the lock Cache.lock, taken in Cache.refresh (app/cache.py:12), for which 3 threads wait"
        in found.summary
    )
    assert "the longest for 43 s" in found.summary
    assert set(found.explains) == {101, 102, 103}
    assert found.chain[0] == "Thread-3 (tid 103) in Cache.get (app/cache.py:20)"
    assert found.chain[1].startswith("the lock Cache.lock at 0x7f0000001000, for 43 s (so do 2 more threads: Thread-1")
    assert found.chain[2] == "held by MainThread (tid 100), taken in Cache.refresh (app/cache.py:12)"
    assert found.chain[3].startswith("recvfrom(fd 7)")


def test_a_wait_of_unknown_purpose_behind_which_others_wait_is_the_servers():
    asked = tcp(bytes_sent=9, last_send_s=70.0, last_receive_s=80.0)
    found = verdict(held(asked))
    assert (found.code, found.confidence, found.tid) == ("peer-silent", "likely", 100)
    assert "while others wait for its lock" in found.summary


@pytest.mark.parametrize(
    "facts",
    [
        held(tcp(bytes_sent=9, bytes_received=9, last_send_s=90.0, last_receive_s=70.0)),
        held(tcp(bytes_sent=0, last_send_s=70.0, last_receive_s=70.0)),
        held(tcp(bytes_sent=9, last_send_s=70.0, last_receive_s=80.0), owner=owned_by(100, "unknown")),
    ],
    ids=["it was answered", "nothing was ever sent", "owner unknown"],
)
def test_a_wait_of_unknown_purpose_is_no_servers_fault(facts):
    assert "peer-silent" not in dict(codes(facts))


def test_who_waits_for_the_waiters_too():
    locks = [
        lock(101, "lock", owner=owned_by(100), address=0x1000),
        lock(102, "lock", owner=owned_by(101), address=0x2000),
        lock(103, "lock", owner=owned_by(102), address=0x3000),
    ]
    facts = snapshot(
        thread(100, "recvfrom", 7),
        *(thread(tid) for tid in (101, 102, 103)),
        stacks={100: HOLDER} | dict.fromkeys((101, 102, 103), WAITER),
        sockets=[black_hole()],
        locks=locks,
    )
    found = verdict(facts)
    assert found.code == "half-open" and set(found.explains) == {101, 102, 103}
    assert "for which 3 threads wait" in found.summary


def test_an_owner_under_an_assumption_is_said_to_be_one():
    found = verdict(held(black_hole(), owner=owned_by(100, assumes="its generator was not closed")))
    assert "it most likely holds" in found.summary
    assert "assuming that its generator was not closed" in found.summary


def test_an_owner_that_was_awake_holds_nothing_for_certain():
    found = verdict(held(black_hole(), slept_through=False))
    assert "holds" not in found.summary


def joined(*locks):
    """Thread 102 waits for a lock of 101, which joins 100, which waits for a peer that is gone."""
    join = ["Thread.join /usr/lib/python3.13/threading.py:1112", "Cache.refresh /srv/app/cache.py:12"]
    return snapshot(
        thread(100, "recvfrom", 7),
        thread(101),
        thread(102),
        stacks={100: HOLDER, 101: join, 102: WAITER},
        sockets=[black_hole()],
        locks=[lock(101, "join", owner=owned_by(100), address=0x2000), *locks],
    )


def test_who_waits_behind_one_that_joins_the_thread():
    facts = joined(lock(102, "lock", owner=owned_by(101), address=0x1000))
    found = verdict(facts)
    assert (found.code, found.tid, set(found.explains)) == ("half-open", 100, {101, 102})
    assert "; for its end, and in locks behind that, 2 threads wait, the longest for 60 s" in found.summary
    assert found.chain[1].startswith("waits in Cache.refresh (app/cache.py:12) for the end of MainThread (tid 100)")


def test_a_join_alone_is_not_worth_a_word():
    found = verdict(joined())
    assert found.code == "half-open" and "for its end" not in found.summary and found.explains == ()
