"""Processes that do not run, or run for nothing, from tests/targets/stuck_states.py, with both engines."""

from __future__ import annotations

import pytest

from tests.harness import command, crowd, kernel

pytestmark = pytest.mark.xdist_group("states")
engines = pytest.mark.parametrize("engine", ["auto", "none"])


@engines
def test_stopped(engine: str):
    with crowd.start("stuck_states.py", ["stops"]) as programs:
        target = programs["stops"]
        for tid in kernel.tids(target.pid):
            kernel.wait_for_state(target.pid, "T", tid=tid)
        report = command.check(target.pid, "stopped", "--engine", engine, confidence="proven")
        assert any(f"kill -CONT {target.pid}" in now["do"] for now in report.verdict["remedy"]["now"])
        assert kernel.state(target.pid) == "T"


@engines
def test_a_call_that_keeps_the_gil(engine: str):
    with crowd.start("stuck_states.py", ["holds_the_gil"]) as programs:
        target = programs["holds_the_gil"]
        target.wait("clock_nanosleep", 6)
        report = command.check(target.pid, "gil-held", "--engine", engine, confidence="proven")
        assert report.verdict["tid"] == target.words[1]
        assert "holds_the_gil" in report.summary


@engines
def test_uninterruptible(engine: str):
    with crowd.start("stuck_states.py", ["vforks"]) as programs:
        target = programs["vforks"]
        kernel.wait_for_state(target.pid, "D")
        kernel.wait_until(lambda: kernel.asleep_s(target.pid) >= 6)
        report = command.check(target.pid, "uninterruptible", "--engine", engine)
        assert report.verdict["tid"] == target.pid


@pytest.mark.parametrize("case", ["yields", "polls_for_nothing"])
def test_a_storm_of_calls_that_move_nothing(case: str):
    with crowd.start("stuck_states.py", [case]) as programs:
        target = programs[case]
        report = command.check(target.pid, "spinning", confidence="likely")
        assert report.verdict["tid"] == target.pid
        assert case in report.summary


@pytest.mark.parametrize("case", ["yields", "polls_for_nothing"])
def test_without_probes_a_storm_is_work(case: str):
    """Nothing in /proc tells a storm from a computation: never called idle or stuck."""
    with crowd.start("stuck_states.py", [case]) as programs:
        report = command.explain(programs[case].pid, "--engine", "none")
        assert report.code in ("working", "spinning"), report.summary
