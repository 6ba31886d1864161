"""Pools that cannot go on, through the real command: the threads and frames it names are the program's own."""

from __future__ import annotations

import pytest

from tests.harness import command, pythons, targets


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
