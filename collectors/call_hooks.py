"""Hears of the returns of the calls that bpf/waits.bpf.c counts, by the best means that the kernel takes.

    sys_exit     tp_btf or raw_tp, one program at the end of all calls: every call of the node pays for it meanwhile
    functions    fexit, a program at the end of each counted call's own function: other calls cost nothing
    tracepoints  the classic pair of each counted call, where tracefs is mounted already

What decides the order is the detaching: of one program it takes 0.3 ms; of the functions and of the classic tracepoints
the kernel waits for each one (measured: 3.5 s for 44 tracepoints; under emulation 5 to 26 s for the 22 functions). So a
command takes sys_exit, and an agent (`Kernel.lasting`) the functions, which stay attached from one window to the
next. A rung is all or nothing, for a call that is not heard of looks like one that never returns.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from ctypes import c_uint32
from typing import Protocol

from stucktrace.collectors import libbpf, syscalls
from stucktrace.collectors.events import CallKey, EnteredCall
from stucktrace.collectors.hooks import Hooks
from stucktrace.collectors.kernel import Kernel

OBJECT = "waits"
COUNTED = (
    "read write readv writev sendto recvfrom sendmsg recvmsg connect accept accept4 epoll_wait epoll_pwait "
    "epoll_pwait2 poll select pselect6 ppoll nanosleep clock_nanosleep futex sched_yield"
)
CALLS = tuple(name for name in COUNTED.split() if name in syscalls.NUMBERS)
"""As COUNTED in waits.bpf.c: those of them that this architecture has."""
NEWER = "epoll_pwait2"
"""Linux 5.11 has it first; all others are older than BPF."""
ENTER = {"futex": "enter_futex", "sched_yield": "enter_nothing"}
"""The program for a call that needs another argument than the first, or has none."""

SLOTS = 4096
"""As in waits.bpf.c."""

Prepare = Callable[[libbpf.Object], None]
"""Fills the maps of the loaded object."""
InCalls = Callable[[], Mapping[int, EnteredCall]]
"""Thread in the initial namespace -> the call that it is inside of now."""


class Returns(Protocol):
    loaded: libbpf.Object

    def close(self) -> None:
        """Counts no more."""


def attach(kernel: Kernel, prepare: Prepare, in_calls: InCalls) -> Returns:
    """Counts until the answer is closed. BpfError, with the first rung's reason, when the kernel takes none.

    What was refused while a lower rung served is not tried again.
    """
    rungs: dict[str, Callable[[], Returns]] = {
        "functions": lambda: _by_functions(kernel, prepare),
        "sys_exit": lambda: _SysExit(kernel, prepare),
        "tracepoints": lambda: _Tracepoints(kernel, prepare, in_calls),
    }
    if kernel.engine == "bcc":
        rungs = {"sys_exit": rungs["sys_exit"]}
    elif not kernel.lasting:
        rungs["functions"] = rungs.pop("functions")
    refused: dict[tuple[str, str], libbpf.BpfError] = {}
    for name, rung in rungs.items():
        if (OBJECT, name) in kernel.refused:
            continue
        try:
            returns = rung()
        except libbpf.BpfError as error:
            refused[OBJECT, name] = error
        else:
            kernel.refused.update(refused)
            return returns
    raise next(iter(refused.values()))


class _SysExit:
    def __init__(self, kernel: Kernel, prepare: Prepare) -> None:
        self._hooks = Hooks(kernel, OBJECT, {"count_return": "sys_exit"}, "counts of calls")
        self.loaded = self._hooks.loaded
        try:
            prepare(self.loaded)
            self._hooks.attach()
        except libbpf.BpfError:
            self.close()
            raise

    def close(self) -> None:
        self._hooks.close()


class _Linked:
    """Programs with any number of links each."""

    def __init__(self, kernel: Kernel, programs: frozenset[str]) -> None:
        self._kernel = kernel
        self._links: list[libbpf.Link] = []
        self.loaded = kernel.load(OBJECT, programs)

    def close(self) -> None:
        while self._links:
            self._links.pop().close()
        self._kernel.unload(OBJECT)


class Functions(_Linked):
    def __init__(self, kernel: Kernel, calls: tuple[str, ...]) -> None:
        programs = [f"end_{call}" for call in calls]
        super().__init__(kernel, frozenset(programs))
        try:
            for program in programs:
                self._links.append(self.loaded.attach(program))
        except libbpf.BpfError:
            self.close()
            raise


class _Window:
    """A window over functions that stay attached: other processes, other counts."""

    def __init__(self, functions: Functions, prepare: Prepare) -> None:
        self.loaded = functions.loaded
        self.close()
        prepare(self.loaded)

    def close(self) -> None:
        watched, slots, calls = (self.loaded.map(name) for name in ("watched", "watched_slots", "calls"))
        for kernel_pid in watched.keys(c_uint32):
            slots.update(c_uint32(kernel_pid.value % SLOTS), c_uint32(0))
            watched.delete(kernel_pid)
        for key in calls.keys(CallKey):
            calls.delete(key)


def _by_functions(kernel: Kernel, prepare: Prepare) -> Returns:
    functions = kernel.kept.get(OBJECT)
    if functions is None:
        try:
            functions = Functions(kernel, CALLS)
        except libbpf.BpfError as error:
            if error.errno not in (errno.ESRCH, errno.ENOENT):
                raise
            functions = Functions(kernel, tuple(call for call in CALLS if call != NEWER))
    assert isinstance(functions, Functions)
    kernel.hooks[OBJECT] = "fexit/syscalls"
    if kernel.lasting:
        kernel.kept[OBJECT] = functions
        return _Window(functions, prepare)
    try:
        prepare(functions.loaded)
    except libbpf.BpfError:
        functions.close()
        raise
    return functions


class _Tracepoints(_Linked):
    def __init__(self, kernel: Kernel, prepare: Prepare, in_calls: InCalls) -> None:
        super().__init__(kernel, frozenset({*ENTER.values(), "enter", "leave"}))
        try:
            prepare(self.loaded)
            for call in CALLS:
                self._attach(ENTER.get(call, "enter"), "sys_enter_", call)
            # A thread that was inside before cannot leave unheard of: the other half is not attached yet. And what it
            # has entered since stands there already.
            for tid, entered in in_calls().items():
                self.loaded.map("entered").add(c_uint32(tid), entered)
            for call in CALLS:
                self._attach("leave", "sys_exit_", call)
        except libbpf.BpfError:
            self.close()
            raise
        kernel.hooks[OBJECT] = "tracepoint/syscalls"

    def _attach(self, program: str, prefix: str, call: str) -> None:
        try:
            self._links.append(self.loaded.attach_tracepoint(program, "syscalls", prefix + call))
        except libbpf.BpfError as error:
            if call != NEWER or error.errno != errno.ENOENT:
                raise
