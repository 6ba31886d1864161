"""Small Python programs run as targets, under every CPython that the machine has."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from stucktrace.collectors import threads as kernel_threads
from stucktrace.facts import ProcessFact, ThreadFact

DEADLINE_S = 90.0


def interpreters() -> list[str]:
    """Debian's python3 (statically linked), the one that runs the tests, and every pyenv version from 3.6 on."""
    found = ["/usr/bin/python3", os.path.realpath(sys.executable)]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for path in sorted((pyenv / "versions").glob("3.*/bin/python3")):
        # Of several patch releases one is enough.
        if re.fullmatch(r"3\.([6-9]|\d\d)(\.\d+)?", path.parts[-3]):
            found.append(str(path))
    return list(dict.fromkeys(found))


def name_of(interpreter: str) -> str:
    found = re.search(r"versions/([\d.]+)", interpreter)
    return found[1] if found else "debian"


@contextmanager
def run(
    code: str, *args: str, python: str = sys.executable, before: Sequence[str] = ()
) -> Iterator[subprocess.Popen[str]]:
    """Runs `code` until the block ends; it has printed "ready" when the block begins. Its children die with it."""
    child = subprocess.Popen(
        [*before, python, "-u", "-c", code, *args], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert child.stdout is not None
        line = child.stdout.readline()
        assert line.startswith("ready"), line
        child.words = line.split()[1:]  # type: ignore[attr-defined]
        yield child
    finally:
        try:
            os.killpg(child.pid, 9)
        except ProcessLookupError:
            pass
        child.wait()
        child.stdout.close()


def process_of(pid: int) -> ProcessFact:
    """What the collectors need to know of a process, no more."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    name = Path(f"/proc/{pid}/comm").read_text().strip()
    return ProcessFact(pid, pid, int(fields[1]), int(fields[19]), name, (), fields[0])


def threads_of(pid: int) -> tuple[ThreadFact, ...]:
    return kernel_threads.collect([pid], None)[pid]


def until(condition: Callable[[], object], what: str) -> None:
    """Waits for what the kernel shows."""
    ends = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < ends, f"never: {what}"
        time.sleep(0.02)


def in_call(pid: int, call: str, at_least: int = 1) -> bool:
    """At least so many threads sleep inside this system call."""
    found = threads_of(pid)
    return (
        sum(thread.state == "S" and bool(thread.syscall) and thread.syscall.name == call for thread in found)
        >= at_least
    )


def settled(pid: int, call: str, at_least: int = 1) -> bool:
    """As `in_call`, and none of them woke for a while: a thread that waits for the GIL wakes every 5 ms."""

    def sleepers() -> set[tuple[int, int | None]]:
        found = threads_of(pid)
        return {(t.tid, t.switches) for t in found if t.state == "S" and t.syscall and t.syscall.name == call}

    first = sleepers()
    if len(first) < at_least:
        return False
    time.sleep(0.2)
    return sleepers() == first


def quiet(pid: int, threads: int) -> bool:
    """It has so many threads, and all of them sleep inside a call and did not wake for a while."""
    first = {(t.tid, t.switches) for t in threads_of(pid) if t.state == "S" and t.syscall}
    if len(first) != threads or len(threads_of(pid)) != threads:
        return False
    time.sleep(0.2)
    return {(t.tid, t.switches) for t in threads_of(pid) if t.state == "S"} == first


def states(pid: int) -> str:
    """The state letters of all threads."""
    return "".join(thread.state for thread in threads_of(pid))
