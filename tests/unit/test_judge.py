"""Which finding becomes the verdict, and that no odd or missing fact ever raises."""

import dataclasses
import itertools

import pytest
from stucktrace import diagnosis, facts
from stucktrace.diagnosis import judge
from stucktrace.diagnosis.model import Budgets, Diagnosis, Finding

from tests.unit.snapshots import (
    activity,
    black_hole,
    diagnosed,
    epoll,
    file_lock,
    listen,
    lock,
    owned_by,
    parent,
    peer,
    pipe,
    python,
    relative,
    snapshot,
    tcp,
    thread,
    verdict,
    watch,
)

APP = ["step /srv/app/work.py:12", "<module> /srv/app/main.py:3"]


def finding(code, confidence="likely", tid=100, **more):
    return Finding(code, confidence, f"{code} of {tid}", tid=tid, **more)


def ordered(*findings, facts=None):
    quiet = facts or snapshot(thread(syscall="epoll_wait", fd=4), thread(101), stacks={100: APP, 101: APP})
    return [finding.code for finding in judge.order(quiet, Budgets(), findings)]


def test_stuck_before_advice_before_nothing():
    assert ordered(finding("keepalive-too-slow"), finding("half-open"))[0] == "half-open"
    assert ordered(finding("keepalive-too-slow")) == ["idle", "keepalive-too-slow"]
    assert ordered() == ["idle"]


def test_advice_leaves_a_healthy_process_healthy():
    for confidence in ("proven", "likely", "possible"):
        assert ordered(finding("no-timeout", confidence))[0] == "idle"


def test_a_possible_finding_is_never_the_verdict():
    assert ordered(finding("half-open", "possible")) == ["idle", "half-open"]
    assert ordered(finding("half-open", "possible"), finding("peer-silent", "likely"))[0] == "peer-silent"


def test_the_root_of_a_blocked_loop_is_the_call_that_blocks_it():
    assert ordered(finding("blocked-loop", "proven"), finding("half-open", "likely")) == ["half-open", "blocked-loop"]
    assert ordered(finding("blocked-loop", "proven"), finding("half-open", "possible"))[0] == "blocked-loop"
    assert ordered(finding("blocked-loop", "proven"), finding("half-open", "likely", tid=101))[0] == "blocked-loop"


def test_the_surer_root_goes_first():
    assert ordered(finding("half-open"), finding("deadlock", "proven", tid=101))[0] == "deadlock"
    assert ordered(finding("half-open"), finding("peer-silent", explains=(101, 102)))[0] == "peer-silent"


def test_a_held_lock_defers_along_the_chain_of_owners():
    locks = [
        lock(100, "rlock", owner=owned_by(101), address=0x10),
        lock(101, "rlock", owner=owned_by(102), address=0x20),
    ]
    held = snapshot(
        thread(), thread(101), thread(102, "recvfrom", 7), stacks={100: APP, 101: APP, 102: APP}, locks=locks
    )
    found = ordered(
        finding("lock-held"), finding("lock-held", tid=101, lock=0x20), finding("half-open", tid=102), facts=held
    )
    assert found[0] == "half-open"
    blocked = ordered(finding("lock-held", "proven"), finding("blocked-loop", tid=102), facts=held)
    assert blocked[0] == "blocked-loop"


def test_a_stopped_process_explains_all():
    assert ordered(finding("half-open", "proven"), finding("stopped", "likely"))[0] == "stopped"


def test_stale_epoll_explains_the_spinning():
    assert ordered(finding("spinning"), finding("stale-epoll"))[0] == "stale-epoll"


def test_doubles_are_dropped_and_the_surest_kept():
    same = [
        finding("half-open", "likely", fd=7),
        finding("half-open", "proven", fd=7),
        finding("half-open", "likely", fd=8),
    ]
    found = judge.order(snapshot(thread(), stacks={100: APP}), Budgets(), same)
    assert [(f.confidence, f.fd) for f in found] == [("proven", 7), ("likely", 8)]


def test_an_open_question_of_a_rule_is_the_verdict_where_nothing_is_stuck():
    assert ordered(finding("inconclusive"))[0] == "inconclusive"
    assert ordered(finding("inconclusive"), finding("half-open"))[0] == "half-open"


