"""The frame around one inspection's collectors: what the user asked for, what failed, how long each took.

A collector that fails costs its own facts only: the reason goes into the report, and the rest is still said.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from stucktrace.diagnosis.model import Budgets
from stucktrace.errors import CannotInspect, CollectorError
from stucktrace.facts import Missing, ProcessFact, PythonFact, ThreadFact, WorkFact

if TYPE_CHECKING:
    from stucktrace.collectors.broker_view import View
    from stucktrace.collectors.conntrack import Sightings
    from stucktrace.collectors.kernel import Kernel

T = TypeVar("T")
D = TypeVar("D")


@dataclass(frozen=True)
class Options:
    """What the user asked for."""

    engine: str = "auto"
    native: bool = False
    show_locals: bool = False
    sample_s: float = 0.5
    budgets: Budgets = field(default_factory=Budgets)
    children: bool = True
    """A master's children are looked at with it."""
    siblings: bool = True
    """Of a stuck process it is counted how many of its siblings wait for the same: that reads their stacks too."""
    greenlets: bool = True
    """The suspended greenlets of a hub are listed; else they are looked for only where its thread waits for a lock.
    The queues that a consumer is there for likewise."""
    probe: bool = False
    """The peer's TCP is asked whether the connection lives: the one thing that a look sends."""
    broker: View | None = None
    """How the broker is asked for its own view."""
    sightings: Sightings | None = None
    """Where the agent saw the conntrack entries of connections."""


@dataclass(frozen=True)
class Earlier:
    """What the last look at a process found, for one that follows it soon."""

    process: ProcessFact
    threads: tuple[ThreadFact, ...]
    """As they were just before the stacks were read."""
    python: PythonFact | None
    """The stacks. They stand as long as none of the threads has run."""
    work: tuple[WorkFact, ...]
    """What the threads serve: it stands as long."""
    time: float
    """CLOCK_REALTIME."""


class Run:
    """The collectors' guard: what they could not see, and how long each took, in one inspection."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.kernel: Kernel | None = None
        self.hooks: dict[str, str] = {}
        self.for_all: list[Missing] = []
        self.missing: dict[int, list[Missing]] = {}
        self.timings_ms: dict[str, float] = {}
        self.earlier: dict[int, Earlier] = {}

    def collect(self, name: str, default: D, function: Callable[[], T], pid: int | None = None) -> T | D:
        """`function()`, or `default` when it fails; the failure is kept for `pid`'s report (None: for all)."""
        began = time.perf_counter()
        try:
            return function()
        except CollectorError as error:
            self.miss(error.missing, pid)
        except CannotInspect as error:
            # About the target or about a relative of it: whether the target itself is gone is asked at the end.
            self.miss(Missing(name, error.message, error.remedy), pid)
        except Exception as error:
            if os.environ.get("STUCKTRACE_DEBUG"):
                import traceback

                traceback.print_exc(file=sys.stderr)
            because = f"internal error, {type(error).__name__}: {error}"[:300]
            self.miss(Missing(name, because, "report this; STUCKTRACE_DEBUG=1 shows the traceback"), pid)
        finally:
            spent = (time.perf_counter() - began) * 1000
            self.timings_ms[name] = self.timings_ms.get(name, 0.0) + spent
        return default

    def miss(self, missing: Missing, pid: int | None) -> None:
        where = self.for_all if pid is None else self.missing.setdefault(pid, [])
        if missing not in where:
            where.append(missing)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.timings_ms[name] = self.timings_ms.get(name, 0.0) + (time.perf_counter() - began) * 1000
