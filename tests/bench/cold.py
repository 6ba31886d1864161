"""From process start to verdict, cold, beside what people use today, in turns within one run.

The target is a worker of a real Redis that was cut off (half-open), and a gunicorn master with 32 workers.
"""

from __future__ import annotations

import contextlib
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.bench import Row
from tests.harness import brokers, kernel, namespaces, targets
from tests.harness.command import COMMAND

ROUNDS = 15
WORKERS = 32
PY_SPY = str(Path(sys.executable).with_name("py-spy"))


def timed(command: Sequence[str]) -> tuple[float, float]:
    """(wall, CPU) milliseconds of one whole command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return wall * 1000, cpu * 1000


def medians(commands: dict[str, list[str]], rounds: int) -> dict[str, tuple[float, float]]:
    """Each command's median wall and CPU time, all taking turns."""
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            samples[name].append(timed(command))
    return {
        name: (statistics.median(wall for wall, _ in taken), statistics.median(cpu for _, cpu in taken))
        for name, taken in samples.items()
    }


def half_open_worker() -> list[Row]:
    with (
        namespaces.pair() as pair,
        brokers.redis(pair) as redis,
        targets.start("clients.py", "redis_counter", redis.url, netns=pair.here) as target,
    ):
        redis.cut()
        kernel.wait_for_unacked(f"{redis.address}:{redis.port}", 8, pair.here)
        pid = str(target.pid)
        ours = [str(COMMAND), "pid", pid]
        figures = medians(
            {
                "auto": ours,
                "none": [*ours, "--engine", "none"],
                "python": [sys.executable, "-c", "pass"],
                "py-spy": [PY_SPY, "dump", "-p", pid],
            },
            ROUNDS,
        )
        strace = timed(["timeout", "-s", "INT", "1", "strace", "-c", "-f", "-p", pid])[0]
    wall, cpu = figures["auto"]
    beside = f"py-spy dump {figures['py-spy'][0]:.0f} ms, strace -c for a second {strace:,.0f} ms"
    return [
        Row("stucktrace pid, half-open worker", wall, "ms", beside, f"target < 300; {cpu:.0f} ms CPU"),
        Row("the same, --engine none", figures["none"][0], "ms", "", f"{figures['none'][1]:.0f} ms CPU"),
        Row("an empty Python, for comparison", figures["python"][0], "ms"),
    ]


def polling_worker() -> list[Row]:
    """A wait made of short polls: the kernel's ages do not decide, so a second look is taken."""
    program = "import select, socket; a, b = socket.socketpair()\nwhile True: select.select([a], [], [], 0.1)"
    with targets.start([sys.executable, "-c", program], ready=False) as target:
        kernel.wait_for_call(target.pid, "select", "pselect6")
        pid = str(target.pid)
        figures = medians(
            {
                "window": [str(COMMAND), "pid", pid, "--sample", "0.5"],
                "no window": [str(COMMAND), "pid", pid, "--sample", "0"],
            },
            5,
        )
    beside = f"--sample 0: {figures['no window'][0]:.0f} ms"
    return [Row("with a second look of 0.5 s allowed", figures["window"][0], "ms", beside, "target < 1,000")]


def master() -> list[Row]:
    command = [
        sys.executable,
        "-m",
        "gunicorn",
        "-w",
        str(WORKERS),
        "-b",
        "127.0.0.1:0",
        "--chdir",
        str(targets.TARGETS),
    ]
    with targets.start([*command, "plain_app:application"], ready=False) as target:
        workers = kernel.wait_for_children(target.pid, WORKERS)
        for worker in workers:
            kernel.wait_for_call(worker, "pselect6", "select")
        figures = medians(
            {
                "ours": [str(COMMAND), "pid", str(target.pid)],
                "py-spy": [PY_SPY, "dump", "--subprocesses", "-p", str(target.pid)],
            },
            5,
        )
    beside = f"py-spy dump --subprocesses {figures['py-spy'][0]:.0f} ms"
    return [Row(f"gunicorn master with {WORKERS} workers", figures["ours"][0], "ms", beside)]


def run() -> list[Row]:
    with contextlib.suppress(subprocess.SubprocessError):
        timed([str(COMMAND), "--version"])
    return [*half_open_worker(), *polling_worker(), *master()]
