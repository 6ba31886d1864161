"""The suspended greenlets of gevent and eventlet, from tests/targets/greenlets.py: who waits where, and for what."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import command, crowd, gunicorn, kernel

pytestmark = pytest.mark.xdist_group("greenlets")

LIBRARIES = ["gevent", "eventlet"]
CASES = ["twenty_wait", "held_by_a_native_thread", "held_by_a_greenlet", "given_back_by_a_greenlet", "green_lock",
         "busy"]  # fmt: skip
LINES = (Path(__file__).parents[1] / "targets" / "greenlets.py").read_text().splitlines()

libraries = pytest.mark.parametrize("library", LIBRARIES)


def line_of(text: str) -> int:
    """The number of the target's only line that contains this."""
    (found,) = [number for number, line in enumerate(LINES, 1) if text in line]
    return found


@pytest.fixture(scope="module")
def programs() -> Iterator[dict[tuple[str, str], crowd.Hung]]:
    with (
        crowd.start("greenlets.py", CASES, "gevent") as gevent,
        crowd.start("greenlets.py", CASES, "eventlet") as eventlet,
    ):
        yield {
            (case, library): programs[case]
            for library, programs in zip(LIBRARIES, (gevent, eventlet), strict=True)
            for case in CASES
        }


def places(report: command.Report, kind: str) -> Counter[tuple[str, int]]:
    """Function and line in which each greenlet of this kind stands."""
    found: Counter[tuple[str, int]] = Counter()
    for greenlet in report["greenlets"]:
        assert greenlet["kind"] == kind
        frame = greenlet["python"][greenlet["frame"]]
        found[frame["function"].rpartition(".")[2], frame["line"]] += 1
    return found


def waits(report: command.Report, function: str) -> set[Any]:
    return {each["waits_for"] for each in report["greenlets"] if each["name"].rpartition(".")[2] == function}


@libraries
def test_each_that_waits_is_listed_with_its_line(programs: dict[tuple[str, str], crowd.Hung], library: str):
    target = programs["twenty_wait", library]
    report = command.check(target.pid, "idle")
    seen = places(report, library)
    assert seen["fetch", line_of("connection.recv(100)")] == 20
    assert seen["parked", line_of("green.sleep(600)  # parked")] == 3
    assert waits(report, "fetch") == {"waits to receive from a socket"}
    assert {each["tid"] for each in report["greenlets"]} == {target.words[1]}
    text = report.text()
    assert f"24 {library} greenlets" in text
    assert f"20  fetch (.../tests/targets/greenlets.py:{line_of('connection.recv(100)')})" in text


@libraries
def test_a_native_lock_of_a_thread_stops_the_hub(programs: dict[tuple[str, str], crowd.Hung], library: str):
    target = programs["held_by_a_native_thread", library]
    target.wait("futex", 6)
    report = command.check(target.pid, "blocked-loop", "--stuck-after", 3600, confidence="likely")
    assert report.verdict["tid"] == target.words[1]
    assert "7 greenlets stand still behind it" in report.summary
    assert re.search(r"held by \S+ \(tid \d+\) in hold \(targets/greenlets.py:\d+\), which is in read", report.summary)
    assert report.verdict["lock"] in {lock["address"] for lock in report["locks"]}


@libraries
def test_a_native_lock_of_a_suspended_greenlet_never_ends(programs: dict[tuple[str, str], crowd.Hung], library: str):
    target = programs["held_by_a_greenlet", library]
    target.wait("futex", 6)
    report = command.check(target.pid, "blocked-loop", "--stuck-after", 3600, confidence="proven")
    assert report.codes == {"blocked-loop"}
    line = line_of("green.sleep(600)  # holds")
    assert f"hold (targets/greenlets.py:{line})" in report.summary
    assert "8 greenlets stand still behind it" in report.summary
    assert any("suspended greenlet" in step for step in report.verdict["chain"])


@libraries
def test_a_lock_that_a_greenlet_gave_back_may_be_released(programs: dict[tuple[str, str], crowd.Hung], library: str):
    target = programs["given_back_by_a_greenlet", library]
    target.wait("futex", 6)
    report = command.check(target.pid, "blocked-loop", "--stuck-after", 3600, confidence="likely")
    assert "who holds it is not known" in report.summary


@libraries
def test_a_patched_lock_lets_the_hub_go_on(programs: dict[tuple[str, str], crowd.Hung], library: str):
    target = programs["green_lock", library]
    kernel.wait_until(lambda: kernel.asleep_s(target.pid, target.words[1]) >= 6, "the hub at rest")
    report = command.check(target.pid, "idle")
    assert waits(report, "take") == {"waits for a lock of its loop"}


@libraries
def test_greenlets_that_come_and_go_are_read_without_a_wrong_one(
    programs: dict[tuple[str, str], crowd.Hung], library: str
):
    target = programs["busy", library]
    known = {
        ("beat", line_of("green.sleep(0.001)  # beat")),
        ("brief", line_of("green.sleep(0.002)")),
        ("busy", line_of("green.sleep(0.001)  # busy")),
    }
    for _ in range(5):
        report = command.explain(target.pid)
        assert report.verdict["class"] == "healthy", report.text()
        assert places(report, library).keys() <= known


def test_the_requests_of_a_gevent_worker_are_listed_and_it_is_well():
    with gunicorn.serve("-k", "gevent", app="serving:application") as server, contextlib.ExitStack() as clients:
        for _ in range(6):
            clients.enter_context(server.request("/"))
        (worker,) = server.workers

        def views() -> list[Any]:
            report = command.explain(worker)
            assert report.verdict["class"] == "healthy", report.text()
            return [each for each in report["greenlets"] if "Framework.view" in str(each["python"])]

        kernel.wait_until(lambda: len(views()) == 6, "six requests in their view")
        for view in views():
            assert (view["kind"], view["tid"]) == ("gevent", worker)
            assert view["python"][view["frame"]]["function"] == "Framework.view"
            assert view["waits_for"] == "waits in never.wait()"
