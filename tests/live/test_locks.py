"""Locks that cannot be had: the verdict on each program of tests/targets/stuck_locks.py, with both engines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness import command, crowd, targets

pytestmark = pytest.mark.xdist_group("locks")

RESULT = "awaits_a_result_under_a_lock"
CIRCLES = ["mutexes_crossed", "mutexes_in_a_ring", "rlocks_crossed", "locks_crossed", "rlock_and_mutex_crossed"]
HELD = ["held_by_a_receiver", "held_by_a_sleeper"]
ENTERED = ["entered_by_a_handler", "entered_by_a_finaliser", "entered_by_a_call"]
SERVERS = ["behind_a_silent_server", "behind_a_silent_web_server"]
engines = pytest.mark.parametrize("engine", ["auto", "none"])


@pytest.fixture(scope="module")
def hung() -> Iterator[dict[str, crowd.Hung]]:
    with crowd.start(
        "stuck_locks.py", ["mutex_twice", "lock_twice", "ended_owner", *CIRCLES, *HELD, *ENTERED, *SERVERS, RESULT]
    ) as programs:
        yield programs


@engines
def test_a_mutex_locked_twice(hung: dict[str, crowd.Hung], engine: str):
    target = hung["mutex_twice"]
    target.wait("futex")
    report = command.check(target.pid, "deadlock", "--engine", engine, confidence="proven")
    (lock,) = (lock for lock in report["locks"] if lock["kind"] == "pthread-mutex")
    assert [(owner["tid"], owner["state"]) for owner in lock["owners"]] == [(target.words[1], "self")]
    assert report.verdict["tid"] == target.words[1]
    assert "holds itself" in report.summary
    assert report.evidence("owner") == target.words[1]
    assert report.verdict["remedy"]["now"]


@engines
@pytest.mark.parametrize("case", CIRCLES)
def test_a_circle(hung: dict[str, crowd.Hung], case: str, engine: str):
    target = hung[case]
    target.wait("futex")
    report = command.check(target.pid, "deadlock", "--engine", engine, confidence="proven")
    assert report.verdict["tid"] in target.words[1:]
    assert "in a circle" in report.summary
    owners = {owner["tid"] for lock in report["locks"] for owner in lock["owners"]}
    assert set(target.words[1:]) <= owners
    edges = {(edge["from"], edge["to"]) for edge in report["graph"]["edges"]}
    for tid in target.words[1:]:
        locks = [to for source, to in edges if source == f"thread:{tid}"]
        assert any((lock, f"thread:{other}") in edges for lock in locks for other in target.words[1:]), edges


@engines
def test_a_plain_lock_taken_twice_by_the_only_thread(hung: dict[str, crowd.Hung], engine: str):
    target = hung["lock_twice"]
    target.wait("futex", 6)
    report = command.check(target.pid, "deadlock", "--engine", engine)
    assert report.confidence in ("proven", "likely")


@engines
def test_the_owner_ended(hung: dict[str, crowd.Hung], engine: str):
    target = hung["ended_owner"]
    target.wait("futex")
    report = command.check(target.pid, "orphaned-lock", "--engine", engine, confidence="proven")
    assert "ended without releasing it" in report.summary


@engines
@pytest.mark.parametrize("case", HELD)
def test_the_owner_lives_and_sleeps(hung: dict[str, crowd.Hung], case: str, engine: str):
    target = hung[case]
    waiter, holder = target.words[1:]
    target.wait("futex", 6, [waiter])
    within = command.check(target.pid, "waiting", "--engine", engine, "--stuck-after", 3600)
    assert within["locks"]
    report = command.check(target.pid, "lock-held", "--engine", engine, "--stuck-after", 5)
    assert report.verdict["tid"] == waiter
    assert str(holder) in report.summary
    assert report.evidence("owner") == holder


def lines(mark: str, between: tuple[str, str]) -> list[int]:
    """The lines of the program with this comment, from one function's on to another's."""
    source = (targets.TARGETS / "stuck_locks.py").read_text().splitlines()
    first, last = (next(number for number, line in enumerate(source) if name in line) for name in between)
    return [number + 1 for number in range(first, last) if source[number].endswith(f"# {mark}")]


@engines
@pytest.mark.parametrize("case", ENTERED)
def test_a_lock_taken_twice_in_one_stack(hung: dict[str, crowd.Hung], case: str, engine: str):
    target = hung[case]
    target.wait("futex", 1, target.words[1:])
    report = command.check(target.pid, "deadlock", "--engine", engine, confidence="proven")
    (outer,) = lines("holds", ("class Registry", "def entered_by_a_handler"))
    inner = lines("waits", (f"def {case}", "def silent_server"))[0]
    assert f"stuck_locks.py:{inner}), which it took itself in" in report.summary
    assert f"update (targets/stuck_locks.py:{outer})" in report.summary
    assert ("as an object was finalised" in report.summary) == (case == "entered_by_a_finaliser")
    assert ("a signal handler ran in the middle" in report.summary) == (case == "entered_by_a_handler")
    advice = {"handler": "signal handler", "finaliser": "__del__", "call": "once in a call chain"}[case.split("_")[-1]]
    assert advice in report.verdict["remedy"]["later"][0]["do"]
    assert f"thread:{target.words[1]}" in report["graph"]["labels"]


@engines
@pytest.mark.parametrize("case", SERVERS)
def test_the_verdict_on_a_lock_behind_a_silent_server_is_the_servers(
    hung: dict[str, crowd.Hung], case: str, engine: str
):
    target = hung[case]
    holder, *readers = target.words[1:]
    target.wait("recvfrom", 6, [holder])
    target.wait("futex", 6, readers)
    within = command.check(target.pid, "waiting", "--engine", engine, "--stuck-after", 3600)
    assert {waiter["tid"] for lock in within["locks"] for waiter in lock["waiters"]} >= set(readers)
    report = command.check(target.pid, "peer-silent", "--engine", engine, "--stuck-after", 5)
    (held,) = lines("holds", ("def _readers_behind", "def behind_a_silent_server"))
    assert report.verdict["tid"] == holder
    assert "it holds the lock Cache.lock, taken in" in report.summary
    assert f"stuck_locks.py:{held}), for which 3 threads wait" in report.summary
    steps = report.verdict["chain"]
    assert "Cache.lock" in steps[1] and "2 more threads" in steps[1]
    assert str(holder) in steps[2] and "recvfrom" in steps[3] and "127.0.0.1" in steps[4]
    edges = {(edge["from"], edge["to"]) for edge in report["graph"]["edges"]}
    (lock,) = {to for source, to in edges if source == f"thread:{readers[0]}"}
    assert (lock, f"thread:{holder}") in edges
    assert any(source == f"thread:{holder}" and to.startswith("socket:") for source, to in edges)


@engines
def test_a_result_that_needs_the_lock_under_which_it_is_awaited(hung: dict[str, crowd.Hung], engine: str):
    target = hung[RESULT]
    main, worker = target.words[1:]
    target.wait("futex")
    report = command.check(target.pid, "deadlock", "--engine", engine, confidence="proven")
    assert report.verdict["tid"] == worker
    assert "for the result of" in report.summary
    assert report.verdict["chain"][-1].endswith(": the circle is closed")
    edges = {(edge["from"].partition(":")[0], edge["to"]) for edge in report["graph"]["edges"]}
    assert {("pool", f"thread:{worker}"), ("lock", f"thread:{main}")} <= edges
