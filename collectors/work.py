"""What each thread serves: the HTTP request or the Celery task, read from the variables of its frames.

The shape of the data tells, whatever server or framework made it:
- WSGI: a dict with REQUEST_METHOD and PATH_INFO;
- ASGI: a dict whose `type` is "http" or "websocket", with `path`;
- Celery: `uuid`, `name` and `time_start` of `trace_task`.
The outermost such frame counts: an inner one may be a call that this work makes itself. Only what names the work is
read: no query string, header, body or argument is ever fetched. Everything is read twice and has to agree, for a
running thread changes it. Source: process_vm_readv; nothing is stopped.
"""

from __future__ import annotations

import os
import re
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from stucktrace.collectors import interpreter, local_time, memory, python_frames, regions
from stucktrace.collectors.cpython_objects import Layout, Reader
from stucktrace.collectors.python_frames import Frame, Walk
from stucktrace.collectors.python_values import Values
from stucktrace.collectors.regions import Regions
from stucktrace.errors import CollectorError
from stucktrace.facts import ProcessFact, PythonFact, ThreadFact, WorkFact

WHAT = "work in hand"
DEADLINE_S = 0.1
LONGEST_NAME = 200
LONGEST_PATH = 300
LONGEST_PEER = 100
_MAX_DICTS = 200
_PERMISSION = "run as root, or with CAP_SYS_PTRACE in the target's user namespace"
_WSGI = ("REQUEST_METHOD", "PATH_INFO", "SCRIPT_NAME", "REMOTE_ADDR", "REMOTE_PORT")
_ASGI = ("type", "method", "path", "client")
_METHOD = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,30}")
_TASK_FRAME, _TASK_FILE = "trace_task", "celery/app/trace.py"


@dataclass(frozen=True)
class _Work:
    """One reading: the fact, but for its age, and when the work began by which clock."""

    fact: WorkFact
    monotonic: float | None = None
    local: datetime | None = None


def collect(process: ProcessFact, threads: Sequence[ThreadFact], python: PythonFact | None) -> tuple[WorkFact, ...]:
    """At most one fact a thread. Raises CollectorError when the memory may not be read."""
    idents = {thread.ident: thread.tid for thread in python.threads if thread.ident and thread.frames} if python else {}
    if python is None or not idents:
        return ()
    try:
        mapped = regions.read(process.pid)
        found = interpreter.find(process.pid, mapped)
        reader = Reader(process.pid, mapped, Layout())
        walk = python_frames.walk(reader, found, DEADLINE_S)
        if walk is None or found is None or found.minor is None:
            return ()
        tasks = {
            thread.tid
            for thread in python.threads
            if any(frame.function.rpartition(".")[2] == _TASK_FRAME for frame in thread.frames)
        }
        target = _Target(walk, Values(reader, found.minor))
        readings = {}
        for state in walk.states():
            tid = walk.owner(state, idents)
            if tid is not None and tid not in readings and (work := target.work(state, tid, tid in tasks)) is not None:
                readings[tid] = work
    except (ProcessLookupError, FileNotFoundError):
        raise CollectorError(WHAT, "the process ended", "") from None
    except PermissionError:
        raise CollectorError(WHAT, "its memory may not be read", _PERMISSION) from None
    except (OSError, struct.error):
        # A thread state that went while it was read.
        return ()
    slept_s = {thread.tid: thread.blocked_s or 0.0 for thread in threads}
    return tuple(
        replace(work.fact, age_s=_age_s(process, mapped, work, slept_s.get(tid, 0.0))) for tid, work in readings.items()
    )


