"""Every kind of deadlock under CPython 3.9, 3.11 and 3.13 in containers: the verdict, and who holds what on which line.

The right answer stands in comments of the programs: "A waits for B" on the line where thread A waits, "B holds" on the
`with` line by which B holds that lock.
"""

from __future__ import annotations

import ast
import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.harness import command, kernel, targets, trees

pytestmark = pytest.mark.xdist_group("deadlocks")

CODES = {
    "crossed_locks": "deadlock",
    "ring_of_attributes": "deadlock",
    "crossed_rlocks": "deadlock",
    "entered_by_a_signal_handler": "deadlock",
    "entered_by_a_finalizer": "deadlock",
    "queue_inherited": "orphaned-lock",
    "queue_inherited_inside_put": "orphaned-lock",
    "queue_inherited_and_released_since": "orphaned-lock",
    "import_lock_inherited": "orphaned-lock",
    "crossed_mutexes": "deadlock",
    "mutex_inherited": "orphaned-lock",
    "pool_waits_on_itself": "pool-starved",
    "worker_killed_with_the_semaphore": "orphaned-lock",
    "reader_killed_with_the_semaphore": "orphaned-lock",
    "worker_killed_with_the_task": "work-lost",
    "held_over_an_await": "blocked-loop",
}
NOT_PROVABLE = {
    "queue_inherited_and_released_since",
    "suspended_generator",
    "exit_stack",
    "context_manager",
    "acquired_by_hand",
    "acquired_in_another_function",
}
"""No memory tells who took the lock: what is said may not be more than `likely`."""
HEALTHY = (
    "locks_move",
    "a_thread_for_each_request",
    "rlocks_move",
    "conditions_move",
    "slow_producer",
    "inside_one_condition",
    "parked_beside_contention",
    "idle_pools",
    "idle_readers_of_one_queue",
    "readers_and_writers",
    "handed_over",
    "lock_as_a_signal",
    "given_up_inside_its_block",
    "given_up_by_another_name",
)
PASSED = ("threading.py", "<frozen importlib._bootstrap>")
"""Their frames take a lock on behalf of a caller, whose line is the one to tell."""
ASLEEP_S = 6.0


@dataclass(frozen=True)
class Marks:
    """What the comments of a program say."""

    waits: tuple[tuple[str, str, int], ...]
    """(waiter, holder or "", line)."""
    holds: dict[str, int]


@functools.cache
def functions(program: str) -> dict[str, tuple[int, int]]:
    tree = ast.parse((targets.TARGETS / program).read_text())
    return {node.name: (node.lineno, node.end_lineno or 0) for node in tree.body if isinstance(node, ast.FunctionDef)}


def marks(program: str, case: str) -> Marks:
    lines = (targets.TARGETS / program).read_text().splitlines()
    waits, holds = [], {}
    for function in (case, *(("inner", "other") if program == "deadlock_shapes.py" and case != "three_kinds" else ())):
        first, last = functions(program)[function]
        for number in range(first, last + 1):
            comment = lines[number - 1].rpartition("# ")[2]
            waits += [
                (waiter, holder or "", number)
                for waiter, holder in re.findall(r"\b([A-K]) waits(?: for ([A-K]))?\b", comment)
            ]
            holds.update((holder, number) for holder in re.findall(r"\b([A-K]) holds\b", comment))
    return Marks(tuple(waits), holds)


SHAPES = [name for name in functions("deadlock_shapes.py") if name not in ("inner", "other")]


