"""What the waits hook adds to a system call, beside no hook and beside strace on the same loop.

A C program makes the same call in a tight loop: recvfrom on an empty socket (counted), getppid (not counted). The states
take turns, several rounds, and each state's best round counts: other load on the machine only ever adds.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from stucktrace.collectors import kernel, waits

from tests.bench import Row

LOOP = r"""
#include <stdio.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int main(void)
{
	int pair[2], which;
	long count;
	char byte;

	socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
	setvbuf(stdout, NULL, _IONBF, 0);
	while (scanf("%d %ld", &which, &count) == 2) {
		struct timespec a, b;

		clock_gettime(CLOCK_MONOTONIC, &a);
		for (long i = 0; i < count; i++) {
			if (which)
				recvfrom(pair[0], &byte, 1, MSG_DONTWAIT, NULL, NULL);
			else
				syscall(SYS_getppid);
		}
		clock_gettime(CLOCK_MONOTONIC, &b);
		printf("%f\n", ((b.tv_sec - a.tv_sec) * 1e9 + (b.tv_nsec - a.tv_nsec)) / count);
	}
	return 0;
}
"""
CALLS = {"recvfrom, EAGAIN (counted)": 1, "getppid (not counted)": 0}
FAST, SLOW = 400_000, 3_000
"""Calls in a round, without and with strace."""
ROUNDS = 7


def run() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "loop"
        (Path(folder) / "loop.c").write_text(LOOP)
        subprocess.run(["gcc", "-O2", "-o", program, f"{program}.c"], check=True)
        core = kernel.open_kernel("core").kernel
        assert core is not None
        with core, loop(program) as ask:
            pid = ask.pid
            states: dict[str, Callable[[], AbstractContextManager[object]]] = {
                "bare": contextlib.nullcontext,
                "another process watched": lambda: waits.watching([os.getpid()], core),
                "watched": lambda: waits.watching([pid], core),
                "strace -c -f -p": lambda: strace(pid),
            }
            return [row for call, which in CALLS.items() for row in measure(call, which, ask, states)]


class Loop:
    """The running C program; calling it with (which, count) gives nanoseconds per call."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid

    def __call__(self, which: int, count: int) -> float:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{which} {count}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def measure(
    call: str, which: int, ask: Loop, states: dict[str, Callable[[], AbstractContextManager[object]]]
) -> list[Row]:
    best: dict[str, float] = {}
    for _ in range(ROUNDS):
        for state, enter in states.items():
            with enter():
                ns = ask(which, SLOW if "strace" in state else FAST)
            best[state] = min(ns, best.get(state, ns))
    bare = best["bare"]
    strace_adds = best["strace -c -f -p"] - bare
    rows = [Row(f"{call}: bare", bare, "ns")]
    for state in states:
        if state == "bare":
            continue
        added = best[state] - bare
        beside = "" if "strace" in state else f"strace adds {strace_adds / max(added, 1):,.0f} times that"
        note = "target for a watched process: < 200 ns" if state == "watched" and which else ""
        rows.append(Row(f"{call}: {state} adds", added, "ns", beside, note))
    return rows


@contextlib.contextmanager
def loop(program: Path) -> Iterator[Loop]:
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Loop(process)
        assert process.stdin
        process.stdin.close()


@contextlib.contextmanager
def strace(pid: int) -> Iterator[None]:
    """strace attached to the process, for as long as the context is open."""
    with subprocess.Popen(
        ["strace", "-c", "-f", "-p", str(pid)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stderr
        process.stderr.readline()  # "Process PID attached"
        yield
        process.terminate()
        process.stderr.read()
