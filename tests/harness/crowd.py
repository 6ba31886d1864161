"""Many tiny programs started side by side, so that they grow old together: a wait of seconds is waited for once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tests.harness import kernel, targets

STARTERS = 4


@dataclass(frozen=True)
class Hung:
    """A program that said "PID TID...": the process to look at, and its threads that hang."""

    target: targets.Target

    @property
    def pid(self) -> int:
        return int(self.target.said.split()[0])

    @property
    def words(self) -> list[int]:
        return [int(word) for word in self.target.said.split()]

    def wait(self, call: str, seconds: float = 1.0, tids: Sequence[int] = ()) -> None:
        """Until all these threads (by default all that the program named) have slept in the call for so long."""
        for tid in tids or self.words[1:]:
            kernel.wait_for_call(self.pid, call, tid=tid)
            kernel.wait_until(
                lambda tid=tid: kernel.asleep_s(self.pid, tid) >= seconds, f"{tid} asleep for {seconds} s"
            )


@contextlib.contextmanager
def start(program: str, cases: Sequence[str], *args: str) -> Iterator[dict[str, Hung]]:
    """The program once for each case (its first argument), all at the same time."""
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(STARTERS) as pool:
        started = list(pool.map(lambda case: stack.enter_context(targets.start(program, case, *args)), cases))
        yield {case: Hung(target) for case, target in zip(cases, started, strict=True)}
