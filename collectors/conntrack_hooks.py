"""Conntrack entries of followed TCP connections deleted, evicted, refused or made anew, in any namespace, at once.

Source: functions of nf_conntrack (bpf/conntrack.bpf.c), by fentry where the kernel or the module has BTF, else by
kprobes; the kernel tells of the followed connections alone and counts the rest. Unlike ctnetlink (conntrack_events.py)
it needs no socket in each namespace, knows why an entry went, and tells of entries that are older than it.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Mapping
from ctypes import c_uint8, c_uint32, c_uint64
from typing import NamedTuple

from stucktrace.collectors import libbpf
from stucktrace.collectors.bpf_streams import open_stream
from stucktrace.collectors.conntrack_events import DESTROY, NEW, REFUSED, FlowEvent
from stucktrace.collectors.ctnetlink import Tuple
from stucktrace.collectors.events import ConntrackRecord, FlowKey
from stucktrace.collectors.kernel import Kernel

OBJECT = "conntrack"


class Hook(NamedTuple):
    program: str
    functions: tuple[str, ...]
    """It sits on the first of them that there is."""
    at_return: bool = False
    needed: bool = False


HOOKS = (
    # Where the compiler split the function, its own file calls the second part directly.
    Hook("on_delete", ("nf_ct_delete.part.0", "nf_ct_delete"), needed=True),
    Hook("on_insert", ("__nf_conntrack_hash_insert",)),
    Hook("on_alloc", ("__nf_conntrack_alloc",)),
    Hook("on_evict", ("early_drop",)),
    Hook("on_evicted", ("early_drop",), at_return=True),
)
_KINDS = {1: NEW, 2: DESTROY, 3: REFUSED}
_REASONS = {1: "evicted, for the table is full", 2: "deleted by a program", 3: "expired"}
COUNTERS = ("born", "gone", "evicted", "refused")
"""As enum conntrack_counter."""


class Stream:
    """The hooks, attached until `close`. BpfError when the kernel takes neither form.

    `means`: what is attached, as `fentry/nf_ct_delete,...`; `refused`: a form that the kernel did not take -> why.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._links: dict[str, libbpf.Link] = {}
        self._followed: set[Tuple] = set()
        self.refused: dict[str, str] = {}
        if kernel.engine != "core":
            raise libbpf.BpfError(errno.EOPNOTSUPP, "attach to functions without BTF")
        for means, attach in (("fentry", self._by_fentry), ("kprobe", self._by_kprobe)):
            try:
                self._loaded = attach()
                break
            except libbpf.BpfError as error:
                self.refused[means] = str(error)
                self._detach()
                if means == "kprobe":
                    raise
        self._flows, self._counts = self._loaded.map("flows"), self._loaded.map("counts")
        try:
            self._ring = open_stream(self._loaded.map("ring"))
        except libbpf.BpfError:
            self._detach()
            raise
        self.fd = self._ring.fd
        attached = ",".join(dict.fromkeys(self._links))
        self.means = f"{means}/{attached}"
        kernel.hooks[OBJECT] = self.means

    def _by_fentry(self) -> libbpf.Object:
        """All at once, for that is what most kernels take; else without the functions that are not there."""
        programs = {hook.program: hook for hook in HOOKS}
        try:
            loaded = self._kernel.load(OBJECT, frozenset(programs))
        except libbpf.BpfError:
            for program, hook in list(programs.items()):
                try:
                    self._kernel.load(OBJECT, frozenset({program}))
                    self._kernel.unload(OBJECT)
                except libbpf.BpfError:
                    if hook.needed:
                        raise
                    del programs[program]
            loaded = self._kernel.load(OBJECT, frozenset(programs))
        for program, hook in programs.items():
            self._attached(hook, hook.functions[-1], loaded.attach(program))
        return loaded

    def _by_kprobe(self) -> libbpf.Object:
        loaded = self._kernel.load(OBJECT, frozenset(f"{hook.program}_kprobe" for hook in HOOKS))
        for hook in HOOKS:
            for function in hook.functions:
                try:
                    link = loaded.attach_kprobe(f"{hook.program}_kprobe", function, at_return=hook.at_return)
                except libbpf.BpfError:
                    if hook.needed and function == hook.functions[-1]:
                        raise
                    continue
                self._attached(hook, function, link)
                break
        return loaded

    def _attached(self, hook: Hook, function: str, link: libbpf.Link) -> None:
        self._links[f"{function} return" if hook.at_return else function] = link

    def _detach(self) -> None:
        while self._links:
            self._links.popitem()[1].close()
        self._kernel.unload(OBJECT)

    def close(self) -> None:
        self._ring.close()
        self._detach()

    def follow(self, names: Iterable[Tuple]) -> None:
        """Chooses the connections, by every name that they have in some namespace. BpfError when they are too many."""
        wanted = frozenset(one for name in names for one in (name, name.reversed()))
        for gone in self._followed - wanted:
            self._flows.delete(_key(gone))
        # What is there, also when there is no room for the rest.
        self._followed &= wanted
        for new in wanted - self._followed:
            self._flows.update(_key(new), c_uint8(1))
            self._followed.add(new)

    def events(self) -> list[FlowEvent]:
        """What happened since the last call; never waits."""
        return [_event(ConntrackRecord.from_buffer_copy(data)) for data in self._ring.consume()]

    def counts(self) -> Mapping[str, int]:
        """How often on the whole node, by `COUNTERS`."""
        found = {}
        for index, name in enumerate(COUNTERS):
            value = c_uint64()
            self._counts.lookup(c_uint32(index), value)
            found[name] = value.value
        return found


def _key(flow: Tuple) -> FlowKey:
    addresses = flow.source.ljust(16, b"\0") + flow.target.ljust(16, b"\0")
    return FlowKey.from_buffer_copy(addresses + struct.pack("=HH", flow.source_port, flow.target_port))


def _tuple(key: FlowKey, size: int) -> Tuple:
    return Tuple(bytes(key.source)[:size], key.source_port, bytes(key.target)[:size], key.target_port)


def _event(record: ConntrackRecord) -> FlowEvent:
    size = 4 if record.family == socket.AF_INET else 16
    orig = _tuple(record.original, size)
    kind = _KINDS.get(record.kind, "")
    reply = _tuple(record.reply, size) if kind != REFUSED else orig.reversed()
    return FlowEvent(kind, orig, reply, record.time_ns / 1e9, record.netns, _REASONS.get(record.reason, ""))
