"""Pipes whose other end will never read, write or close, from tests/targets/stuck_pipes.py, with both engines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness import command, crowd, kernel

pytestmark = pytest.mark.xdist_group("pipes")

CASES = {
    "child_with_a_full_pipe": ("wait4", "proven"),
    "own_write_end": ("read", "likely"),
    "own_read_end": ("write", "proven"),
    "stopped_reader": ("write", "proven"),
    "stopped_writer": ("read", "proven"),
}
engines = pytest.mark.parametrize("engine", ["auto", "none"])


@pytest.fixture(scope="module")
def hung() -> Iterator[dict[str, crowd.Hung]]:
    with crowd.start("stuck_pipes.py", [*CASES, "orphans_of_a_pool"]) as programs:
        yield programs


@engines
@pytest.mark.parametrize("case", CASES)
def test_nobody_is_at_the_other_end(hung: dict[str, crowd.Hung], case: str, engine: str):
    call, confidence = CASES[case]
    target = hung[case]
    target.wait(call, 6, target.words[1:2])
    # A wait for a child is woken by whatever happens to any child, and then sleeps anew.
    kernel.wait_until(lambda: command.explain(target.pid, "--engine", engine).code == "pipe-stuck", f"{case} is judged")
    report = command.check(target.pid, "pipe-stuck", "--engine", engine)
    # Root in a container may not read the fds of pid 1, so there may be further holders.
    assert report.confidence in (confidence, "likely")
    assert report.verdict["tid"] == target.words[1]
    if case.startswith("stopped"):
        (child,) = kernel.children(target.pid)
        assert str(child) in report.summary
        assert any(f"kill -CONT {child}" in now["do"] for now in report.verdict["remedy"]["now"])


@engines
def test_the_child_that_cannot_write_says_so_too(hung: dict[str, crowd.Hung], engine: str):
    target = hung["child_with_a_full_pipe"]
    (child,) = kernel.children(target.pid)
    kernel.wait_for_call(child, "write")
    kernel.wait_until(lambda: kernel.asleep_s(child) >= 6)
    report = command.check(child, "pipe-stuck", "--engine", engine)
    assert str(target.pid) in report.summary


@engines
def test_orphans_of_a_killed_process_pool(hung: dict[str, crowd.Hung], engine: str):
    """One of them reads the pool's queue, the others wait for their turn to do so."""
    workers = hung["orphans_of_a_pool"].words
    for worker in workers:
        kernel.wait_for_call(worker, "read", "futex")
        kernel.wait_until(lambda worker=worker: kernel.asleep_s(worker) >= 6)
    assert sorted(kernel.in_call(worker, "read") for worker in workers) == [False, False, True]
    for worker in workers:
        command.check(worker, "pipe-stuck", "--engine", engine, confidence="likely")
