"""First signs of trouble on the TCP sockets of the whole node, in any network namespace, as they come.

Source: the kernel's TCP tracepoints (bpf/trouble.bpf.c), which count in the kernel: at most one record a second for
each socket and kind. Whose the socket is, its inode tells (/proc/*/fd); one without a holder is not reported.
"""

from __future__ import annotations

from dataclasses import dataclass

from stucktrace.collectors.addresses import both_ends
from stucktrace.collectors.events import TroubleRecord
from stucktrace.collectors.hooks import Hooks
from stucktrace.collectors.kernel import Kernel

OBJECT = "trouble"
HOOKS = {
    "on_retransmit": "tcp_retransmit_skb",
    "on_error": "inet_sk_error_report",
    "on_reset": "tcp_receive_reset",
}
"""Program -> the tracepoint it sits on."""
_KINDS = {1: "retransmit", 3: "error", 4: "reset"}


@dataclass(frozen=True)
class Trouble:
    kind: str
    """retransmit, error or reset (received)."""
    inode: int
    """Of the socket."""
    local: str
    remote: str
    count: int
    """How often since the last record of this socket and kind."""
    time_s: float
    """CLOCK_MONOTONIC."""
    netns: int = 0
    """Inode number of its network namespace."""
    error: int = 0
    """errno of an error."""


class Stream:
    """The hooks, attached until `close`. BpfError when the kernel takes none.

    `missing` names the hooks that this kernel does not have; `fd` becomes readable at once for a socket's first
    retransmission, and within a tick is soon enough for the rest.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._hooks = Hooks(kernel, OBJECT, HOOKS, "signs of trouble on TCP")
        self._ring = self._hooks.stream()
        self._hooks.attach()
        self.missing = self._hooks.missing
        self.fd = self._ring.fd

    def close(self) -> None:
        self._hooks.close()

    def events(self) -> list[Trouble]:
        """What happened since the last call; never waits."""
        return [_event(TroubleRecord.from_buffer_copy(data)) for data in self._ring.consume()]


def _event(record: TroubleRecord) -> Trouble:
    local, remote = both_ends(record.family, record.local, record.local_port, record.remote, record.remote_port)
    return Trouble(
        kind=_KINDS.get(record.kind, ""),
        inode=record.inode,
        local=local,
        remote=remote,
        count=record.count,
        time_s=record.time_ns / 1e9,
        netns=record.netns,
        error=record.error,
    )
