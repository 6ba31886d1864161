"""Threads that wait for real flock and fcntl locks, and who holds them."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from stucktrace.collectors import file_locks, process, threads

from tests.harness import kernel

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


def test_nobody_waits():
    seen = threads.collect([os.getpid()], None)[os.getpid()]
    assert file_locks.collect(process.read_process(os.getpid()), seen) == ()
