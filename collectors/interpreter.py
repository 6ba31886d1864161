"""Is a process Python, and which: read from its mappings and its memory, never by running its interpreter.

Looked at in this order: the file names of its mappings (libpython3.11.so.1.0, an executable named python3.11, a
.cpython-311-*.so extension), the symbols that the mapped executable exports (`Py_Version`, `_PyRuntime`: a renamed or
statically linked interpreter), and where neither may be read, the name of the command. The exact version is
`Py_Version` (exported since CPython 3.11), else the start of `sys.version` in its static data. All of it comes from the
target's memory, so it holds across mount namespaces and for files that were deleted or replaced since.
"""

from __future__ import annotations

import errno
import re
import struct
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from stucktrace.collectors import elf, memory, regions
from stucktrace.collectors.regions import Region, Regions

# The static data of an interpreter is a few hundred kilobytes.
_MAX_DATA_BYTES = 4 << 20

_LIBRARY = re.compile(r"^libpython(\d)\.(\d+)([a-z]*)\.so")
_PYPY = re.compile(r"^(?:libpypy|pypy)(\d)?(?:\.(\d+))?(?:-c)?(?:\.so.*)?$")
_COMMAND = re.compile(r"^python(?:(\d)(?:\.(\d+))?)?([a-z]*)(?:-(?:dbg|intel64|debug))?$")
_EXTENSION = re.compile(r"\.cpython-(\d)(\d+)([a-z]*)-[^/]*\.so$")
_STDLIB = re.compile(r"/python(\d)\.(\d+)(t?)/(?:lib-dynload|site-packages|dist-packages)/")


@dataclass(frozen=True)
class Interpreter:
    """The interpreter in one process."""

    version: str
    """"3.11.2", "3.11" where only that much is known, "" when not even that."""
    executable: str
    """The path of the running program in the target's own view."""
    library: str = ""
    """The mapped file that holds the interpreter: a libpython, or the executable itself. "" when not known."""
    implementation: str = "cpython"
    """"cpython" or "pypy"."""
    free_threaded: bool = False
    runtime: tuple[int, int] | None = None
    """Start and size of `_PyRuntime` in the target's memory, where its symbol is exported."""
    source: str = ""
    """"library", "executable", "extension", "symbols" or "command"."""

    @property
    def minor(self) -> tuple[int, int] | None:
        """(3, 11), or None when not known."""
        parts = self.version.split(".")
        if len(parts) < 2 or not parts[0].isdecimal():
            return None
        digits = re.match(r"\d+", parts[1])
        return (int(parts[0]), int(digits.group())) if digits else None


def find(pid: int, known: Regions | None = None) -> Interpreter | None:
    """The interpreter of a process, None when it is not Python. Raises ProcessLookupError when it is gone."""
    try:
        mapped = known if known is not None else regions.read(pid)
    except FileNotFoundError:
        raise ProcessLookupError(errno.ESRCH, "gone") from None
    except PermissionError:
        return _from_command(pid)
    executable = _executable(pid, mapped)
    if not mapped.regions:
        return None
    return _from_mappings(pid, mapped, executable)


def _from_mappings(pid: int, mapped: Regions, executable: str) -> Interpreter | None:
    paths = dict.fromkeys(region.path for region in mapped.regions if region.path.startswith("/"))
    for path in paths:
        name = _alive(path).rpartition("/")[2]
        if found := _PYPY.match(name):
            version = ".".join(part for part in found.groups() if part)
            return Interpreter(version, _alive(executable), path, "pypy", source="library")
        if found := _LIBRARY.match(name):
            version = f"{found[1]}.{found[2]}"
            named = Interpreter(version, _alive(executable), path, "cpython", "t" in found[3], source="library")
            return _detailed(pid, mapped, named)
    hint, free_threaded, extension = _hint(paths)
    named = Interpreter(hint, _alive(executable), executable, "cpython", free_threaded, source="symbols")
    if found := _COMMAND.match(_alive(executable).rpartition("/")[2]):
        version = f"{found[1]}.{found[2]}" if found[2] else hint
        free_threaded = "t" in found[3] or free_threaded
        named = replace(named, version=version, free_threaded=free_threaded, source="executable")
        return _detailed(pid, mapped, named)
    if extension:
        return _detailed(pid, mapped, replace(named, source="extension"))
    answer = _detailed(pid, mapped, named)
    return answer if answer.runtime is not None else None


