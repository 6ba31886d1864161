"""Event loops that stand still, from tests/targets/stuck_loops.py, with both engines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness import command, crowd, kernel

pytestmark = pytest.mark.xdist_group("loops")

CALLS = {
    "asyncio_sleeps": "clock_nanosleep",
    "asyncio_receives": "recvfrom",
    "asyncio_in_a_thread": "futex",
    "gevent_hub": "recvfrom",
    "eventlet_hub": "clock_nanosleep",
}
LOOPS = {
    "asyncio_sleeps": "asyncio",
    "asyncio_receives": "asyncio",
    "asyncio_in_a_thread": "asyncio",
    "gevent_hub": "hub",
    "eventlet_hub": "hub",
}
engines = pytest.mark.parametrize("engine", ["auto", "none"])


@pytest.fixture(scope="module")
def hung() -> Iterator[dict[str, crowd.Hung]]:
    with crowd.start("stuck_loops.py", list(CALLS)) as programs:
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
def test_a_registration_outlives_its_file(engine: str):
    with crowd.start("stuck_loops.py", ["stale_epoll"]) as programs:
        (target,) = programs.values()
        (child,) = kernel.wait_for_children(target.pid, 1)
        report = command.check(target.pid, "stale-epoll", "--engine", engine)
        assert report.confidence in ("proven", "likely")
        assert "has closed" in report.summary
        assert report.evidence("held by") == child
