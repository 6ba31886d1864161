"""The Python side of a process: every thread's frames, innermost first, and who holds the GIL. Source: py-spy.

The thread ids are joined with the kernel's in `identity.py`; whether a thread runs or sleeps is the kernel's word alone
(py-spy calls every thread of another PID namespace active). The GIL's holder is not known on a free-threaded build.
A frame's function is qualified with its class from CPython 3.11 on ("Condition.wait"), and bare before ("wait").
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from stucktrace.collectors import identity, interpreter, pyspy
from stucktrace.collectors.command_line import HIDDEN, without_userinfo
from stucktrace.collectors.interpreter import Interpreter
from stucktrace.errors import CollectorError
from stucktrace.facts import Frame, ProcessFact, PythonFact, PythonThread, ThreadFact

_MAX_LOCAL = 200
_MAX_LOCALS = 50
_SECRET_NAME = re.compile(
    r"passw|passphrase|passcode|pwd|secret|token|credential|auth|cookie|session_?id|dsn|api_?key|private|"
    r"signature|(?:^|_)keys?$|(?:^|_)pass(?:$|_)|^environ$|^env$|broker_?url|connection_?string|conninfo",
    re.IGNORECASE,
)
# A URL that was cut off before its "@".
_CUT_USERINFO = re.compile(r"""(://[^\s'"/@:]*:)(?:[^\s'"@]+|[^\s'"@]*\.\.\.["']?)$""")
_PAIR = re.compile(
    r"""(["']?[\w.-]*(?:passw|pwd|secret|token|credential|auth|cookie|dsn|api[_-]?key|private)[\w.-]*["']?\s*[:=]\s*)"""
    r"""("(?:[^"\\]|\\.)*"?|'(?:[^'\\]|\\.)*'?|[^\s,;)}\]]+)""",
    re.IGNORECASE,
)
_BEARER = re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]+", re.IGNORECASE)


def collect(process: ProcessFact, threads: Collection[ThreadFact], *, native: bool, show_locals: bool) -> PythonFact:
    """Raises CollectorError where no stacks could be read: not Python, no py-spy, not permitted, gone."""
    try:
        found = interpreter.find(process.pid)
    except ProcessLookupError:
        raise CollectorError(pyspy.WHAT, "the process ended", "") from None
    if found is None:
        raise CollectorError(pyspy.WHAT, "no Python interpreter is loaded in this process", "")
    if found.implementation != "cpython":
        raise CollectorError(
            pyspy.WHAT, "PyPy's stacks cannot be read from outside", "run it under CPython to see stacks"
        )
    deadline_s = pyspy.deadline_s(len(threads), native=native)
    dump = pyspy.dump(process.pid, native=native, show_locals=show_locals, deadline_s=deadline_s)
    return from_dump(process.pid, dump, threads, found, native=native)


def from_dump(
    pid: int, dump: pyspy.Dump, threads: Collection[ThreadFact], found: Interpreter, *, native: bool
) -> PythonFact:
    joined = identity.join(pid, [_pair(thread) for thread in dump.threads], threads)
    by_tid: dict[int, PythonThread] = {}
    for raw in dump.threads:
        tid = joined.get(_pair(raw))
        if tid is None:
            continue
        thread = _thread(raw, tid)
        # One thread has a state in each interpreter that it ran in: the one with frames is where it is.
        if tid not in by_tid or len(thread.frames) > len(by_tid[tid].frames):
            by_tid[tid] = thread
    if not by_tid:
        raise CollectorError(
            pyspy.WHAT, "py-spy's threads could not be joined with the kernel's", "report this as a bug"
        )
    return PythonFact(
        found.version,
        tuple(by_tid.values()),
        gil_readable=not found.free_threaded and len(by_tid) == len({_pair(raw) for raw in dump.threads}),
        paused_at_most_s=dump.took_s if native else None,
    )


def _pair(raw: Mapping[str, Any]) -> tuple[int | None, int | None]:
    ident, told = raw.get("thread_id"), raw.get("os_thread_id")
    return ident if isinstance(ident, int) else None, told if isinstance(told, int) else None


def _thread(raw: Mapping[str, Any], tid: int) -> PythonThread:
    frames = tuple(_frame(frame) for frame in raw["frames"])
    ident, _ = _pair(raw)
    return PythonThread(tid, str(raw.get("thread_name") or ""), frames, raw.get("owns_gil") is True, ident)


def _frame(raw: Mapping[str, Any]) -> Frame:
    module = raw.get("module")
    found = raw.get("locals")
    return Frame(
        raw["name"],
        module or raw["filename"],
        raw["line"],
        native=module is not None,
        locals=tuple(_local(local) for local in found[:_MAX_LOCALS] if isinstance(local, dict))
        if isinstance(found, list)
        else (),
    )


def _local(raw: Mapping[str, Any]) -> tuple[str, str]:
    name = str(raw.get("name") or "?")
    value = raw.get("repr")
    return name, redact(name, value if isinstance(value, str) else "")


def redact(name: str, value: str) -> str:
    """The repr of a local with everything left out that its name or its shape says is a secret; bounded in length."""
    if _SECRET_NAME.search(name):
        return HIDDEN
    # Cut before the search too: a megabyte of text is no reason for a megabyte of matching.
    value = value[: 4 * _MAX_LOCAL]
    value = without_userinfo(value)
    value = _CUT_USERINFO.sub(rf"\1{HIDDEN}", value)
    value = _BEARER.sub(rf"\1 {HIDDEN}", value)
    value = _PAIR.sub(rf"\1{HIDDEN}", value)
    return value if len(value) <= _MAX_LOCAL else value[: _MAX_LOCAL - 3] + "..."
