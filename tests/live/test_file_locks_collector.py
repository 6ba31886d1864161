"""Threads that wait for real flock and fcntl locks, and who holds them."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from stucktrace.collectors import file_locks, process, threads

from tests.harness import kernel, targets

WAITS = "import fcntl, sys; file = open(sys.argv[1], 'r+'); getattr(fcntl, sys.argv[2])(file, fcntl.LOCK_EX)"


@pytest.mark.parametrize(("call", "kind"), [("flock", "flock"), ("lockf", "posix")])
def test_a_waiter_and_its_holder(tmp_path: Path, call: str, kind: str):
    path = tmp_path / "lock"
    path.touch()
    with path.open("r+") as file:
        getattr(fcntl, call)(file, fcntl.LOCK_EX)
        waiter = subprocess.Popen([sys.executable, "-c", WAITS, str(path), call])
        try:
            kernel.wait_for_call(waiter.pid, "flock" if call == "flock" else "fcntl")
            seen = threads.collect([waiter.pid], None)[waiter.pid]
            (fact,) = file_locks.collect(process.read_process(waiter.pid), seen)
            assert (fact.waiter_tid, fact.kind, fact.path) == (waiter.pid, kind, str(path))
            assert fact.holders == (os.getpid(),)
            assert fact.holder_commands == (Path("/proc/self/comm").read_text().strip(),)
        finally:
            waiter.kill()
            waiter.wait()


TAKES = """
import fcntl, os, struct, sys, time
file = open(sys.argv[1], "r+")
if sys.argv[2] == "ofd":
    # F_OFD_SETLK of the whole file.
    fcntl.fcntl(file, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
else:
    fcntl.flock(file, fcntl.LOCK_EX)
if "heir" in sys.argv[2] and os.fork():
    os._exit(0)
say_ready(str(os.getpid()))
time.sleep(600)
"""
WAITS_OFD = """
import fcntl, struct, sys
file = open(sys.argv[1], "r+")
fcntl.fcntl(file, 38, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
"""


@pytest.mark.parametrize(("how", "kind"), [("ofd", "ofdlck"), ("heir", "flock"), ("heir of a zombie", "flock")])
def test_holders_that_the_kernel_does_not_name(tmp_path: Path, how: str, kind: str):
    """A lock of an open file description has no pid; one whose taker is gone, kept by its fork, is not even listed."""
    path, program = tmp_path / "lock", tmp_path / "takes.py"
    path.touch()
    program.write_text(
        f"import sys\nsys.path.insert(0, {str(targets.TARGETS)!r})\nfrom ready import say_ready\n{TAKES}"
    )
    with targets.start([sys.executable, str(program), str(path), how]) as taker:
        if how == "heir":
            taker.process.wait()
        waits = [sys.executable, "-c", WAITS_OFD if how == "ofd" else WAITS, str(path), "flock"]
        with targets.start(waits, ready=False) as waiter:
            kernel.wait_for_call(waiter.pid, "fcntl" if how == "ofd" else "flock")
            seen = threads.collect([waiter.pid], None)[waiter.pid]
            (fact,) = file_locks.collect(process.read_process(waiter.pid), seen)
            assert (fact.kind, fact.path, fact.holders) == (kind, str(path), (int(taker.said),))


def test_nobody_waits():
    seen = threads.collect([os.getpid()], None)[os.getpid()]
    assert file_locks.collect(process.read_process(os.getpid()), seen) == ()
