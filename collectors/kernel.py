"""The kernel side of the tool: loads the BPF objects, runs their iterators, and says why where that is not possible.

One look needs one object (look.bpf.c); hooks for a sampling window are loaded when asked for. Whether a program works
is found out by trying it, never from the kernel's version.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from stucktrace.collectors import libbpf, permission
from stucktrace.errors import CannotInspect
from stucktrace.facts import Missing

OBJECTS = Path(__file__).parents[1] / "objects"
LOOK = "look"
_LOOKS = (
    {"threads": "threads", "sockets": "sockets", "peers": "peers"},
    {"threads": "threads", "sockets": "sockets_plain", "peers": "peers_plain"},
)
"""Iterator -> its program, in the forms of bpf/net_types.h; the first one that the kernel takes is used."""
HOOK_TRIED = "lifecycle", "on_exec_raw"
"""An object and a program of it that any kernel with BTF takes."""
_KERNEL_BTF = Path("/sys/kernel/btf/vmlinux")
_READ_BYTES = 1 << 18
_FOLLOW_REGISTERS = 2


class Kept(Protocol):
    def close(self) -> None: ...


class Kernel:
    """Loaded BPF programs. A context manager; closing it leaves nothing behind in the kernel.

    `without`: for tests, the means that the kernel is made to refuse (`libbpf.Object`), so that others have to serve.
    """

    engine = "core"
    iterates = True
    """It has iterators; else threads and sockets come from /proc and sock_diag."""

    def __init__(self, without: frozenset[str] = frozenset()) -> None:
        self._without = without
        self.hooks: dict[str, str] = {}
        """Subject -> the means in use; each collector that uses the kernel writes its own."""
        self.lasting = False
        """This process stays: what is slow to detach may stay attached, in `kept`, until `let_go`."""
        self.kept: dict[str, Kept] = {}
        self.refused: dict[tuple[str, str], libbpf.BpfError] = {}
        """(Subject, means) -> why it does not serve; not tried again."""
        self._objects: dict[str, libbpf.Object] = {}
        self._looks: Mapping[str, str] = _LOOKS[0]
        self._followed: frozenset[int] = frozenset()
        self._by_pid = True
        self._lost_before = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.let_go()
        for name in tuple(self._objects):
            self.unload(name)

    def let_go(self) -> None:
        """Detaches what is `kept`; that may take seconds."""
        while self.kept:
            self.kept.popitem()[1].close()

    def load(self, name: str, programs: frozenset[str] | None = None) -> libbpf.Object:
        """What bpf/NAME.bpf.c was compiled to, loaded once; only these programs when given. BpfError: it is refused."""
        if name not in self._objects:
            if name == LOOK:
                self._objects[name] = self._load_look()
            else:
                self._objects[name] = libbpf.Object(str(object_file(name)), programs, self._without)
        return self._objects[name]

    def _load_look(self) -> libbpf.Object:
        refused = None
        for programs in _LOOKS:
            try:
                loaded = libbpf.Object(str(object_file(LOOK)), frozenset(programs.values()), self._without)
            except libbpf.BpfError as error:
                refused = refused or error
            else:
                self._looks = programs
                return loaded
        assert refused is not None
        raise refused

    def unload(self, name: str) -> None:
        """Takes an object out of the kernel again; its lost records still count."""
        loaded = self._objects.pop(name, None)
        if loaded is not None:
            self._lost_before += loaded.lost_records()
            loaded.close()

    def lost_records(self) -> int:
        """Records that the kernel side had to drop, over all objects so far."""
        return self._lost_before + sum(loaded.lost_records() for loaded in self._objects.values())

    def follow(self, pids: Collection[int]) -> None:
        """Chooses the processes that node-wide iterations report (programs that ask `is_followed`)."""
        wanted = frozenset(pids)
        if wanted == self._followed:
            return
        followed = self.load(LOOK).map("followed")
        for pid in self._followed - wanted:
            followed.delete(ctypes.c_uint32(pid))
        for pid in wanted - self._followed:
            followed.update(ctypes.c_uint32(pid), ctypes.c_uint8(1))
        self._followed = wanted

    @contextmanager
    def with_registers(self, pid: int) -> Iterator[None]:
        """Meanwhile iterations over this process tell its sleeping threads' user-space registers too."""
        self.follow((pid,))
        followed = self.load(LOOK).map("followed")
        followed.update(ctypes.c_uint32(pid), ctypes.c_uint8(_FOLLOW_REGISTERS))
        try:
            yield
        finally:
            followed.update(ctypes.c_uint32(pid), ctypes.c_uint8(1))

    def iterate_over_node(self, name: str, program: str) -> bytes:
        """All records of one run of an iterator of bpf/NAME.bpf.c, which chooses by itself what it reports."""
        return _read_all(self.load(name).open_iterator(program))

    def iterate(self, program: str, pid: int | None) -> bytes:
        """All records of one run of an iterator: over this process only, or (None) node-wide over those followed.

        BpfError when the program cannot run. A pid that does not exist gives no records.
        """
        if pid is not None:
            self.follow((pid,))
        look = self.load(LOOK)
        program = self._looks[program]
        if pid is not None and self._by_pid:
            try:
                return _read_all(look.open_iterator(program, pid))
            except libbpf.BpfError as error:
                if error.errno in (errno.ESRCH, errno.ENOENT):
                    return b""
                # Kernels before 6.1 cannot iterate over one process; the programs filter by themselves.
                self._by_pid = False
        return _read_all(look.open_iterator(program))


