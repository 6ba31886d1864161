"""Foreign data as it must not be: mutated bytes, and a whole inspection whose every read may come back changed."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import random
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack
from stucktrace.collectors import memory, procfs
from stucktrace.collectors.kernel import Opened
from stucktrace.errors import StucktraceError
from stucktrace.inspection import inspect_each
from stucktrace.report import build
from stucktrace.run import Options, Run
from stucktrace.sinks.text import render

INTERESTING = (b"\0", b"\xff", b"-", b"9" * 25, b" ", b"\n", b"(", b")", b":", b"/", b"=", b"\xc3", b"%", b"\0" * 8,
               b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\xed\xa0\x80", "\u0663".encode(), "\u00b2".encode())  # fmt: skip


ODD: tuple[Any, ...] = (None, True, 0, -1, 1 << 63, 10**400, 1e308, float("nan"), float("inf"), -0.0, "", "\0", "\u00b2", "\ud800",
       "9" * 5000, "x" * 3000, "10.0.0.1:99999999", [], {}, [[]], {"": None}, [None], {"pid": {}})  # fmt: skip


def mutate_structure(value: Any, chance: random.Random) -> Any:
    """One place in lists and mappings replaced, removed or doubled."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        kind = chance.randrange(12)
        if kind == 0:
            return {name: held for name, held in value.items() if name != key}
        if kind == 1:
            return {**value, chance.choice(("", "x", "\0")): value[key]}
        return {**value, key: mutate_structure(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.9:
        at, kind = chance.randrange(len(value)), chance.randrange(12)
        if kind == 0:
            return value[:at] + value[at + 1 :]
        if kind == 1:
            return [*value, value[at]]
        return [*value[:at], mutate_structure(value[at], chance), *value[at + 1 :]]
    return chance.choice(ODD)


def mutate_any(data: bytes, chance: random.Random) -> bytes:
    """JSON and msgpack in their structure, most often; the rest as bytes."""
    if chance.random() < 0.25:
        return mutate(data, chance)
    with contextlib.suppress(ValueError, RecursionError, OverflowError):
        return json.dumps(mutate_structure(json.loads(data), chance)).encode()
    with contextlib.suppress(Exception):
        record = msgpack.unpackb(data, strict_map_key=False, unicode_errors="surrogatepass")
        if isinstance(record, dict | list):
            packed: bytes = msgpack.packb(mutate_structure(record, chance), unicode_errors="surrogatepass")
            return packed
    return mutate(data, chance)


def mutate(data: bytes, chance: random.Random, times: int = 4) -> bytes:
    """Cut, doubled, swapped, overwritten: at up to so many places."""
    for _ in range(chance.randint(1, times)):
        at = chance.randint(0, len(data))
        end = min(len(data), at + chance.choice((1, 1, 2, 4, 8, chance.randint(0, 64))))
        match chance.randrange(7):
            case 0:
                data = data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
            case 1:
                data = data[:at] + data[end:]
            case 2:
                data = data[:at]
            case 3:
                data = data[:end] + data[at:]
            case 4:
                data = data[:at] + chance.choice(INTERESTING) + data[at:]
            case 5:
                data = data[:at] + chance.choice(INTERESTING) + data[end:]
            case 6:
                other = chance.randint(0, len(data))
                data = data[:at] + data[other : other + end - at] + data[end:]
    return data


@dataclass
class Corruption:
    """What is read of another process while `at_work`: each read is changed with the probability `share`."""

    chance: random.Random
    share: float
    reads: int = 0
    changed: int = 0
    _seen: list[bytes] = field(default_factory=list)
    """Words that were read before: a pointer to something else of the target is the worst pointer."""

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        before = memory._call, procfs.read
        memory._call, procfs.read = self._memory, self._proc  # type: ignore[assignment]
        try:
            yield
        finally:
            memory._call, procfs.read = before

    def _hit(self) -> bool:
        self.reads += 1
        hit = self.chance.random() < self.share
        self.changed += hit
        return hit

    def _memory(self, pid: int, ranges: Sequence[tuple[int, int]], buffer: object, size: int) -> int | None:
        taken = _REAL_CALL(pid, ranges, buffer, size)
        if not taken:
            return taken
        address = ctypes.addressof(buffer)  # type: ignore[arg-type]
        if taken >= 8 and len(self._seen) < 500:
            at = self.chance.randrange(taken // 8) * 8
            self._seen.append(ctypes.string_at(address + at, 8))
        if self._hit():
            kind = self.chance.randrange(6)
            at = self.chance.randrange(taken)
            if kind == 0:
                raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
            if kind == 1:
                return self.chance.randrange(taken)
            if kind == 2:
                new = bytes([self.chance.randrange(256)])
            elif kind == 3:
                at = at // 8 * 8
                new = self.chance.choice(self._seen or [bytes(8)])
            elif kind == 4:
                at = at // 8 * 8
                new = self.chance.choice((bytes(8), b"\xff" * 8, b"\x01" + bytes(7), b"\x7f" * 4, b"\xff\xff\xff\x7f"))
            else:
                at, new = 0, self.chance.randbytes(min(taken, 4096))
            ctypes.memmove(address + at, new, min(len(new), taken - at))
        return taken

    def _proc(self, pid: int, name: str, limit: int = 1 << 20) -> bytes:
        data = _REAL_READ(pid, name, limit)
        return mutate(data, self.chance)[:limit] if self._hit() else data


_REAL_CALL, _REAL_READ = memory._call, procfs.read


def inspect(pid: int, corruption: Corruption, kernel: Opened | None = None) -> tuple[list[str], float]:
    """Internal errors of one inspection of that process, as tracebacks, and how long it took."""
    found: list[str] = []

    class Told(Exception):
        pass

    def miss(self: Run, missing: object, of: int | None) -> None:
        if "internal error" in str(missing):
            found.append(traceback.format_exc())

    before, Run.miss = Run.miss, miss  # type: ignore[method-assign,assignment]
    began = time.monotonic()
    try:
        options = Options("none", native=corruption.chance.random() < 0.2, sample_s=0.05)
        with corruption.at_work():
            answers = dict(inspect_each((pid,), options, lambda: kernel or Opened(None, ())))
        for answer in answers.values():
            if not isinstance(answer, StucktraceError):
                if any("internal error" in str(missing) for missing in answer.snapshot.seen.missing):
                    found.append(str([m for m in answer.snapshot.seen.missing if "internal error" in str(m)]))
                found.extend(
                    finding.summary
                    for finding in answer.diagnosis.findings
                    if "failed" in finding.summary and "rule" in finding.summary
                )
                render(build(answer), verbose=True, width=100)
    except Exception:
        found.append(traceback.format_exc())
    finally:
        Run.miss = before  # type: ignore[method-assign]
    return found, time.monotonic() - began
