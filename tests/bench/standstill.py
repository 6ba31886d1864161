"""The longest time that a target stood still while it was looked at, beside py-spy and strace, in one run.

The target notes the largest gap between two readings of its clock in a tight loop. It has one CPU for itself and the looker
another, so that what remains is what the looker did to it. The gap of an undisturbed target is in the table too.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.bench import Row
from tests.harness.command import COMMAND

ROUNDS = 9
PY_SPY = str(Path(sys.executable).with_name("py-spy"))

LOOP = """
import os, sys, time
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
clock = time.perf_counter_ns
print("ready", flush=True)
for line in sys.stdin:
    # Runs until the next line is there, looking for it once in a thousand turns.
    import select
    last, longest = clock(), 0
    while True:
        for _ in range(1000):
            now = clock()
            if now - last > longest:
                longest = now - last
            last = now
        if select.select([sys.stdin], [], [], 0)[0]:
            sys.stdin.readline()
            break
        last = clock()
    print(longest, flush=True)
"""


def gap_ms(loop: subprocess.Popen[str], command: Sequence[str]) -> float:
    """The longest gap while `command` ran."""
    assert loop.stdin and loop.stdout
    loop.stdin.write("go\n")
    loop.stdin.flush()
    subprocess.run(
        ["taskset", "-c", "0", *command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    loop.stdin.write("stop\n")
    loop.stdin.flush()
    return int(loop.stdout.readline()) / 1e6


def run() -> list[Row]:
    loop = subprocess.Popen([sys.executable, "-c", LOOP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert loop.stdout and loop.stdout.readline() == "ready\n"
        pid = str(loop.pid)
        commands = {
            "nobody": ["sleep", "0.3"],
            "auto": [str(COMMAND), "pid", pid, "--sample", "0.3"],
            "none": [str(COMMAND), "pid", pid, "--sample", "0.3", "--engine", "none"],
            "py-spy": [PY_SPY, "dump", "-p", pid],
            "strace": ["timeout", "-s", "INT", "0.3", "strace", "-c", "-f", "-p", pid],
        }
        gaps: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(ROUNDS):
            for name, command in commands.items():
                gaps[name].append(gap_ms(loop, command))
    finally:
        loop.kill()
        loop.wait()
    median = {name: statistics.median(taken) for name, taken in gaps.items()}
    beside = f"py-spy dump {median['py-spy']:.3f} ms, strace {median['strace']:.3f} ms"
    return [
        Row(
            "longest standstill under stucktrace pid",
            median["auto"],
            "ms",
            beside,
            f"largest of all {max(gaps['auto']):.3f} ms",
        ),
        Row("the same, --engine none", median["none"], "ms"),
        Row("left alone", median["nobody"], "ms"),
    ]
