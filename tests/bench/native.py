"""Native frames of a hung thread: ours, which unwinds it while it sleeps, beside py-spy --native, in one run.

One thread of the target has locked a mutex twice, the other runs. How long the target was stopped is what its state in
/proc said meanwhile; and the running thread noted the largest gap between two readings of its clock, as in the standstill
benchmark, where what else the machine does shows too.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from tests.bench import Row
from tests.bench.cold import timed
from tests.bench.standstill import LOOP, PY_SPY, gap_ms
from tests.harness.command import COMMAND

ROUNDS = 20
HANG = """
import ctypes, threading
def hang():
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)
threading.Thread(target=hang, daemon=True).start()
"""


def native_ms(pid: int) -> float:
    """What reading the stack of the verdict's thread takes within one cold command."""
    output = subprocess.run([COMMAND, "pid", str(pid), "--json", "--sample", "0"], stdout=subprocess.PIPE).stdout
    report = json.loads(output)
    assert any("pthread_mutex_lock" in frame["function"] for thread in report["threads"] for frame in thread["native"])
    return float(report["timings_ms"]["native"])


def stopped_ms(pid: int, command: Sequence[str]) -> float:
    """How long the state of the process was "stopped" or "traced" while `command` ran."""
    stopped = 0.0
    with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        last = time.perf_counter()
        while process.poll() is None:
            state = os.pread(file.fileno(), 512, 0).rpartition(b")")[2].split()[0]
            now = time.perf_counter()
            stopped += now - last if state in b"tT" else 0.0
            last = now
    return stopped * 1000


def run() -> list[Row]:
    target = subprocess.Popen(
        [sys.executable, "-c", HANG + LOOP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert target.stdout and target.stdout.readline() == "ready\n"
        ours = [str(COMMAND), "pid", str(target.pid), "--sample", "0"]
        theirs = [PY_SPY, "dump", "--native", "--pid", str(target.pid)]
        reading = statistics.median(native_ms(target.pid) for _ in range(ROUNDS))
        dump = statistics.median(timed(theirs)[0] for _ in range(ROUNDS))
        stopped = [[stopped_ms(target.pid, command) for _ in range(ROUNDS)] for command in (ours, theirs)]
        gaps = [[gap_ms(target, command) for _ in range(ROUNDS)] for command in (["sleep", "0.5"], ours, theirs)]
    finally:
        target.kill()
        target.wait()
    quiet, our_gap, their_gap = (statistics.median(found) for found in gaps)
    return [
        Row("native stack of the verdict's thread", reading, "ms", f"py-spy, a whole run: {dump:.0f} ms", "target: under 50 ms"),
        Row(
            "target stopped for it", statistics.median(stopped[0]), "ms",
            f"py-spy {statistics.median(stopped[1]):.0f} ms, at most {max(stopped[1]):.0f} ms", "target: 0",
        ),
        Row("longest gap of its clock", our_gap, "ms", f"py-spy {their_gap:.0f} ms, left alone {quiet:.0f} ms"),
    ]  # fmt: skip
