"""Pools that cannot go on, through the real command: the threads and frames it names are the program's own."""

from __future__ import annotations

import pytest

from tests.harness import command, kernel, pythons, targets


def test_a_callback_of_a_task_that_is_done_waits_for_the_pool():
    with targets.start("stuck_pools.py", "in_a_callback") as target:
        pythons.until(lambda: pythons.quiet(target.pid, 2), "every thread waits")
        report = command.check(target.pid, "pool-starved", confidence="proven")
        told = "\n".join(line["text"] for line in report.verdict["evidence"])
        assert "set_result" not in told and "1 task in its queue" in told


@pytest.mark.parametrize(
    ("case", "line", "threads"),
    [("one_thread", "return inner.result()", 1), ("every_thread", "each.result()", 3), ("each_other", "result()", 2)],
)
def test_a_thread_pool_waits_for_itself(case: str, line: str, threads: int):
    with targets.start("stuck_pools.py", case) as target:
        pythons.until(lambda: pythons.quiet(target.pid, threads + 1), "every thread waits")
        report = command.check(target.pid, "pool-starved", confidence="proven")
        thread = next(each for each in report["threads"] if each["tid"] == report.verdict["tid"])
        frame = thread["python"][report.verdict["frame"]]
        source = (targets.TARGETS / "stuck_pools.py").read_text().splitlines()
        assert line in source[frame["line"] - 1]
        assert sum(len(pool["members"]) for pool in report["pools"]) == threads
        assert all(pool["complete"] and pool["size"] == len(pool["members"]) for pool in report["pools"])


def test_the_other_kind_of_thread_pool():
    with targets.start("stuck_pools.py", "thread_pool") as target:
        # Two workers, the main thread, and three helpers, of which one polls.
        pythons.until(lambda: pythons.in_call(target.pid, "futex", 5), "every thread waits")
        report = command.check(target.pid, "pool-starved", confidence="proven")
        assert "ThreadPool(2)" in report.summary
        assert report.evidence("queued") == 2


@pytest.mark.parametrize("case", ["killed_apply", "killed_map", "killed_imap", "killed_join"])
def test_a_worker_is_killed_with_the_task_in_hand(case: str):
    with targets.start("stuck_pools.py", case) as target:
        pythons.until(lambda: pythons.in_call(target.pid, "futex", 2), "the main thread waits")
        kernel.wait_until(lambda: _idle_workers(target.pid) == 2, "both workers wait for a task")
        report = command.check(target.pid, "work-lost", confidence="proven")
        assert report.verdict["tid"] == target.pid
        assert report.evidence("workers") == 2
        (pool,) = report["pools"]
        assert {member["pid"] for member in pool["members"]} == set(kernel.children(target.pid))
        assert {each["state"] for each in pool["awaited"]} == {"nowhere"}


def _idle_workers(pid: int) -> int:
    """Children that sleep in a read or in a futex."""
    return sum(kernel.in_call(child, "read", "futex") for child in kernel.children(pid))


@pytest.mark.parametrize("case", ["inherited", "inherited_threads", "inherited_executor"])
def test_a_pool_that_was_made_before_the_fork(case: str):
    with targets.start("stuck_pools.py", case) as target:
        pid = int(target.said.split()[0])
        kernel.wait_for_call(pid, "futex")
        report = command.check(pid, "work-lost", confidence="proven")
        assert "by fork" in report.summary


@pytest.mark.parametrize(
    ("case", "confidence", "lent"),
    [
        ("one_for_the_order_and_one_for_the_log", "likely", 1),
        ("in_blocks", "likely", 2),
        ("each_of_two", "likely", 2),
        ("by_semaphore", "proven", 1),
    ],
)
def test_who_waits_for_a_connection_has_them_all(case: str, confidence: str, lent: int):
    with targets.start("stuck_connections.py", case) as target:
        tid = int(target.said.split()[1])
        kernel.wait_until(lambda: kernel.in_call(target.pid, "futex", tid=tid), "it waits for a connection")
        kernel.wait_until(lambda: kernel.asleep_s(target.pid, tid) > 6, "it has waited for a while")
        report = command.check(target.pid, "pool-starved", confidence=confidence)
        assert report.evidence("lent") == lent
        (pool,) = report["pools"]
        assert pool["kind"] == "connections"
        assert tid in {member["tid"] for member in pool["members"]}


def test_the_connection_is_with_a_thread_that_sits_elsewhere():
    with targets.start("stuck_connections.py", "held_by_a_silent_server") as target:
        kernel.wait_until(lambda: kernel.in_call(target.pid, "futex", tid=target.pid), "it waits for a connection")
        kernel.wait_until(lambda: kernel.asleep_s(target.pid) > 3, "it has waited for a while")
        within = command.explain(target.pid, "--stuck-after", 3600)
        assert within.verdict["class"] == "healthy"
        report = command.check(target.pid, "pool-starved", "--stuck-after", 2, confidence="likely")
        assert "recvfrom" in report.summary
        assert report.verdict["tid"] == target.pid