class _Target:
    def __init__(self, walk: Walk, values: Values) -> None:
        self._walk = walk
        self._values = values
        self._pid = walk.pid
        self._names: dict[int, tuple[str, ...]] = {}

    def work(self, state: int, tid: int, may_run_task: bool) -> _Work | None:
        """What this thread serves, by its outermost frame that tells."""
        try:
            frames = list(self._walk.frames(state))[::-1]
            slots = [self._walk.slots(frame) for frame in frames]
        except ProcessLookupError:
            raise
        except (OSError, struct.error):
            return None
        held = memory.read_words(self._pid, [slot for each in slots for slot in each])
        objects = [word for word in held if word and word % 8 == 0]
        kinds = dict(zip(objects, self._values.types(objects), strict=True))
        words = iter(held)
        seen: set[int] = set()
        for frame, each in zip(frames, slots, strict=True):
            variables = [next(words) or 0 for _ in each]
            if may_run_task and (work := self._twice_task(frame, each, tid)) is not None:
                return work
            for index, value in enumerate(variables):
                if kinds.get(value) == "cell":
                    value = self._values.content(value) or 0
                    kinds[value] = self._values.type(value) if value else ""
                if kinds.get(value) != "dict" or value in seen or len(seen) >= _MAX_DICTS:
                    continue
                seen.add(value)
                if (work := self._twice_request(frame, each[index], value, tid)) is not None:
                    return work
        return self._in_thread_of_a_pool(frames, tid)

    def _in_thread_of_a_pool(self, frames: list[Frame], tid: int) -> _Work | None:
        """Frameworks on an event loop run a plain function in a thread, where its `request` alone knows the scope."""
        for frame in frames:
            scope = self._scope(frame)
            if scope is None or (work := self._request(frame, scope, tid)) is None:
                continue
            return work if self._scope(frame) == scope and self._request(frame, scope, tid) == work else None
        return None

    def _scope(self, frame: Frame) -> int | None:
        """The address of the scope or environ that this frame's `request` has as an attribute."""
        request = self._variable(frame, "request") if self._still(frame) else None
        if request is None:
            return None
        return self._values.attribute(request, "scope") or self._values.attribute(request, "environ")

    def _twice_request(self, frame: Frame, slot: int, address: int, tid: int) -> _Work | None:
        """Two readings that agree, and the frame still holds this dict."""
        work = self._request(frame, address, tid)
        if work is None or self._request(frame, address, tid) != work:
            return None
        return work if self._still(frame) and self._holds(slot, address) else None

    def _holds(self, slot: int, address: int) -> bool:
        """This variable, or the cell that it is, holds the object at this address."""
        (word,) = memory.read_words(self._pid, [slot])
        return word == address or (word is not None and self._values.content(word) == address)

    def _twice_task(self, frame: Frame, slots: range, tid: int) -> _Work | None:
        work = self._task(frame, slots, tid)
        return work if work is not None and self._task(frame, slots, tid) == work and self._still(frame) else None

    def _still(self, frame: Frame) -> bool:
        (code,) = memory.read_words(self._pid, [frame.address + self._walk.offsets.code])
        return code == frame.code

    def _request(self, frame: Frame, address: int, tid: int) -> _Work | None:
        found = self._values.entries(address, (*_WSGI, *_ASGI))
        if not found:
            return None
        fact = self._wsgi(found, tid) or self._asgi(found, tid)
        return _Work(fact, local=self._began(frame)) if fact is not None else None

    def _began(self, frame: Frame) -> datetime | None:
        """gunicorn keeps beside the environ when it began to handle the request, as local time."""
        address = self._variable(frame, "request_start")
        return self._values.moment(address) if address else None

    def _wsgi(self, found: dict[str, int], tid: int) -> WorkFact | None:
        method, path = self._text(found, "REQUEST_METHOD", 32), self._text(found, "PATH_INFO", 4 * LONGEST_PATH)
        if method is None or path is None or not _METHOD.fullmatch(method):
            return None
        mount = self._text(found, "SCRIPT_NAME", LONGEST_PATH) or ""
        peer = self._text(found, "REMOTE_ADDR", LONGEST_PEER) or ""
        return _fact(tid, method, _as_utf8(mount + path), _peer(peer, self._port(found.get("REMOTE_PORT"))))

    def _asgi(self, found: dict[str, int], tid: int) -> WorkFact | None:
        kind, path = self._text(found, "type", 16), self._text(found, "path", 4 * LONGEST_PATH)
        method = self._text(found, "method", 32) if kind == "http" else "websocket"
        if kind not in ("http", "websocket") or path is None or method is None:
            return None
        if kind == "http" and not _METHOD.fullmatch(method):
            return None
        client = self._values.items(found["client"]) if "client" in found else None
        host = self._values.text(client[0], LONGEST_PEER) if client else None
        port = self._port(client[1]) if client and len(client) > 1 else None
        return _fact(tid, method, path, _peer(host or "", port))

    def _task(self, frame: Frame, slots: range, tid: int) -> _Work | None:
        code = self._walk.code(frame.code)
        if code is None or self._values.text(code.function, 32) != _TASK_FRAME:
            return None
        if not (self._values.text(code.file, 4096) or "").endswith(_TASK_FILE):
            return None
        id_, name, began = (self._variable(frame, each) for each in ("uuid", "name", "time_start"))
        task = self._values.text(name, LONGEST_NAME) if name else None
        task_id = self._values.text(id_, LONGEST_NAME) if id_ else None
        if not task or not task_id:
            return None
        return _Work(
            WorkFact(tid, "task", task, task_id), monotonic=self._values.number(began) if began is not None else None
        )

    def _variable(self, frame: Frame, name: str) -> int | None:
        """The address of a frame's variable, out of its cell when it is in one."""
        names, slots = self._variables(frame.code), self._walk.slots(frame)
        if name not in names or len(names) != len(slots):
            return None
        # Up to 3.10 a variable that became a cell has a slot of each kind; the cell is the later one.
        index = len(names) - 1 - names[::-1].index(name)
        (value,) = memory.read_words(self._pid, [slots[index]])
        if not value:
            return None
        return self._values.content(value) if self._values.type(value) == "cell" else value

    def _variables(self, address: int) -> tuple[str, ...]:
        if address not in self._names:
            code = self._walk.code(address)
            tuples = [self._values.items(each) or () for each in code.names] if code is not None else []
            self._names[address] = tuple(self._values.short_texts([name for each in tuples for name in each]))
        return self._names[address]

    def _text(self, found: dict[str, int], key: str, longest: int) -> str | None:
        return self._values.text(found[key], longest) if key in found else None

    def _port(self, address: int | None) -> int | None:
        """A port, kept as int or as text."""
        if address is None:
            return None
        text = self._values.text(address, 5)
        value = int(text) if text is not None and text.isdecimal() else self._values.integer(address)
        return value if value is not None and 0 < value < 1 << 16 else None


