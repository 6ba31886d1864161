"""Locks that processes share: a holder that died, one that lives, a circle over two processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.harness import command, crowd, kernel
from tests.harness.crowd import Hung

CASES = ("pool_reader_killed", "billiard_reader_killed", "queue_reader_killed", "holder_killed", "attribute_killed",
         "global_killed", "recursive_holder_killed", "held", "crossed", "own")  # fmt: skip


@pytest.fixture(scope="module")
def forked() -> Iterator[dict[str, Hung]]:
    with crowd.start("stuck_process_locks.py", CASES, "fork") as hung:
        for case in hung.values():
            _waiting(case)
        yield hung


def _waiting(hung: Hung) -> int:
    hung.wait("futex", 1.0, [hung.pid])
    return hung.pid


@pytest.mark.parametrize(
    "case", ["pool_reader_killed", "billiard_reader_killed", "queue_reader_killed", "recursive_holder_killed"]
)
def test_holder_was_killed(forked: dict[str, Hung], case: str):
    report = command.check(forked[case].pid, "orphaned-lock", confidence="proven")
    assert "a process that is gone" in report.summary
    assert report.evidence("owner") is None


def test_seen_from_the_parent(forked: dict[str, Hung]):
    waiter = forked["pool_reader_killed"].pid
    parent = kernel.stat(waiter)[1]
    report = command.check(parent, "orphaned-lock", confidence="proven")
    assert f"pid {waiter}" in report.summary and report.summary.startswith("3 children")


def test_a_replaced_worker_waits_too(forked: dict[str, Hung]):
    replaced = forked["pool_reader_killed"].words[-1]
    kernel.wait_until(lambda: kernel.asleep_s(replaced, replaced) >= 1.0, "the new worker waits")
    command.check(replaced, "orphaned-lock", confidence="proven")


@pytest.mark.parametrize("case", ["holder_killed", "attribute_killed", "global_killed"])
def test_without_a_with_block_somebody_else_may_release_it(forked: dict[str, Hung], case: str):
    report = command.check(forked[case].pid, "orphaned-lock", confidence="likely")
    assert "who acquires it releases it" in report.summary


def test_circle_over_two_processes(forked: dict[str, Hung]):
    one, other = forked["crossed"].words
    report = command.check(one, "deadlock", confidence="proven")
    assert f"(pid {other})" in report.summary
    assert report.evidence("owner") == other
    assert command.check(other, "deadlock", confidence="proven").evidence("owner") == one


def test_lock_taken_twice(forked: dict[str, Hung]):
    assert "which it holds itself" in command.check(forked["own"].pid, "deadlock", confidence="proven").summary


def test_holder_lives_and_is_stopped(forked: dict[str, Hung]):
    waiter, holder = forked["held"].words
    report = command.check(waiter, "waiting", "--stuck-after", 3600)
    assert f"(pid {holder})" in report.summary
    os.kill(holder, signal.SIGSTOP)
    kernel.wait_until(lambda: kernel.state(holder) == "T", "the holder is stopped")
    kernel.wait_until(lambda: kernel.asleep_s(waiter, waiter) >= 5.5, "it waits past the budget")
    stopped = command.check(waiter, "lock-held")
    assert stopped.verdict["remedy"]["now"][0]["do"] == f"kill -CONT {holder}"
    os.kill(holder, signal.SIGCONT)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_started_otherwise(method: str):
    with crowd.start("stuck_process_locks.py", ("queue_reader_killed", "crossed"), method) as hung:
        command.check(_waiting(hung["queue_reader_killed"]), "orphaned-lock", confidence="proven")
        one, other = hung["crossed"].words
        _waiting(hung["crossed"])
        report = command.check(one, "deadlock", confidence="proven")
        assert report.evidence("owner") == other
