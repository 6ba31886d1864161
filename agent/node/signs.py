"""What the kernel tells as it happens: who comes and goes, whose connections are in trouble, which flows are lost.

Each source that cannot be had is said once and done without: the scans see the same a little later.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import TypeVar

from stucktrace.collectors import conntrack_hooks, ctnetlink, lifecycle, permission, trouble
from stucktrace.collectors.conntrack_flows import Flows
from stucktrace.collectors.kernel import Kernel
from stucktrace.collectors.libbpf import BpfError
from stucktrace.collectors.lifecycle import LifeEvent
from stucktrace.collectors.trouble import Trouble
from stucktrace.facts import Missing
from stucktrace.node.owners import Owners

T = TypeVar("T")
MOST_UNOWNED = 1000
Note = Callable[[float, str, str, int | None], None]
"""Takes a line for the timeline: CLOCK_MONOTONIC seconds, category, message, pid."""


class Signs:
    def __init__(
        self, kernel: Kernel | None, wake: Callable[[], None], complain: Callable[[str, str], None], note: Note
    ) -> None:
        self._complain = complain
        self._note = note
        self._said: set[Missing] = set()
        self._life = self._opened("process events", lifecycle.Lifecycle, kernel)
        self._trouble = self._opened("TCP events", trouble.Stream, kernel)
        self.flows = Flows(wake, _conntrack_hooks(kernel))
        self._owners = Owners()
        self._unowned: OrderedDict[int, Trouble] = OrderedDict()
        """Inode -> the last event of a socket whose holder is not known yet, or is a stranger."""

    def _opened(self, what: str, kind: Callable[[Kernel], T], kernel: Kernel | None) -> T | None:
        if kernel is None:
            return None
        try:
            return kind(kernel)
        except BpfError as error:
            self._complain(f"{what}: {error}", "the scans see the same a little later")
            return None

    @property
    def fds(self) -> tuple[int, ...]:
        """To be polled: readable when there is something."""
        return tuple(source.fd for source in (self._life, self._trouble) if source is not None)

    @property
    def sees_ends(self) -> bool:
        """Signals, exits and the OOM killer are seen as they happen."""
        return self._life is not None and self._life.complete

    def watch(self, pids: Collection[int]) -> None:
        """Chooses the processes."""
        self.flows.watch(pids)
        if self._life is not None:
            try:
                self._life.watch(pids)
            except BpfError as error:
                self._complain(f"process events: {error}", "")
        for source in (self._life, self._trouble):
            for missing in set(source.missing if source is not None else ()) - self._said:
                self._said.add(missing)
                self._complain(f"cannot see {missing.what}: {missing.because}", f"{missing.remedy} helps")

    def life(self) -> list[LifeEvent]:
        """What happened to processes since the last call."""
        return self._life.events() if self._life is not None else []

    def suspects(self, pids: Collection[int], now: float) -> set[int]:
        """Those with a sign of trouble on a connection since the last call."""
        found: set[int] = set()
        for event in self._trouble.events() if self._trouble is not None else ():
            # A reset is how many clients end; where it hurts it is an error too.
            if event.kind != "reset":
                self._owners.ask((event.inode,))
                self._unowned[event.inode] = event
        while len(self._unowned) > MOST_UNOWNED:
            self._unowned.popitem(last=False)
        for inode, owners in self._owners.found(pids, now).items():
            found.update(owners)
            if inode in self._unowned:
                event = self._unowned.pop(inode)
                times = f"{event.count} times" if event.count > 1 else "once"
                self._note(event.time_s, "tcp", f"{event.kind} {event.local} to {event.remote}, {times}", owners[0])
        for lost in self.flows.news():
            found.update(lost.pids)
            text = f"the conntrack entry of {lost.local} to {lost.remote} is gone in {lost.where}"
            text += f": {lost.reason}" if lost.reason else ""
            self._note(lost.time_s, "conntrack", text, lost.pids[0] if lost.pids else None)
        for missing in self.flows.unsaid():
            self._complain(f"{missing.what}: {missing.because}", missing.remedy)
        return found


def _conntrack_hooks(kernel: Kernel | None) -> conntrack_hooks.Stream | None:
    """None: ctnetlink serves, as it does on many kernels.

    What is told is looked up in the tables: who may not ask these would only make every connection of the node pay.
    """
    if kernel is None or not ctnetlink.is_there() or permission.lacking("NET_ADMIN"):
        return None
    try:
        return conntrack_hooks.Stream(kernel)
    except BpfError:
        return None