def _hint(paths: dict[str, None]) -> tuple[str, bool, bool]:
    """(version, free-threaded, from an extension module) as the names of the other mapped files tell."""
    for path in paths:
        found = _EXTENSION.search(_alive(path))
        if found:
            return f"{found[1]}.{found[2]}", "t" in found[3], True
    for path in paths:
        found = _STDLIB.search(path)
        if found:
            return f"{found[1]}.{found[2]}", bool(found[3]), False
    return "", False, False


def _detailed(pid: int, mapped: Regions, named: Interpreter) -> Interpreter:
    """Adds the exact version and `_PyRuntime` from memory, as far as it may be read."""
    runtime, version, library = None, named.version, named.library
    try:
        module = elf.module_of(pid, mapped, library)
        if module is not None:
            runtime = module.symbol("_PyRuntime")
            exact = module.symbol("Py_Version")
            if exact is not None:
                version = _from_hex(struct.unpack("<Q", memory.read(pid, exact[0], 8))[0]) or version
            elif runtime is not None or named.source != "symbols":
                version = _from_data(pid, mapped, library, version) or version
            if runtime is None and exact is not None:
                runtime = (exact[0], 8)
    except OSError:
        # Gone, or not permitted: what the names of its mappings told is all there is.
        pass
    return replace(named, version=version, runtime=runtime)


def _from_command(pid: int) -> Interpreter | None:
    """What the world-readable command line tells where the mappings may not be read."""
    try:
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        command = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except FileNotFoundError:
        raise ProcessLookupError(errno.ESRCH, "gone") from None
    except OSError:
        return None
    first = argv[0].decode(errors="replace")
    for name in (PurePosixPath(first).name, command):
        found = _COMMAND.match(name)
        if found:
            version = f"{found[1]}.{found[2]}" if found[2] else ""
            return Interpreter(version, first if first.startswith("/") else "", source="command")
    return None


def _executable(pid: int, mapped: Regions) -> str:
    try:
        return str(Path(f"/proc/{pid}/exe").readlink())
    except FileNotFoundError:
        return ""
    except OSError:
        return next((region.path for region in mapped.regions if region.path.startswith("/")), "")


def _alive(path: str) -> str:
    return path.removesuffix(" (deleted)")


def _from_hex(value: int) -> str:
    """PY_VERSION_HEX, for example 0x030b02f0, in words: "3.11.2"; a pre-release keeps its letter ("3.13.0b1")."""
    major, minor, micro, rest = (value >> 24) & 0xFF, (value >> 16) & 0xFF, (value >> 8) & 0xFF, value & 0xFF
    if major not in (3, 4):
        return ""
    level = {0xA: "a", 0xB: "b", 0xC: "rc"}.get(rest >> 4, "")
    return f"{major}.{minor}.{micro}" + (f"{level}{rest & 0xF}" if level else "")


def _from_data(pid: int, mapped: Regions, library: str, hint: str) -> str:
    """The start of `sys.version` ("3.9.18 (main, ..."), which Py_GetVersion keeps in a static buffer."""
    known = re.escape(hint.encode()) if hint else rb"(?:2\.7|3\.\d{1,2})"
    pattern = re.compile(rb"\0(" + known + rb"\.\d{1,2}(?:(?:a|b|rc)\d+)?)\+? \(")
    for region in data_of(mapped, library):
        found = pattern.search(memory.read_some(pid, region.start, min(_MAX_DATA_BYTES, region.size)))
        if found:
            return found.group(1).decode()
    return ""


def data_of(mapped: Regions, library: str) -> tuple[Region, ...]:
    """The writable data of the interpreter's file, with the zero-filled part behind it."""
    found: list[Region] = []
    for index, region in enumerate(mapped.regions):
        if region.path == library and region.writable:
            found.append(region)
            following = mapped.regions[index + 1] if index + 1 < len(mapped.regions) else None
            if following and following.start == region.end and not following.path and following.writable:
                found.append(following)
    return tuple(found)


def symbol(pid: int, mapped: Regions, path: str, name: str) -> tuple[int, int] | None:
    """(address, size) of a symbol that a mapped file exports; None when it does not. Raises OSError."""
    module = elf.module_of(pid, mapped, path)
    return module.symbol(name) if module is not None else None
