"""Examines suspects beside the loop: a few threads, each with a kernel side of its own, for those cannot be shared.

What hangs (a read of /proc can) is given up after a while and costs its thread; what fails costs its own answer only.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from stucktrace.collectors.conntrack import Sightings
from stucktrace.collectors.kernel import open_kernel
from stucktrace.diagnosis.model import Budgets
from stucktrace.errors import NoSuchProcess
from stucktrace.inspection import Inspection, inspect_each
from stucktrace.node.figures import Durations
from stucktrace.run import Earlier, Options

THREADS = 2
MOST_AT_ONCE = 64
"""Processes in one examination: they share its sampling window."""
DEADLINE_S = 60.0
MOST_GIVEN_UP = 4
"""Hanging threads that are replaced."""
KEPT_S = 60.0
"""How long what was found, and what stays attached, is of use for the next examination."""
MOST_THREADS_KEPT = 256
"""What was found of a process with more threads is not kept."""


@dataclass(frozen=True)
class Examined:
    """The answer about one process."""

    pid: int
    budgets: Budgets = field(default_factory=Budgets)
    inspection: Inspection | None = None
    gone: bool = False
    error: str = ""
    """Why there is no inspection, in one line."""


@dataclass(eq=False)
class _Job:
    left: set[int]
    """Who was not answered for yet."""
    budgets: Budgets
    earlier: Mapping[int, Earlier]
    began: float = field(default_factory=time.monotonic)
    given_up: bool = False


class Examiner:
    def __init__(self, engine: str, sightings: Sightings, wake: Callable[[], None]) -> None:
        self._engine = engine
        self._sightings = sightings
        self._wake = wake
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[_Job, Examined]] = queue.SimpleQueue()
        self._running: list[_Job] = []
        self._given_up = 0
        self._earlier: dict[int, tuple[float, Earlier]] = {}
        """Of the last examination, with its time: most suspects sleep from one to the next."""
        self.took = Durations()
        """From the beginning of an examination to each answer."""
        self.failures = 0
        self._lost: dict[int, int] = {}
        """Thread -> records that its kernel side had to drop."""
        for _ in range(THREADS):
            self._start()

    def _start(self) -> None:
        threading.Thread(target=self._work, name="examiner", daemon=True).start()

    @property
    def free(self) -> int:
        """How many more examinations would begin at once."""
        return THREADS - len(self._running)

    @property
    def hangs(self) -> bool:
        """Nothing is examined any more: every thread hangs, and so many were replaced already."""
        late = time.monotonic() - DEADLINE_S
        return self._given_up == MOST_GIVEN_UP and self.free == 0 and all(job.began < late for job in self._running)

    @property
    def busy(self) -> set[int]:
        """Who is being examined now."""
        return set().union(*(job.left for job in self._running))

    @property
    def lost_records(self) -> int:
        return sum(self._lost.values())

    def submit(self, pids: tuple[int, ...], budgets: Budgets) -> None:
        young = time.monotonic() - KEPT_S
        # Also what was found of a process that had ended by then: nobody asks for that again.
        self._earlier = {pid: kept for pid, kept in self._earlier.items() if kept[0] > young}
        job = _Job(set(pids), budgets, {pid: self._earlier[pid][1] for pid in pids if pid in self._earlier})
        self._running.append(job)
        self._jobs.put(job)

    def forget(self, pid: int) -> None:
        """It has ended."""
        self._earlier.pop(pid, None)

    def answers(self) -> list[Examined]:
        """What is done since the last call; never waits."""
        found: list[Examined] = []
        with suppress(queue.Empty):
            while True:
                job, examined = self._answers.get_nowait()
                self.took = self.took.plus(time.monotonic() - job.began)
                self.failures += bool(examined.error) and not examined.gone
                if not job.given_up:
                    job.left.discard(examined.pid)
                    self._keep(examined)
                    found.append(examined)
        for job in self._running[:]:
            if not job.left:
                self._running.remove(job)
            elif time.monotonic() - job.began > DEADLINE_S and self._given_up < MOST_GIVEN_UP:
                self._given_up += 1
                job.given_up = True
                self._running.remove(job)
                found += [Examined(pid, error=f"no answer within {DEADLINE_S:.0f} s") for pid in job.left]
                self._start()
        return found

    def _keep(self, examined: Examined) -> None:
        self._earlier.pop(examined.pid, None)
        snapshot = examined.inspection.snapshot if examined.inspection else None
        if snapshot is not None and len(snapshot.threads) <= MOST_THREADS_KEPT:
            earlier = Earlier(snapshot.process, snapshot.threads, snapshot.python, snapshot.work, snapshot.time)
            self._earlier[examined.pid] = time.monotonic(), earlier

    def _work(self) -> None:
        opened = None
        while True:
            try:
                job = self._jobs.get(timeout=KEPT_S)
            except queue.Empty:
                if opened is not None and opened.kernel is not None:
                    opened.kernel.let_go()
                continue
            left = set(job.left)
            try:
                if opened is None:
                    opened = open_kernel(self._engine)
                    if opened.kernel is not None:
                        opened.kernel.lasting = True
                options = Options(
                    self._engine,
                    budgets=job.budgets,
                    children=False,
                    siblings=False,
                    greenlets=False,
                    sightings=self._sightings,
                )
                kernel = opened
                for pid, answer in inspect_each(tuple(left), options, lambda kernel=kernel: kernel, job.earlier):  # type: ignore[misc]
                    left.discard(pid)
                    self._answered(job, _examined(job, pid, answer))
                if kernel.kernel is not None:
                    self._lost[threading.get_ident()] = kernel.kernel.lost_records()
            except Exception as error:
                if os.environ.get("STUCKTRACE_DEBUG"):
                    import traceback

                    traceback.print_exc()
                for pid in left:
                    self._answered(job, Examined(pid, error=f"{type(error).__name__}: {error}"))

    def _answered(self, job: _Job, examined: Examined) -> None:
        self._answers.put((job, examined))
        self._wake()


def _examined(job: _Job, pid: int, answer: Inspection | Exception) -> Examined:
    if isinstance(answer, Inspection):
        answer.timings_ms["total"] = (time.monotonic() - job.began) * 1000
        return Examined(pid, job.budgets, answer)
    return Examined(pid, job.budgets, gone=isinstance(answer, NoSuchProcess), error=str(answer))
