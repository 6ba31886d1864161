"""What hooks add: that of a sampling window to a system call, beside strace; the agent's own to a process's life.

A C program does the same thing in a tight loop: recvfrom on an empty socket (counted), getppid (not counted), fork and
end of a child, exec of a program. The states take turns, several rounds, and each state's best round counts: other load on
the machine only ever adds.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from stucktrace.collectors import kernel, lifecycle, trouble, waits

from tests.bench import Row

LOOP = r"""
#include <stdio.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
static void child(char *program)
{
	int pid = program ? vfork() : fork();

	if (pid == 0) {
		if (program)
			execl(program, program, "end", NULL);
		_exit(0);
	}
	waitpid(pid, NULL, 0);
}
int main(int argc, char **argv)
{
	int pair[2], which;
	long count;
	char byte;

	if (argc > 1)
		return 0;
	socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
	setvbuf(stdout, NULL, _IONBF, 0);
	while (scanf("%d %ld", &which, &count) == 2) {
		struct timespec a, b;

		clock_gettime(CLOCK_MONOTONIC, &a);
		for (long i = 0; i < count; i++) {
			if (which == 0)
				syscall(SYS_getppid);
			else if (which == 1)
				recvfrom(pair[0], &byte, 1, MSG_DONTWAIT, NULL, NULL);
			else
				child(which == 2 ? NULL : argv[0]);
		}
		clock_gettime(CLOCK_MONOTONIC, &b);
		printf("%f\n", ((b.tv_sec - a.tv_sec) * 1e9 + (b.tv_nsec - a.tv_nsec)) / count);
	}
	return 0;
}
"""
CALLS = {"recvfrom, EAGAIN (counted)": 1, "getppid (not counted)": 0}
LIVES = {"fork and end of a child": 2, "fork, exec and end": 3}
FAST, SLOW = 400_000, 3_000
"""Calls in a round, without and with strace."""
ROUNDS = 7
LIVES_IN_A_ROUND, LIFE_ROUNDS = 200, 40


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
            rows = [row for call, which in CALLS.items() for row in measure(call, which, ask, states)]
            return rows + [row for life, which in LIVES.items() for row in measure_lives(life, which, ask, core)]


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


def measure_lives(life: str, which: int, ask: Loop, core: kernel.Kernel) -> list[Row]:
    """Of a stranger, while the agent watches somebody else."""
    bare = hooked = float("inf")
    for _ in range(LIFE_ROUNDS):
        bare = min(bare, ask(which, LIVES_IN_A_ROUND))
        with agents_hooks(core):
            hooked = min(hooked, ask(which, LIVES_IN_A_ROUND))
    rows = [Row(f"{life}: bare", bare, "ns")]
    return [*rows, Row(f"{life}: the agent's hooks add", hooked - bare, "ns", f"{100 * hooked / bare - 100:.2f} %")]


@contextlib.contextmanager
def agents_hooks(core: kernel.Kernel) -> Iterator[None]:
    """Those that stay attached while the agent runs."""
    with (
        contextlib.closing(lifecycle.Lifecycle(core)) as life,
        contextlib.closing(trouble.Stream(core)),
    ):
        life.watch([os.getpid()])
        yield


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
