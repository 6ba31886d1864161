"""Stands between us and a py-spy that stops the target (`--native`), and makes sure that the target goes on afterwards.

py-spy attaches with PTRACE_ATTACH, which sends each thread a SIGSTOP. If py-spy is killed between that and the stop's
report, nobody takes the SIGSTOP back, and it stops the target for good. So py-spy is not tied to our life here: this
small process, in a session of its own, waits for it, kills it at the deadline only, and then sends SIGCONT if a SIGSTOP
was left behind on a target that ran before. It ends by itself whatever happens to its parent.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_STOP_BIT = 1 << (signal.SIGSTOP - 1)


def command(pid: int, guarded: Sequence[str], deadline_s: float) -> list[str]:
    return [sys.executable, "-I", str(Path(__file__)), str(pid), str(deadline_s), *guarded]


def states(pid: int) -> list[tuple[str, bool]]:
    """(state letter, a SIGSTOP is pending) of each thread. Source: /proc/PID/task/TID/status."""
    found = []
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []
    for task in tasks:
        try:
            lines = (task / "status").read_text(errors="replace").splitlines()
        except OSError:
            continue
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        pending = int(fields.get("SigPnd", "0"), 16) | int(fields.get("ShdPnd", "0"), 16)
        found.append((fields.get("State", "?").strip()[:1], bool(pending & _STOP_BIT)))
    return found


def main(arguments: Sequence[str]) -> int:
    pid, deadline_s, guarded = int(arguments[0]), float(arguments[1]), arguments[2:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    before = states(pid)
    if any(state in "Tt" for state, _ in before):
        print("Error: the process is stopped or traced already", file=sys.stderr)
        return 1
    if any(state == "D" for state, _ in before):
        # An attach waits for the thread's stop, which a thread in an uninterruptible sleep never makes.
        print("Error: a thread is in an uninterruptible sleep and would not come back from a stop", file=sys.stderr)
        return 1
    child = subprocess.Popen(guarded)
    try:
        return child.wait(timeout=deadline_s)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        print("Error: py-spy did not end in time and was killed", file=sys.stderr)
        return 1
    finally:
        if any(pending or state == "T" for state, pending in states(pid)):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGCONT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
