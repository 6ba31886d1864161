"""Starting the tiny programs of tests/targets, and ending them with everything they started.

A program says that it is ready by writing a line to the fd in READY_FD (see `say_ready` in tests/targets/ready.py);
what stands on that line is `Target.said`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.harness import kernel

TARGETS = Path(__file__).parents[1] / "targets"
READY_DEADLINE_S = 150.0
MARK = "STUCKTRACE_TEST_TARGET"
"""In the environment of everything that a target starts, so that it is found again whoever its parent is."""


@dataclass
class Target:
    pid: int
    said: str
    """The line that the program wrote when it was ready."""
    process: subprocess.Popen[bytes]
    output: Path

    def go(self) -> None:
        """Lets a program go on that stands in `wait_for_go`."""
        os.kill(self.pid, signal.SIGUSR1)

    def log(self) -> str:
        return self.output.read_text(errors="replace")


RUNNING: list[Target] = []
"""What runs now; a failing test shows their output."""


@contextlib.contextmanager
def start(
    program: str | Path | Sequence[str],
    *args: str | int,
    netns: str | None = None,
    env: Mapping[str, str] | None = None,
    ready: bool = True,
    cwd: Path | None = None,
    prefix: Sequence[str] = (),
) -> Iterator[Target]:
    """Runs a program of tests/targets (by name or path), or a whole command; everything it started is killed at the end.

    With `ready` it waits for the program's own word. `prefix` is put in front of the command (setpriv, unshare ...).
    """
    command = (
        [str(TARGETS / program) if "/" not in str(program) else str(program)]
        if isinstance(program, str | Path)
        else list(program)
    )
    if isinstance(program, str | Path):
        command = [sys.executable, *command]
    command += [str(argument) for argument in args]
    command = [*prefix, *command]
    if netns:
        command = ["ip", "netns", "exec", netns, *command]
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    descriptor, name = tempfile.mkstemp(prefix="target-", suffix=".log")
    mark = f"{os.getpid()}-{writer}-{time.monotonic_ns()}"
    environment = {**os.environ, "READY_FD": str(writer), MARK: mark, "PYTHONUNBUFFERED": "1", **(env or {})}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=descriptor, stderr=descriptor, pass_fds=(writer,), env=environment,
        start_new_session=True, cwd=cwd,
    )  # fmt: skip
    os.close(writer)
    os.close(descriptor)
    output = Path(name)
    try:
        said = _ready(reader, process, output) if ready else ""
        target = Target(process.pid, said, process, output)
        RUNNING.append(target)
        try:
            yield target
        finally:
            RUNNING.remove(target)
    except BaseException:
        print(f"--- output of {' '.join(command)[:200]}\n{output.read_text(errors='replace')[-4000:]}", file=sys.stderr)
        raise
    finally:
        os.close(reader)
        end(process, mark)
        output.unlink(missing_ok=True)


def _ready(reader: int, process: subprocess.Popen[bytes], output: Path) -> str:
    line = b""
    while not line.endswith(b"\n"):
        readable, _, _ = select.select([reader], [], [], READY_DEADLINE_S)
        chunk = os.read(reader, 4096) if readable else b""
        if not chunk:
            process.poll()
            raise AssertionError(f"target not ready (exit {process.returncode}):\n{output.read_text(errors='replace')}")
        line += chunk
    return line.decode().strip()


def end(process: subprocess.Popen[bytes], mark: str = "") -> None:
    """Kills the process and everything it started, each by its pid, until nothing is left: stopped ones, and ones that
    left for a session of their own."""
    for _ in range(100):
        left = [
            pid for pid in {process.pid, *descendants(process.pid), *_marked(process.pid, mark)} if kernel.alive(pid)
        ]
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
                _wait_for_end(pid)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1 if left else 60)
        if not left:
            return
    raise AssertionError(f"could not end {left}")


def _wait_for_end(pid: int) -> None:
    """A moment, for the first process of a PID namespace ends after all the others."""
    pidfd = os.pidfd_open(pid)
    try:
        select.select([pidfd], [], [], 0.2)
    finally:
        os.close(pidfd)


def _marked(session: int, mark: str) -> list[int]:
    """What stands in the session, or carries the mark in its environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, IndexError):
            if int((entry / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                found.append(int(entry.name))
            elif mark and f"{MARK}={mark}\0".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for child in kernel.children(pid):
            found += [*descendants(child), child]
    return found