def _fact(tid: int, method: str, path: str, peer: str) -> WorkFact:
    path = path.partition("?")[0]
    if "://" in path:
        # A proxy's request line; who asks may have put a password there.
        path = "/" + path.partition("://")[2].partition("/")[2]
    path = _bounded(path or "/", LONGEST_PATH)
    return WorkFact(tid, "request", _bounded(f"{method} {path}", LONGEST_NAME), method=method, path=path, peer=peer)


def _bounded(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _as_utf8(path: str) -> str:
    """WSGI hands over the bytes of a path as latin-1."""
    try:
        # The end may be cut in the middle of a character.
        return path.encode("latin-1").decode("utf-8", errors="ignore" if len(path) > LONGEST_PATH else "strict")
    except ValueError:
        return path


def _peer(host: str, port: int | None) -> str:
    if not host or port is None:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _age_s(process: ProcessFact, mapped: Regions, work: _Work, slept_s: float) -> float | None:
    """For how long the work has lasted; None where it cannot be said for certain."""
    ages: list[float] = []
    if work.monotonic is not None and _same_monotonic_clock(process.pid):
        ages = [time.monotonic() - work.monotonic]
    elif work.local is not None:
        try:
            ages = local_time.ages_s(process.pid, mapped, work.local)
        except OSError:
            ages = []
    # It began after the process, and before the thread's present sleep; else a clock was set meanwhile.
    process_s = time.clock_gettime(time.CLOCK_BOOTTIME) - process.start_time / os.sysconf("SC_CLK_TCK")
    possible = [age for age in ages if slept_s - 0.1 <= age <= process_s + 0.1]
    return max(possible[0], 0.0) if len(possible) == 1 else None


def _same_monotonic_clock(pid: int) -> bool:
    """It is not in a time namespace of its own."""
    try:
        return os.readlink(f"/proc/{pid}/ns/time") == os.readlink("/proc/self/ns/time")
    except FileNotFoundError:
        # A kernel without time namespaces.
        return True
    except OSError:
        return False
