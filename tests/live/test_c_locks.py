"""Locks of the C library, by its layout: glibc's and musl's, dynamic and static. No owner is ever made up."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from stucktrace.collectors import locks, relatives
from stucktrace.facts import LockFact

from tests.harness import command, kernel, pythons, targets
from tests.harness.targets import TARGETS, Target

LIBRARIES = {"glibc": ("gcc", "-pthread"), "musl": ("musl-gcc",), "static musl": ("musl-gcc", "-static")}
BOTH: dict[str, tuple[str, str]] = {
    "held_recursive": ("pthread-mutex", "alive"),
    "held_errorcheck": ("pthread-mutex", "alive"),
    "held_inherit": ("pi-mutex", "alive"),
    "held_robust": ("robust-mutex", "alive"),
    "held_elsewhere_shared_errorcheck": ("pthread-mutex", "alive"),
    "held_elsewhere_shared_errorcheck_dead": ("pthread-mutex", "absent"),
    "read": ("rwlock", ""),
    "condition": ("condition", ""),
    "semaphore": ("semaphore", ""),
    "semaphore_shared": ("shared-semaphore", ""),
    "join": ("join", "alive"),
}
"""Case -> kind, and the owner's state; "": it has none."""
OWN = {
    "glibc": {
        "held_normal": ("pthread-mutex", "alive"),
        "relock_normal": ("pthread-mutex", "self"),
        "crossed_normal": ("pthread-mutex", "alive"),
        "written": ("rwlock", "alive"),
        "written_shared": ("rwlock", "alive"),
        "barrier": ("barrier", ""),
        "barrier_shared": ("barrier", ""),
    },
    "musl": {
        "held_normal": ("pthread-mutex", ""),
        "relock_normal": ("pthread-mutex", ""),
        "crossed_errorcheck": ("pthread-mutex", "alive"),
        "written": ("rwlock", ""),
    },
}
CASES = [
    (library, case, *expected)
    for library in LIBRARIES
    for case, expected in {**BOTH, **OWN["glibc" if library == "glibc" else "musl"]}.items()
    # A static program differs in how its library is recognised alone.
    if library != "static musl" or case in ("held_normal", "held_errorcheck", "semaphore")
]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for library, (compiler, *flags) in LIBRARIES.items():
        made[library] = tmp_path_factory.mktemp("c") / "locks"
        subprocess.run([compiler, TARGETS / "c_locks.c", "-o", made[library], *flags], check=True)
    return made


def _waiting(target: Target) -> tuple[int, int, int]:
    pid, waiter, holder = map(int, target.said.split())
    kernel.wait_for_call(pid, "futex", tid=waiter)
    kernel.wait_until(lambda: kernel.asleep_s(pid, waiter) >= 0.2, "it stays there")
    return pid, waiter, holder


def _fact(pid: int, waiter: int) -> LockFact:
    process = pythons.process_of(pid)
    found = locks.collect(process, pythons.threads_of(pid), None, relatives.collect(process))
    return next(fact for fact in found if fact.waiter_tid == waiter)


@pytest.mark.parametrize(("library", "case", "kind", "state"), CASES, ids=lambda value: value.replace(" ", "-"))
def test_lock_and_its_owner(programs: dict[str, Path], library: str, case: str, kind: str, state: str):
    with targets.start([str(programs[library])], case) as target:
        pid, waiter, holder = _waiting(target)
        fact = _fact(pid, waiter)
        assert fact.kind == kind
        assert (fact.owner.state if fact.owner else "") == state
        if fact.owner and kind != "join" and (library == "glibc" or state == "alive"):
            assert (fact.owner.tid or fact.owner.ns_tid) == holder
        if kind == "barrier":
            assert "2 more of 3" in fact.note


@pytest.fixture
def dead_holder(programs: dict[str, Path]) -> Iterator[Target]:
    with targets.start([str(programs["glibc"])], "held_elsewhere_shared_dead") as target:
        yield target


def test_mutex_in_shared_memory_whose_holder_died(dead_holder: Target):
    pid, waiter, _ = _waiting(dead_holder)
    kernel.wait_until(lambda: kernel.asleep_s(pid, waiter) >= 1.0, "it stays there")
    command.check(pid, "orphaned-lock", confidence="proven")


@pytest.mark.parametrize(("library", "case"), [("glibc", "crossed_normal"), ("musl", "crossed_errorcheck")])
def test_circle(programs: dict[str, Path], library: str, case: str):
    with targets.start([str(programs[library])], case) as target:
        pid, waiter, _ = _waiting(target)
        kernel.wait_until(lambda: kernel.asleep_s(pid, waiter) >= 1.0, "it stays there")
        command.check(pid, "deadlock", confidence="proven")


@pytest.mark.parametrize(("library", "confidence"), [("glibc", "proven"), ("musl", "likely")])
def test_mutex_that_its_only_thread_holds(programs: dict[str, Path], library: str, confidence: str):
    """musl writes no owner into a plain mutex, but there is nobody else."""
    with targets.start([str(programs[library])], "alone_normal") as target:
        pid, waiter, _ = _waiting(target)
        kernel.wait_until(lambda: kernel.asleep_s(pid, waiter) >= 5.5, "it stays there")
        command.check(pid, "deadlock", confidence=confidence)