def test_a_rule_that_fails_is_told_and_decides_nothing(monkeypatch):
    def broken(snapshot, budgets):
        raise KeyError("odd")
        yield

    monkeypatch.setattr(diagnosis, "RULES", (broken, *diagnosis.RULES))
    answer = diagnosis.diagnose(snapshot(thread(syscall="epoll_wait", fd=4), stacks={100: APP}), Budgets())
    assert answer.verdict.code == "idle"
    assert any("broken failed" in finding.summary for finding in answer.findings)


# A process with something of everything, and each of its facts with each field unknown in turn.
RICH = snapshot(
    thread(100, "recvfrom", 7, wchan="sk_wait_data", kernel_stack=("a", "b"), cpu_s_in_window=0.1, slept_through=True),
    thread(101),
    thread(102, "epoll_wait", 4),
    thread(103, "read", 9),
    thread(104, "flock", 8),
    thread(105, None),
    thread(106, "wait4"),
    thread(107, "write", 10),
    thread(108, state="D"),
    stacks={100: APP, 101: ["acquire /usr/lib/python3.11/logging/__init__.py:917"], 102: ["select /usr/lib/python3.11/selectors.py:1", "_run_once /usr/lib/python3.11/asyncio/base_events.py:2"], 103: APP},
    gil=100,
    sockets=[black_hole(7, peer=peer()), listen(), tcp(11, window_received_bytes=1, window_acked_bytes=1)],
    pipes=[pipe(9, "both", unread_bytes=70_000), pipe(10, "write", readers=[50])],
    epolls=[epoll(4, watch(12, present=False, held_by=(300,)), watch(7))],
    locks=[lock(101, owner=owned_by(100), count=1, word=2), lock(108, "gil")],
    file_locks=[file_lock(104)],
    relatives=[parent(state="T", threads=((50, "MainThread"),)), relative(301, "child"), relative(300, "sibling")],
    activity=[activity(102, returns=4_000), activity(100, "recvfrom", 7, empty=3, returns=3)],
    window_s=0.5,
    worker="gunicorn-worker",
)  # fmt: skip

ODD = (None, 0, -1, -1.5, 1e18, "", "?", (), False, 2**64 - 1)


def variants(value, depth=0):
    """`value` with one field at a time, at any depth, replaced by odd ones of a type it may have."""
    for field in dataclasses.fields(value):
        present = getattr(value, field.name)
        for odd in ODD:
            if odd is None and "None" not in str(field.type):
                continue
            if odd is not None and not (
                isinstance(present, type(odd)) and not (isinstance(odd, bool) ^ isinstance(present, bool))
            ):
                continue
            yield f"{field.name}={odd!r}", dataclasses.replace(value, **{field.name: odd})
        if dataclasses.is_dataclass(present):
            for name, changed in variants(present, depth + 1):
                yield f"{field.name}.{name}", dataclasses.replace(value, **{field.name: changed})
        if isinstance(present, tuple) and depth < 4:
            for index, item in enumerate(present):
                if dataclasses.is_dataclass(item):
                    for name, changed in variants(item, depth + 1):
                        several = (*present[:index], changed, *present[index + 1 :])
                        yield f"{field.name}[{index}].{name}", dataclasses.replace(value, **{field.name: several})


def check(name, odd):
    answer = diagnosed(odd)
    assert isinstance(answer, Diagnosis), name
    assert answer.findings[0] is answer.verdict and answer.verdict.summary, name
    for found in answer.findings:
        assert found.frame is None or isinstance(found.frame, int), name
        assert all(line.text for line in found.evidence), name


def test_no_single_odd_fact_raises():
    count = 0
    for name, odd in variants(RICH):
        check(name, odd)
        count += 1
    assert count > 500


def test_no_two_missing_collections_raise():
    names = ["threads", "sockets", "epolls", "pipes", "locks", "file_locks", "relatives", "activity", "tcp_events"]
    for pair in itertools.combinations(names, 2):
        check(str(pair), dataclasses.replace(RICH, **dict.fromkeys(pair, ())))
        check(str(pair), dataclasses.replace(RICH, python=None, **dict.fromkeys(pair, ())))


@pytest.mark.parametrize("state", list("RSDTtZXI?"))
def test_every_state_of_every_thread(state):
    threads = tuple(dataclasses.replace(fact, state=state) for fact in RICH.threads)
    check(state, dataclasses.replace(RICH, threads=threads))


def test_no_thread_at_all():
    assert verdict(snapshot()).code == "inconclusive"
    assert verdict(snapshot(python=python({}))).code == "inconclusive"
    assert facts.Snapshot(0.0, RICH.process).main_thread is None
