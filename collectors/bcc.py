"""Engine bcc: the same C compiled on the node by iovisor's bcc, for kernels with headers and without BTF.

Compiling takes a second or more and 220 MB, so a child does it (bcc_child.py), passes the descriptors of programs and
maps on, and ends. Programs are attached here, as raw tracepoints. Each object is compiled once and kept: between two
uses its maps are emptied.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import socket
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stucktrace.collectors import bcc_node, bcc_source, libbpf
from stucktrace.collectors.kernel import OBJECTS, Kernel
from stucktrace.collectors.libbpf import BpfError, Map, checked, library

DEADLINE_S = 300.0
"""For compiling: two to four seconds of CPU, of which a container may have a tenth."""
_CHILD = Path(__file__).with_name("bcc_child.py")
_ONE_AT_A_TIME = threading.Lock()
"""A compiler's memory is not to be had twice."""
_SPENT_S: list[float] = []
_MOST_FDS = 64
_ERROR = re.compile(r"^(?:/virtual/)?(?P<where>[^\s:]+:\d+):\d+: (?:fatal )?error: (?P<what>.*)$", re.MULTILINE)


def spent_s() -> float:
    """CPU time that compiling took so far: once for each object, so no load that goes on."""
    return sum(_SPENT_S)


class CompileError(BpfError):
    """In one line why there is no such program."""

    def __init__(self, name: str, because: str) -> None:
        super().__init__(errno.ENOEXEC, name)
        self.strerror = f"bcc could not compile {name}: {because}"


class StillCompiling(BpfError):
    def __init__(self, name: str) -> None:
        super().__init__(errno.EAGAIN, name)
        self.strerror = f"bcc is still compiling {name}: a later look has it"


class Link(libbpf.Link):
    """An attached program; `close` detaches it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @property
    def fd(self) -> int:
        return self._fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Object(libbpf.Object):
    """bpf/NAME.bpf.c, compiled and loaded. CompileError."""

    def __init__(self, folder: Path, name: str) -> None:
        try:
            text = bcc_source.text_of(name, folder)
        except OSError as error:
            raise CompileError(name, f"{error.filename} is missing") from None
        self._name = name
        self._tracepoints = bcc_source.hooks(text)
        try:
            with _ONE_AT_A_TIME:
                answer, fds = _compile(name, text, tuple(self._tracepoints))
        except CompileError:
            raise
        except OSError as error:
            raise CompileError(name, f"its process could not be started: {error.strerror or error}") from None
        self._programs = dict(zip(answer["programs"], fds, strict=False))
        self._refusals: Mapping[str, str] = answer["refusals"]
        self._maps = {each: Map(fd, each) for each, fd in zip(answer["maps"], fds[len(self._programs) :], strict=True)}
        if not self._programs:
            self.close()
            raise CompileError(name, _one_line(next(iter(self._refusals.values()), "it has no programs")))

    def close(self) -> None:
        for fd in (*self._programs.values(), *(each.fd for each in self._maps.values())):
            os.close(fd)
        self._programs, self._maps = {}, {}

    def has_map(self, name: str) -> bool:
        return name in self._maps

    def map(self, name: str) -> Map:
        return self._maps[name]

    def attach(self, program: str) -> Link:
        if program not in self._programs:
            raise CompileError(program, _one_line(self._refusals.get(program, "there is no such program")))
        tracepoint = self._tracepoints[program]
        fd = library().bpf_raw_tracepoint_open(tracepoint.encode(), self._programs[program])
        return Link(checked(fd, f"attach {program}"))

    def _program(self, name: str) -> int:
        raise BpfError(errno.EOPNOTSUPP, f"use {name} of another engine")

    def clear(self) -> None:
        """Empties the maps, for the next use."""
        for each in self._maps.values():
            each.clear()


class BccKernel(Kernel):
    """Each object is compiled when it is first asked for, and kept, empty, until `close`."""

    engine = "bcc"
    iterates = False

    def __init__(self) -> None:
        super().__init__()
        self._compiled: dict[str, Object] = {}
        self._refused: dict[str, BpfError] = {}
        self._begun: set[str] = set()

    def close(self) -> None:
        super().close()
        for compiled in self._compiled.values():
            compiled.close()
        self._compiled.clear()

    def load(self, name: str, programs: frozenset[str] | None = None) -> libbpf.Object:
        """Of one that stays (`lasting`) nothing waits for a compiler: it is there for a later look."""
        if name not in self._compiled and name not in self._refused:
            if not self.lasting:
                self._compile(name)
            elif name not in self._begun:
                self._begun.add(name)
                threading.Thread(target=self._compile, args=(name,), daemon=True).start()
        if name in self._refused:
            raise self._refused[name]
        if name not in self._compiled:
            raise StillCompiling(name)
        self._objects[name] = self._compiled[name]
        return self._compiled[name]

    def _compile(self, name: str) -> None:
        try:
            self._compiled[name] = Object(OBJECTS, name)
        except BpfError as error:
            self._refused[name] = error

    def unload(self, name: str) -> None:
        loaded = self._objects.pop(name, None)
        if loaded is not None:
            self._lost_before += loaded.lost_records()
            self._compiled[name].clear()


def _compile(name: str, text: str, hooks: tuple[str, ...]) -> tuple[dict[str, Any], list[int]]:
    python = bcc_node.python_with_bcc()
    if python is None:
        raise CompileError(name, "bcc is not installed")
    flags = ["-w", "-D__BCC__", f"-D__TARGET_ARCH_{bcc_node.ARCHITECTURES[platform.machine()]}"]
    if library().libbpf_probe_bpf_map_type(libbpf.RINGBUF, None) != 1:
        flags.append("-DRING_IS_PERF_ARRAY")
    job = json.dumps({"text": text, "cflags": flags, "hooks": hooks, "maps": bcc_source.maps(text)}).encode()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            child = subprocess.Popen(
                (python, "-I", _CHILD, str(theirs.fileno())),
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                pass_fds=(theirs.fileno(),), start_new_session=True,
            )  # fmt: skip
        try:
            _, said = child.communicate(job, timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise CompileError(name, f"bcc did not compile it within {DEADLINE_S:.0f} s") from None
        finally:
            child.kill()
            child.wait()
        data, fds, _, _ = socket.recv_fds(ours, 1 << 16, _MOST_FDS, socket.MSG_CMSG_CLOEXEC)
    said_text = said.decode(errors="replace")
    if not data:
        raise CompileError(name, f"bcc's process ended with status {child.returncode}: {_one_line(said_text)}")
    answer: dict[str, Any] = json.loads(data)
    _SPENT_S.append(answer["cpu_s"])
    if "absent" in answer:
        raise CompileError(name, f"{python} has no bcc")
    if "refused" in answer:
        raise CompileError(name, _one_line(said_text or answer["refused"]))
    if len(fds) < len(answer["programs"]) + len(answer["maps"]):
        for fd in fds:
            os.close(fd)
        raise CompileError(name, "there are no file descriptors left (LimitNOFILE, ulimit -n)")
    return answer, fds


def _one_line(said: str) -> str:
    """The compiler's first error, else the last line that says anything."""
    match = _ERROR.search(said)
    if match:
        return f"{match['where']}: {match['what']}"[:200]
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return (lines[-1] if lines else "it gave no reason")[:200]
