"""Event loops that stand still, from tests/targets/stuck_loops.py, with both engines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness import command, crowd, kernel

pytestmark = pytest.mark.xdist_group("loops")

CALLS = {
    "asyncio_sleeps": "clock_nanosleep",
    "asyncio_receives": "recvfrom",
    "gevent_hub": "recvfrom",
    "eventlet_hub": "clock_nanosleep",
}
LOOPS = {
    "asyncio_sleeps": "asyncio",
    "asyncio_receives": "asyncio",
    "gevent_hub": "hub",
    "eventlet_hub": "hub",
}
engines = pytest.mark.parametrize("engine", ["auto", "none"])


@pytest.fixture(scope="module")
def hung() -> Iterator[dict[str, crowd.Hung]]:
    with crowd.start("stuck_loops.py", [*CALLS, "asyncio_in_a_thread", "stale_and_quiet"]) as programs:
        yield programs


@engines
@pytest.mark.parametrize("case", CALLS)
def test_a_callback_blocks_its_loop(hung: dict[str, crowd.Hung], case: str, engine: str):
    target = hung[case]
    target.wait(CALLS[case], 6)
    report = command.check(target.pid, "blocked-loop", "--engine", engine, "--stuck-after", 3600, confidence="likely")
    assert report.verdict["tid"] == target.words[1]
    assert LOOPS[case] in report.summary
    assert "stuck_loops.py" in report.summary


@engines
@pytest.mark.parametrize("case", ["asyncio_receives", "gevent_hub"])
def test_past_the_budget_it_is_proven(hung: dict[str, crowd.Hung], case: str, engine: str):
    target = hung[case]
    target.wait(CALLS[case], 6)
    command.check(target.pid, "blocked-loop", "--engine", engine, "--stuck-after", 5, confidence="proven")


@engines
def test_a_coroutine_waits_for_a_lock_that_another_one_holds(hung: dict[str, crowd.Hung], engine: str):
    """The holder cannot go on before the loop turns, which it cannot."""
    target = hung["asyncio_in_a_thread"]
    target.wait("futex", 6)
    report = command.check(target.pid, "blocked-loop", "--engine", engine, confidence="proven")
    assert "which a suspended task of the same thread holds" in report.summary
    assert "2 tasks stand still behind it" in report.summary
    assert report.verdict["tid"] == target.words[1]


@pytest.mark.parametrize(
    ("case", "engine"),
    [("stale_epoll", "auto"), ("stale_epoll_of_asyncio", "auto"), ("stale_epoll_of_asyncio", "none")],
)
def test_a_registration_outlives_its_file(case: str, engine: str):
    with crowd.start("stuck_loops.py", [case]) as programs:
        target = programs[case]
        (child,) = kernel.wait_for_children(target.pid, 1)
        if engine == "none":
            # Without counts it takes a look at a moment when the thread is inside its poll.
            kernel.wait_until(lambda: command.explain(target.pid, "--engine", engine).code == "stale-epoll")
            return
        report = command.check(target.pid, "stale-epoll", "--engine", engine)
        assert report.confidence in ("proven", "likely")
        assert "has closed" in report.summary
        assert report.evidence("held by") == child


@engines
def test_a_stale_registration_that_is_never_ready_does_no_harm(hung: dict[str, crowd.Hung], engine: str):
    report = command.explain(hung["stale_and_quiet"].pid, "--engine", engine)
    assert report.verdict["class"] == "healthy", report.summary
