"""What suspended greenlets wait for, the locks that they hold, and how they are shown: from literal facts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from stucktrace.collectors import source_lines
from stucktrace.diagnosis import greenlets
from stucktrace.facts import GreenletFact, Snapshot
from stucktrace.sinks import text_greenlets

from tests.unit.snapshots import call, codes, epoll, frames, lock, owned_by, process, snapshot, thread, verdict

ADDRESS = 0x7F00_0000_1000
GEVENT = process(libraries=("_gevent_c_hub_primitives.cpython-311-x86_64-linux-gnu.so", "libc.so.6"))
SITE = "/v/lib/python3.11/site-packages"
RECV = f"SocketMixin.recv {SITE}/gevent/_socketcommon.py:657"
TAKES = ["take /srv/app/jobs.py:8", "job /srv/app/jobs.py:20"]


def greenlet(*stack: str, address: int = 0x1000, **more: Any) -> GreenletFact:
    more.setdefault("tid", 100)
    return GreenletFact(address, "gevent", stack[-1].split()[0], frames(stack), **more)


HOLDER = greenlet(f"sleep {SITE}/gevent/hub.py:166", "hold /srv/app/jobs.py:4", locks=((ADDRESS, 1),))


@pytest.mark.parametrize(
    ("stack", "words"),
    [
        ([RECV, "fetch /srv/app/jobs.py:7"], "waits to receive from a socket"),
        ([f"sleep {SITE}/gevent/hub.py:166", "nap /srv/app/jobs.py:7"], "sleeps"),
        ([RECV, f"Connection.read_response {SITE}/redis/connection.py:600", "get /srv/app/jobs.py:7"], "Redis"),
        (["compiled /srv/app/jobs.py:7"], ""),
    ],
    ids=["socket", "sleep", "a client library", "nothing to tell"],
)
def test_its_frames_say_what_it_waits_for(stack: list[str], words: str):
    said = greenlets.wait_of(greenlet(*stack))
    assert words.lower() in said.lower() if words else not said


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("    never.wait()", "never.wait"),
        ("    job = self.jobs.get(timeout=5)", "self.jobs.get"),
        ("    green.joinall([green.spawn(work)])", ""),
        ("    print('a.b(')", ""),
        ("def wait(self):", ""),
        ("    pass", ""),
    ],
)
def test_a_line_with_one_call_says_what_compiled_code_waits_in(line: str, name: str):
    assert source_lines.called_in(line) == name
    suspended = greenlet("work /srv/app/jobs.py:7", calls=name)
    assert greenlets.wait_of(suspended) == (f"waits in {name}()" if name else "")


def test_the_frame_shown_is_the_programs_own():
    assert greenlets.own_frame(frames([RECV, "fetch /srv/app/jobs.py:7", "main /srv/app/jobs.py:9"])) == 1
    assert greenlets.own_frame(frames([RECV])) == 0


def hub_in_a_lock(*suspended: GreenletFact, **changed: Any) -> Snapshot:
    facts = snapshot(
        thread(blocked_s=7.0, slept_through=True),
        stacks={100: TAKES},
        process=GEVENT,
        epolls=[epoll(4)],
        locks=[lock(kind="lock", address=ADDRESS)],
        greenlets=suspended,
    )
    return replace(facts, **changed)


def test_a_lock_of_a_suspended_greenlet_of_the_same_hub_is_never_released():
    found = verdict(hub_in_a_lock(HOLDER, greenlet("nap /srv/app/jobs.py:7", address=0x2000)))
    assert (found.code, found.confidence, found.lock) == ("blocked-loop", "proven", ADDRESS)
    assert "hold (app/jobs.py:4)" in found.summary
    assert "2 greenlets stand still behind it" in found.summary
    assert {code for code, _ in codes(hub_in_a_lock(HOLDER))} == {"blocked-loop"}


@pytest.mark.parametrize(
    "suspended",
    [
        (replace(HOLDER, tid=101),),
        (replace(HOLDER, tid=None),),
        (HOLDER, replace(HOLDER, address=0x3000)),
        (replace(HOLDER, locks=((ADDRESS + 8, 1),)),),
    ],
    ids=["of another thread", "of a thread not known", "two candidates", "another lock"],
)
def test_anything_less_is_no_proof(suspended: tuple[GreenletFact, ...]):
    found = dict(codes(hub_in_a_lock(*suspended)))
    assert found["blocked-loop"] == "likely"


def test_a_wait_with_a_timeout_ends():
    timed = thread(syscall=call("futex", endless=False, timeout_s=20.0), blocked_s=7.0, slept_through=True)
    assert "proven" not in dict(codes(hub_in_a_lock(HOLDER, threads=(timed,)))).values()


def test_a_lock_of_another_thread_is_named_with_what_that_thread_does():
    facts = snapshot(
        thread(blocked_s=7.0, slept_through=True),
        thread(101, "read", fd=5),
        stacks={100: TAKES, 101: ["load /srv/app/load.py:3"]},
        process=GEVENT,
        epolls=[epoll(4)],
        locks=[lock(kind="lock", address=ADDRESS, owner=owned_by(101, frame=0))],
        greenlets=(greenlet("nap /srv/app/jobs.py:7"), replace(HOLDER, locks=())),
    )
    found = verdict(facts)
    assert found.code == "blocked-loop"
    assert "held by Thread-1 (tid 101) in load (app/load.py:3), which is in read on fd 5" in found.summary
    assert "2 greenlets stand still behind it" in found.summary
    result = ["Future.result /usr/lib/python3.11/concurrent/futures/_base.py:451", "load /srv/app/load.py:3"]
    threads = (thread(blocked_s=7.0, slept_through=True), thread(101, "futex"))
    waiting = replace(facts, threads=threads, python=snapshot(*threads, stacks={100: TAKES, 101: result}).python)
    assert "which waits for a future's result in Future.result" in verdict(waiting).summary


def written(number: int, function: str, wait: str | None = None) -> list[dict[str, Any]]:
    stack = [{"function": function, "file": "/srv/app/jobs.py", "line": 7}]
    one = {"kind": "gevent", "name": function, "tid": 100, "waits_for": wait, "frame": 0, "python": stack}
    return [one] * number


def test_those_in_the_same_wait_are_one_line_and_the_commonest_comes_first():
    report = [*written(2, "nap", "sleeps"), *written(30, "fetch", "waits to receive from a socket")]
    assert text_greenlets.heading(report) == "Suspended: 32 gevent greenlets"
    assert list(text_greenlets.lines(report, verbose=False)) == [
        "   30  fetch (/srv/app/jobs.py:7): waits to receive from a socket",
        "    2  nap (/srv/app/jobs.py:7): sleeps",
    ]


def test_a_few_groups_are_shown_and_all_with_verbose():
    report = [each for index in range(11) for each in written(2, f"job_{index:02}")]
    assert list(text_greenlets.lines(report, verbose=False))[-1] == "    6  in 3 other waits (-v shows them)"
    assert len(list(text_greenlets.lines(report, verbose=True))) == 11
