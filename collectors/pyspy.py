"""Python stacks as py-spy reads them: runs `py-spy dump --json` in a process of its own, with a deadline.

Without `native` it is always `--nonblocking`: the target is only read, never stopped, and the price is that a read of a
running thread can fail or be inconsistent. Such a dump is taken again a few times; it is never replaced by a stopping
one. `--native` cannot be had without stopping the target (py-spy 0.4 refuses it together with `--nonblocking`), so only
a user's explicit wish leads there, and `pyspy_guard.py` then sees to it that the target goes on whatever happens to us.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stucktrace.collectors import child_output, memory
from stucktrace.errors import CollectorError

DEADLINE_S = 2.0
NATIVE_DEADLINE_S = 5.0
PER_THREAD_S = 0.005
"""py-spy reads thread after thread: about 0.25 ms each on a quiet machine, many times that on a busy one."""
ATTEMPTS = 4
MAX_OUTPUT_BYTES = 64 << 20
_MAX_ERROR_BYTES = 16 << 10
_MAX_FRAMES = 20_000
_MAX_LINE = 10_000_000

WHAT = "Python stacks"
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Dump:
    """One dump: py-spy's list of threads as parsed from JSON, and how long the run took."""

    threads: tuple[dict[str, Any], ...]
    took_s: float


def deadline_s(threads: int, *, native: bool = False) -> float:
    """How long a dump of so many threads may take."""
    return (NATIVE_DEADLINE_S if native else DEADLINE_S) + PER_THREAD_S * threads


def dump(pid: int, *, native: bool = False, show_locals: bool = False, deadline_s: float | None = None) -> Dump:
    """Raises CollectorError with the remedy when there is no py-spy, or no consistent dump before the deadline."""
    command = [program(), "dump", "--json", "--pid", str(pid)]
    command += ["--locals"] if show_locals else []
    if native:
        return _native(pid, command, NATIVE_DEADLINE_S if deadline_s is None else deadline_s)
    command.append("--nonblocking")
    started = time.monotonic()
    ends = started + (DEADLINE_S if deadline_s is None else deadline_s)
    error = CollectorError(WHAT, "py-spy gave no answer in time", _HANGS)
    for _ in range(ATTEMPTS):
        if time.monotonic() >= ends:
            break
        try:
            threads = parse(run(command, ends, tied_to_us()))
        except CollectorError as failure:
            error = failure
            if not _worth_a_retry(failure):
                break
        else:
            return Dump(threads, time.monotonic() - started)
    raise error


def program() -> str:
    """The py-spy executable: beside our interpreter, where its package put it, or on PATH."""
    beside = Path(sys.executable).parent / "py-spy"
    if os.access(beside, os.X_OK):
        return str(beside)
    return _from_package() or _on_path() or _no_program()


def _from_package() -> str | None:
    from importlib import metadata

    try:
        files = metadata.files("py-spy") or []
    except metadata.PackageNotFoundError:
        return None
    paths = (str(file.locate()) for file in files if file.name == "py-spy")
    return next((path for path in paths if os.access(path, os.X_OK)), None)


def _on_path() -> str | None:
    import shutil

    return shutil.which("py-spy")


def _no_program() -> str:
    raise CollectorError(WHAT, "py-spy is not installed", "pip install py-spy (into the environment of stucktrace)")


def _native(pid: int, command: Sequence[str], deadline_s: float) -> Dump:
    from stucktrace.collectors import pyspy_guard

    guarded = pyspy_guard.command(pid, [*command, "--native"], deadline_s)
    started = time.monotonic()
    # The guard gets a second more than what it guards, and is not tied to our life: it has to finish its work.
    threads = parse(run(guarded, started + deadline_s + 1.0, None, ends_itself=True))
    return Dump(threads, time.monotonic() - started)


def tied_to_us() -> Callable[[], None]:
    """What runs in the child before exec: the kernel kills it when we die, however we die."""
    us = os.getpid()

    def tie() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != us:
            os._exit(1)

    return tie