def _read_all(fd: int) -> bytes:
    parts = []
    # A wake-up just before the programs run ties the scheduler's clock to theirs (`reader_arrival_ns`).
    time.sleep(1e-6)
    try:
        while True:
            try:
                part = os.read(fd, _READ_BYTES)
            except BlockingIOError:
                # A million tasks or files without a record: the kernel takes a breath.
                continue
            if not part:
                break
            parts.append(part)
    except OSError as error:
        raise libbpf.BpfError(error.errno or errno.EIO, "read the iterator") from None
    finally:
        os.close(fd)
    return b"".join(parts)


class Opened(NamedTuple):
    kernel: Kernel | None
    missing: tuple[Missing, ...]
    """Why there is no kernel, when it would have been used."""


def object_file(name: str) -> Path:
    """What bpf/NAME.bpf.c was compiled to for this machine."""
    return OBJECTS / f"{name}.{os.uname().machine}.bpf.o"


def open_kernel(engine: str, without: frozenset[str] = frozenset()) -> Opened:
    """The kernel side for an engine: "core" and "bcc" insist, "none" does without, "auto" takes the first there is.

    CannotInspect where one that was insisted on cannot be had. `without`: see `Kernel`.
    """
    if engine == "none":
        return Opened(None, ())
    if engine == "bcc":
        missing = _no_bpf() or _no_bcc()
        if missing is not None:
            raise CannotInspect(f"engine bcc cannot be used: {missing.because}", missing.remedy)
        return Opened(_bcc_kernel(), ())
    missing, forbidden = why_not(), False
    if missing is None:
        kernel = Kernel(without)
        try:
            kernel.load(LOOK)
        except (libbpf.BpfError, OSError) as error:
            missing = _missing(error)
            forbidden = error.errno == errno.EPERM
            if not forbidden and _takes_hooks(kernel):
                kernel.iterates = False
                because = f"this kernel does not take the iterators ({error})"
                remedy = "none needed: /proc and sock_diag were read instead; Linux 5.8 has them"
                return Opened(kernel, (Missing("threads and sockets through BPF", because, remedy),))
        else:
            return Opened(kernel, ())
    if engine == "core":
        raise CannotInspect(f"BPF cannot be used: {missing.because}", missing.remedy)
    if forbidden or _no_bpf() is not None:
        return Opened(None, (missing,))
    no_bcc = _no_bcc()
    if no_bcc is None:
        return Opened(_bcc_kernel(), ())
    because = f"{missing.because}, nor can engine bcc be used: {no_bcc.because}"
    return Opened(None, (Missing(missing.what, because, f"{no_bcc.remedy}; or {missing.remedy}"),))


def _takes_hooks(kernel: Kernel) -> bool:
    """Programs on tracepoints: raw ones are older than BTF."""
    try:
        kernel.load(HOOK_TRIED[0], frozenset({HOOK_TRIED[1]}))
        kernel.unload(HOOK_TRIED[0])
    except (libbpf.BpfError, OSError):
        return False
    return True


def _no_bcc() -> Missing | None:
    from stucktrace.collectors import bcc_node

    return bcc_node.why_not()


def _bcc_kernel() -> Kernel:
    """Nothing is compiled before it is asked for."""
    from stucktrace.collectors.bcc import BccKernel

    return BccKernel()


def has_btf() -> bool:
    return _KERNEL_BTF.exists()


def why_not() -> Missing | None:
    """Why BPF cannot be used, as far as that shows without loading anything; None: it may well work."""
    if not has_btf():
        return Missing(
            "BPF", "the kernel has no BTF (/sys/kernel/btf/vmlinux)", "a kernel with CONFIG_DEBUG_INFO_BTF=y"
        )
    if not object_file(LOOK).exists():
        because = f"there are no compiled BPF programs for {os.uname().machine}"
        return Missing("BPF", because, "install a wheel of stucktrace, on x86_64 or aarch64")
    return _no_bpf()


def _no_bpf() -> Missing | None:
    """Why no program at all can be loaded."""
    lacking = permission.lacking(*permission.FOR_BPF)
    if lacking:
        because = f"not permitted: {permission.caps(lacking)} missing"
        return Missing("BPF", because, permission.remedy(*permission.FOR_BPF))
    try:
        libbpf.library()
    except OSError:
        return Missing("BPF", f"{libbpf.SONAME} is not installed", "install the package libbpf1 (Debian) or libbpf")
    return None


def _missing(error: OSError) -> Missing:
    """One clear reason for a failure to load."""
    if error.errno != errno.EPERM:
        return Missing("BPF", f"this kernel does not take the programs ({error})", "use --engine none")
    because = "the kernel refused BPF although the capabilities are there"
    return Missing("BPF", because, permission.confined(locks_memory=True))
