"""How a Python process was started, where a title hides it: its own arguments and environment, from its memory.

setproctitle writes its title over the memory that /proc/PID/cmdline and /proc/PID/environ show. The interpreter keeps
the arguments it was given: `orig_argv` in its static data, a PyWideStringList (a length, and a pointer to that many
wchar_t strings on the heap; CPython 3.7 and later). The environment is where libc's `environ` points. A forked process
has its parent's, so of a family of workers one is searched and the others only confirm what stands in the same place.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

from stucktrace.collectors import command_line, interpreter, memory, procfs, regions
from stucktrace.collectors.interpreter import Interpreter
from stucktrace.collectors.regions import Regions

_MOST_WORDS = 255
_MOST_LETTERS = 4096
_MOST_VARIABLES = 512
_GAP_BYTES = 64 << 10
"""Strings no further apart are read together."""
_MOST_DATA_BYTES = 8 << 20
_EARLY_HEAP_BYTES = 16 << 20
"""The arguments are among the first things that the interpreter allocates."""
_LETTERS = re.compile(rb"((?:(?!\0\0\0\0).{4})*)\0\0\0\0", re.DOTALL)
_LIBC = re.compile(r"/(?:libc\.so\.6|libc-2\.\d+\.so|ld-musl-[^/]*|libc\.musl-[^/]*)$")

_found_at: dict[tuple[str, int], int] = {}
"""(interpreter's file, its load address) -> where the list of arguments stood in a process that is loaded there."""


def recall(pid: int, argv: tuple[str, ...]) -> tuple[tuple[str, ...], dict[str, str] | None]:
    """(the command line that the process was started with, its environment): from memory where a title hides them.

    `argv` is what it shows now. () and None for what cannot be read.
    """
    shown, environ = command_line.read(argv), procfs.read_environ(pid)
    if not shown.title and environ is not None:
        return argv, environ
    try:
        mapped = regions.read(pid)
        found = interpreter.find(pid, mapped)
    except OSError:
        found = None
    if found is None:
        return (() if shown.title else argv), environ
    if environ is None:
        environ = read_environ(pid, mapped, found) or None
    if shown.title:
        argv = read_argv(pid, mapped, found, lambda words: command_line.read(words).program == shown.program)
    return argv, environ


def read_argv(
    pid: int, mapped: Regions, found: Interpreter, plausible: Callable[[tuple[str, ...]], bool]
) -> tuple[str, ...]:
    """The longest list of strings that is a plausible command line; () when there is none, or it cannot be read."""
    try:
        place = next((region for region in mapped.regions if region.path == found.library), None)
        key = (found.library, place.start if place else 0)
        if key in _found_at:
            words = _words_at(pid, mapped, *struct.unpack("<QQ", memory.read(pid, _found_at[key], 16)))
            if words and plausible(words):
                return words
        best: tuple[tuple[str, ...], int] = (), 0
        for address, count, pointer in _lists(pid, mapped, found.library):
            words = _words_at(pid, mapped, count, pointer)
            if len(words) > len(best[0]) and plausible(words):
                best = words, address
        if best[1]:
            _found_at[key] = best[1]
        return best[0]
    except (OSError, struct.error):
        return ()


def _lists(pid: int, mapped: Regions, library: str) -> list[tuple[int, int, int]]:
    """(address, length, pointer) of what looks like a list whose first string begins with two wide letters."""
    heap = next((region for region in mapped.regions if region.path == "[heap]"), None)
    if heap is None:
        return []
    end = min(heap.end, heap.start + _EARLY_HEAP_BYTES)
    candidates = []
    for region in interpreter.data_of(mapped, library):
        data = memory.read_some(pid, region.start, min(region.size, _MOST_DATA_BYTES))
        # What all these pointers share are their upper bytes: far quicker to find than to look at every word.
        for upper in range(heap.start >> 24, (end - 1 >> 24) + 1):
            for match in re.finditer(re.escape(struct.pack("<Q", upper << 24)[3:]), data):
                at = match.start() - 3
                if at % 8 or at < 8:
                    continue
                count, pointer = struct.unpack_from("<QQ", data, at - 8)
                if 0 < count <= _MOST_WORDS and pointer % 8 == 0 and heap.start <= pointer < end:
                    candidates.append((region.start + at - 8, count, pointer))
    firsts = memory.read_words(pid, [pointer for _, _, pointer in candidates])
    strings = [
        (candidate, first)
        for candidate, first in zip(candidates, firsts, strict=True)
        if first and first % 4 == 0 and heap.start <= first < end
    ]
    begins = memory.read_words(pid, [first for _, first in strings])
    return [
        candidate
        for (candidate, _), begin in zip(strings, begins, strict=True)
        if begin is not None and all(0x20 <= letter < 0x110000 for letter in (begin & 0xFFFFFFFF, begin >> 32))
    ]


def _words_at(pid: int, mapped: Regions, count: int, pointer: int) -> tuple[str, ...]:
    if not 0 < count <= _MOST_WORDS or not _writable(mapped, pointer, 8 * count):
        return ()
    words = []
    for address in struct.unpack(f"<{count}Q", memory.read(pid, pointer, 8 * count)):
        word = _wide_string(pid, mapped, address)
        if word is None:
            return ()
        words.append(word)
    return tuple(words)


def _wide_string(pid: int, mapped: Regions, address: int) -> str | None:
    if address % 4 or not _writable(mapped, address, 4):
        return None
    found = _LETTERS.match(memory.read_some(pid, address, 4 * _MOST_LETTERS))
    try:
        # Surrogates stand for bytes of the command line that are no UTF-8.
        return found[1].decode("utf-32-le", "surrogatepass") if found else None
    except UnicodeDecodeError:
        return None


def _writable(mapped: Regions, address: int, size: int) -> bool:
    region = mapped.find(address)
    return region is not None and region.writable and address + size <= region.end


def read_environ(pid: int, mapped: Regions, found: Interpreter) -> dict[str, str]:
    """The environment as it is now; {} when it cannot be read. No value of it may leave this process."""
    libraries = [region.path for region in mapped.regions if _LIBC.search(region.path)]
    for path in dict.fromkeys((found.executable, *libraries)):
        try:
            symbol = interpreter.symbol(pid, mapped, path, "environ")
            if symbol is None:
                continue
            (table,) = struct.unpack("<Q", memory.read(pid, symbol[0], 8))
            if table:
                return _environ_at(pid, table)
        except (OSError, struct.error):
            continue
    return {}


def _environ_at(pid: int, table: int) -> dict[str, str]:
    data = memory.read_some(pid, table, 8 * _MOST_VARIABLES)
    pointers = [pointer for (pointer,) in struct.iter_unpack("<Q", data[: len(data) // 8 * 8])]
    if 0 not in pointers:
        return {}
    texts: dict[int, str] = {}
    together: list[int] = []
    for pointer in (*sorted(set(pointers[: pointers.index(0)])), 0):
        # Most variables lie side by side: they are read together.
        if together and not 0 <= pointer - together[-1] < _GAP_BYTES:
            data = memory.read_some(pid, together[0], together[-1] - together[0] + _MOST_LETTERS)
            for one in together:
                text, ended, _ = data[one - together[0] :].partition(b"\0")
                texts[one] = text.decode(errors="surrogateescape") if ended else ""
            together = []
        together.append(pointer)
    return procfs.parse_environ("\0".join(texts[pointer] for pointer in pointers[: pointers.index(0)]))