def run(command: Sequence[str], ends: float, before: Callable[[], None] | None, *, ends_itself: bool = False) -> bytes:
    """Output of a command that ran well; `ends` is CLOCK_MONOTONIC. Raises CollectorError; leaves no process behind.

    `ends_itself`: a command that has a deadline of its own and is waited for, never killed.
    """
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "RUST_BACKTRACE": "0", "RUST_LOG": "off"},
            start_new_session=True,
            # Nothing but two system calls, for another thread may hold any lock at the fork.
            preexec_fn=before,  # noqa: PLW1509
        )
    except OSError as error:
        raise CollectorError(
            WHAT, f"py-spy cannot be run: {error.strerror}", "pip install --force-reinstall py-spy"
        ) from None
    try:
        output, errors, complete = child_output.read(child, ends, MAX_OUTPUT_BYTES, _MAX_ERROR_BYTES)
        if not complete:
            raise CollectorError(WHAT, "py-spy gave no answer in time", _HANGS)
        status = child.wait(timeout=max(ends - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        raise CollectorError(WHAT, "py-spy gave no answer in time", _HANGS) from None
    finally:
        _end(child, ends_itself)
    if status != 0:
        raise explain(errors.decode(errors="replace"), status)
    return output


def _end(child: subprocess.Popen[bytes], ends_itself: bool) -> None:
    if child.poll() is None:
        if not ends_itself:
            child.kill()
        try:
            child.wait(timeout=NATIVE_DEADLINE_S + 3.0)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    for stream in (child.stdout, child.stderr):
        if stream is not None:
            stream.close()


def parse(output: bytes) -> tuple[dict[str, Any], ...]:
    """py-spy's JSON, refused as a whole when it cannot be what the target's memory said."""
    try:
        threads = json.loads(output)
    except (ValueError, RecursionError):
        raise CollectorError(WHAT, "py-spy's answer is not JSON", _OLD) from None
    if not isinstance(threads, list) or not threads:
        raise CollectorError(WHAT, "py-spy saw no thread of the interpreter", _INCONSISTENT)
    if not all(_plausible(thread) for thread in threads):
        raise CollectorError(WHAT, "the stacks changed while they were read", _INCONSISTENT)
    return tuple(threads)


def _plausible(thread: object) -> bool:
    if not isinstance(thread, dict) or not isinstance(thread.get("frames"), list):
        return False
    if len(thread["frames"]) > _MAX_FRAMES:
        return False
    for frame in thread["frames"]:
        if not isinstance(frame, dict):
            return False
        name, file, line = frame.get("name"), frame.get("filename"), frame.get("line")
        if not isinstance(name, str) or not isinstance(file, str) or not isinstance(line, int):
            return False
        # No function has an empty name, and none holds NUL: this is memory that was something else by then.
        if not name or "\0" in name or "\0" in file or not -1 <= line <= _MAX_LINE:
            return False
    return True


_HANGS = "run stucktrace again; if it stays so, `py-spy dump --nonblocking --pid PID` shows where py-spy hangs"
_OLD = "pip install --upgrade py-spy"
_INCONSISTENT = "run stucktrace again: a busy process is read without stopping it, and that can fail"


def explain(errors: str, status: int) -> CollectorError:
    """py-spy's complaint in one line, with what would help."""
    lines = [line.strip() for line in errors.partition("Stack backtrace:")[0].splitlines() if line.strip()]
    first = next((line.removeprefix("Error: ") for line in lines), f"py-spy ended with status {status}")
    lowered = errors.lower()
    if "permission denied" in lowered or "operation not permitted" in lowered or "(os error 1)" in lowered:
        return CollectorError(WHAT, "py-spy may not read the process's memory", memory.permission_remedy())
    if "no such process" in lowered or "check that the process is running" in lowered:
        return CollectorError(WHAT, "the process ended", "")
    if "failed to find python version" in lowered or "unsupported version" in lowered:
        return CollectorError(WHAT, "py-spy does not know this interpreter", _OLD)
    return CollectorError(WHAT, f"py-spy: {first[:200]}", _INCONSISTENT)


def _worth_a_retry(failure: CollectorError) -> bool:
    return failure.missing.remedy == _INCONSISTENT