@dataclass(frozen=True)
class Answer:
    program: str
    marks: Marks
    target: trees.Contained
    report: command.Report

    def tid(self, letter: str) -> int:
        """The machine's id of the thread that the comments call so."""
        words = self.target.words[1:]
        return words[-1] if letter == "K" else words["ABC".index(letter)]

    @property
    def told(self) -> str:
        """All that the verdict says."""
        verdict = self.report.verdict
        return "\n".join([verdict["summary"], *verdict["chain"], *(line["text"] for line in verdict["evidence"])])

    def frames(self, tid: int) -> list[tuple[str, int]]:
        """(file name, line) of the thread's Python frames, innermost first."""
        (thread,) = (thread for thread in self.report["threads"] if thread["tid"] == tid)
        return [(frame["file"].rpartition("/")[2], frame["line"]) for frame in thread["python"]]

    def check(self, code: str, *confidences: str) -> None:
        report = self.report
        if report.code != code or report.confidence not in confidences:
            raise AssertionError(f"wanted {code} {' or '.join(confidences)}, got:\n{report.text()}")

    def check_holders(self) -> None:
        """Every lock's owner is the right thread, and the verdict names the lines on which both stand."""
        for waiter, holder, line in self.marks.waits:
            if not holder:
                continue
            (lock,) = (
                lock for lock in self.report["locks"] if self.tid(waiter) in [one["tid"] for one in lock["waiters"]]
            )
            (owner,) = lock["owners"]
            if holder == "K":
                assert owner["state"] == "absent", owner
                assert re.search(rf"\b{self.target.said[-1]}\b", self.told), self.told
            else:
                assert (owner["tid"], owner["state"]) == (self.tid(holder), "self" if holder == waiter else "alive")
            frames = self.frames(self.tid(waiter))
            assert (self.program, line) in frames, frames
            acquires = next(frame for frame in frames if frame[0] not in PASSED)
            assert "{}:{})".format(*acquires) in self.told, self.told
        for line in self.marks.holds.values():
            assert re.search(rf"taken in .*/{self.program}:{line}\)", self.told), self.told


def reports(started: dict[str, trees.Contained], *options: str | int) -> dict[str, command.Report]:
    """All of them looked at in one run of the command."""
    pids = {target.pid: case for case, target in started.items()}
    result = command.run("pid", *pids, "--json", *options)
    found = {}
    for line in result.stdout.splitlines():
        report = command.Report(json.loads(line))
        command.validator().validate(report)
        found[pids[report["process"]["pid"]]] = report
    assert found.keys() == started.keys(), result.stderr
    return found


@pytest.fixture(scope="module", params=trees.PYTHONS, ids=trees.PYTHONS.values())
def answers(request: pytest.FixtureRequest) -> Iterator[dict[str, Answer]]:
    """All cases side by side in one release's tree, looked at together once all of them have hung for a while."""
    programs = {**dict.fromkeys(CODES, "deadlocks.py"), **dict.fromkeys(SHAPES, "deadlock_shapes.py")}
    with trees.start_all(request.param, programs) as started:
        for target in started.values():
            for tid in target.words[1 : 2 if target.words[0] == target.words[1] else None]:
                kernel.wait_until(
                    lambda pid=target.pid, tid=tid: kernel.asleep_s(pid, tid) > ASLEEP_S, f"{target.said}: {tid} asleep"
                )
        found = reports(started)
        yield {
            case: Answer(program, marks(program, case), started[case], found[case])
            for case, program in programs.items()
        }


@pytest.mark.parametrize("case", CODES)
def test_the_verdict(answers: dict[str, Answer], case: str):
    answer = answers[case]
    answer.check(CODES[case], *(("proven", "likely") if case in NOT_PROVABLE else ("proven",)))
    answer.check_holders()


def test_a_lock_that_a_suspended_task_of_the_same_loop_holds(answers: dict[str, Answer]):
    assert "a suspended task of the same thread holds, in " in answers["held_over_an_await"].told


@pytest.mark.parametrize("case", [shape for shape in SHAPES if shape not in NOT_PROVABLE])
def test_every_way_to_hold_a_lock(answers: dict[str, Answer], case: str):
    answers[case].check("deadlock", "proven")
    answers[case].check_holders()


@pytest.mark.parametrize("case", [shape for shape in SHAPES if shape in NOT_PROVABLE])
def test_a_lock_whose_holder_no_block_shows(answers: dict[str, Answer], case: str):
    answers[case].check("deadlock", "likely", "possible")
    for waiter, holder, _ in answers[case].marks.waits:
        for lock in answers[case].report["locks"]:
            if answers[case].tid(waiter) in [one["tid"] for one in lock["waiters"]]:
                assert all(owner["tid"] in (None, answers[case].tid(holder)) for owner in lock["owners"]), lock


@pytest.mark.parametrize("release", ["bullseye", "trixie"])
def test_locks_that_change_hands(release: str):
    """Some look-alikes; test_lookalikes.py watches all of them for longer on this machine's own Python."""
    with trees.start_all(release, dict.fromkeys(HEALTHY, "healthy_locks.py")) as started:
        for options in ((), ("--engine", "none", "--stuck-after", 3)):
            for case, report in reports(started, *options).items():
                assert report.verdict["class"] == "healthy", f"{case}:\n{report.text()}"
