"""Retransmissions, state changes, errors and resets on the sockets of some processes during a sampling window.

Source: the kernel's TCP tracepoints (bpf/tcp.bpf.c), counted per socket in the kernel and attached for the window only.
Without BPF there are no events: what two looks at the sockets differ in tells less, but says the same in the end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from ctypes import c_uint8, c_uint32, c_uint64

from stucktrace.collectors import holders, libbpf, threads
from stucktrace.collectors.addresses import both_ends, tcp_state
from stucktrace.collectors.events import TcpCount, TcpKey
from stucktrace.collectors.hooks import Hooks, Window
from stucktrace.collectors.kernel import Kernel
from stucktrace.facts import Missing, TcpEvent

OBJECT = "tcp"
HOOKS: Mapping[str, str] = {
    "on_retransmit": "tcp_retransmit_skb",
    "on_state": "inet_sock_set_state",
    "on_error": "inet_sk_error_report",
    "on_reset": "tcp_receive_reset",
}
"""Program -> the tracepoint it sits on."""
_RETRANSMIT, _STATE, _ERROR, _RESET = 1, 2, 3, 4
_KINDS = {_RETRANSMIT: "retransmit", _STATE: "state", _ERROR: "error", _RESET: "reset-received"}


class Watch(Window):
    """A running window. `missing` names the hooks that this kernel does not have."""

    def __init__(self, pids: Collection[int], kernel: Kernel | None, loaded: libbpf.Object | None) -> None:
        super().__init__(pids, kernel, loaded)
        self._owners: defaultdict[int, set[int]] = defaultdict(set)
        """Socket inode -> those of the watched pids that hold it, or held it when the window began."""
        self._processes: dict[int, int] = {}
        """pid in the initial namespace -> pid."""

    def begin(self) -> None:
        """Puts the sockets and the processes into the kernel's filters."""
        if self._object is None or self._kernel is None:
            return
        self._learn_holders()
        sockets, processes = self._object.map("watched_sockets"), self._object.map("watched_processes")
        for inode in self._owners:
            sockets.update(c_uint64(inode), c_uint32(0))
        for pid, kernel_pid in threads.look(self._pids, self._kernel).kernel_pids.items():
            self._processes[kernel_pid] = pid
            processes.update(c_uint32(kernel_pid), c_uint8(1))

    def events(self) -> Mapping[int, tuple[TcpEvent, ...]]:
        """pid -> the events on its sockets so far; empty when nothing happened or nothing is counted."""
        if self._object is None:
            return {}
        found: defaultdict[int, list[TcpEvent]] = defaultdict(list)
        events = self._object.map("tcp_events")
        for key in events.keys(TcpKey):
            count = TcpCount()
            if not events.lookup(key, count):
                continue
            owners = self._owners.get(key.inode, set())
            if count.process in self._processes:
                owners = {self._processes[count.process]}
            for pid in owners:
                found[pid].append(_fact(key, count))
        return {pid: tuple(sorted(facts, key=lambda fact: (fact.inode, fact.kind))) for pid, facts in found.items()}

    def _learn_holders(self) -> None:
        for pid in self._pids:
            for inode in holders.sockets_of(pid):
                self._owners[inode].add(pid)


@contextmanager
def watching(pids: Collection[int], kernel: Kernel | None) -> Iterator[Watch]:
    """Counts while the context is open. Without BPF the watch is there but sees nothing."""
    with ExitStack() as stack:
        watch = Watch(pids, kernel, None)
        if kernel is not None:
            try:
                attached = Hooks(kernel, OBJECT, HOOKS, "TCP events")
                stack.callback(attached.close)
                watch = Watch(pids, kernel, attached.loaded)
                watch.begin()
                attached.attach()
                watch.missing = attached.missing
            except libbpf.BpfError as error:
                watch = Watch(pids, kernel, None)
                remedy = "none needed: two looks at the sockets tell most of it"
                watch.missing = (Missing("TCP events", str(error), remedy),)
        yield watch


def _fact(key: TcpKey, count: TcpCount) -> TcpEvent:
    local, remote = both_ends(count.family, count.local, count.local_port, count.remote, count.remote_port)
    return TcpEvent(
        kind=_KINDS.get(key.kind, ""),
        inode=key.inode,
        local=local,
        remote=remote,
        count=count.count,
        error=key.detail if key.kind == _ERROR else 0,
        new_state=tcp_state(key.detail) if key.kind == _STATE else "",
    )
