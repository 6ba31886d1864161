"""The suspended tasks of asyncio, from tests/targets/tasks.py: which coroutine waits where, and for what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import command, crowd

pytestmark = pytest.mark.xdist_group("greenlets")

LINES = (Path(__file__).parents[1] / "targets" / "tasks.py").read_text().splitlines()


@pytest.fixture(scope="module")
def programs() -> Iterator[dict[str, crowd.Hung]]:
    with crowd.start("tasks.py", ["waiting", "busy"]) as programs:
        yield programs


def line_of(text: str) -> int:
    (found,) = [number for number, line in enumerate(LINES, 1) if text in line]
    return found


def waits(report: command.Report) -> Counter[tuple[str, int, str | None]]:
    """(function, line, wait) of each task, as far as they are the program's own."""
    found: Counter[tuple[str, int, str | None]] = Counter()
    for task in report["greenlets"]:
        assert task["kind"] == "asyncio-task"
        frame = task["python"][task["frame"]]
        found[frame["function"].rpartition(".")[2], frame["line"], task["waits_for"]] += 1
    return found


def test_each_task_is_listed_with_the_line_that_it_awaits(programs: dict[str, crowd.Hung]):
    target = programs["waiting"]
    report = command.check(target.pid, "idle")
    seen = waits(report)
    assert seen["fetch", line_of("await reader.read(100)"), "waits to receive from a socket"] == 20
    assert seen["silent", line_of("asyncio.Event().wait()"), "waits for a notification"] == 20
    assert seen["take", line_of("async with lock:"), "waits for a lock of its loop"] == 1
    assert seen["take", line_of("# holds"), "sleeps"] == 1
    assert seen["numbers", line_of("# numbers"), "sleeps"] == 1
    assert seen["consume", line_of("await queue.get()"), "waits for its queue"] == 1
    assert {task["tid"] for task in report["greenlets"]} == {target.words[1]}
    stack = next(task["python"] for task in report["greenlets"] if task["name"] == "iterate" or "numbers" in str(task))
    assert [frame["function"] for frame in stack][-2:] == ["numbers", "iterate"]
    assert "asyncio tasks" in report.text()


def test_tasks_that_come_and_go_are_read_without_a_wrong_one(programs: dict[str, crowd.Hung]):
    known = {line_of("# beat"), line_of("# brief"), line_of("# busy")}
    for _ in range(5):
        report = command.explain(programs["busy"].pid)
        assert report.verdict["class"] == "healthy", report.text()
        assert {line for _, line, _ in waits(report)} <= known
