"""Which conntrack tables of this node hold the connections of some processes, and which of them lost one.

Source: sock_diag for the established connections of the processes' network namespaces; CTA GET in every table
(conntrack_tables.py), once for each new connection and again in turn; events, of the kernel's functions where they can
be had (conntrack_hooks.py), else of ctnetlink (conntrack_events.py), which only make it faster. What was seen
once is proof that a connection is tracked there, which later makes its absence a fact about this very connection.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace

from stucktrace.collectors import conntrack_events, conntrack_hooks, ctnetlink, holders, netns, sock_diag
from stucktrace.collectors.addresses import endpoint, is_loopback
from stucktrace.collectors.conntrack import Sighting, as_sent_on
from stucktrace.collectors.conntrack_events import NEW, FlowEvent
from stucktrace.collectors.conntrack_tables import Table, Tables
from stucktrace.collectors.ctnetlink import Tuple
from stucktrace.collectors.libbpf import BpfError
from stucktrace.facts import ConntrackFact, Missing

MOST_CONNECTIONS = 8192
QUESTIONS, QUESTIONS_AGAIN = 4096, 256
"""In one round: about new connections, and about those whose entry was seen before."""


DELETED_S = 0.02
"""From the call of the kernel's function to the entry's absence."""
HOLDERS_S = 2.0
"""How long it is taken for known who holds which socket."""


@dataclass(frozen=True)
class Lost:
    """A table lost the entry of a connection that lives."""

    pids: tuple[int, ...]
    """The watched processes that hold the socket."""
    inode: int
    local: str
    remote: str
    where: str
    """The network namespace."""
    time_s: float
    """CLOCK_MONOTONIC, when it was noticed."""
    reason: str = ""
    """Why it went, where that was seen."""


@dataclass(eq=False)
class _Connection:
    inode: int
    netns: int
    """In which its socket lives."""
    flow: Tuple
    names: set[Tuple] = field(default_factory=set)
    """What it is called on its way: addresses may be translated."""
    seen: dict[int, Sighting] = field(default_factory=dict)
    """Namespace -> its entry there."""
    lost: set[int] = field(default_factory=set)
    """Those of these namespaces that have it no longer."""


class Memory:
    """As `conntrack.Sightings`. Used by one thread, but for `of` and the public attributes, which any may read."""

    def __init__(self, tell: Callable[[Lost], None], hooks: conntrack_hooks.Stream | None = None) -> None:
        self.lost: frozenset[int] = frozenset()
        self.missing: tuple[Missing, ...] = ()
        self.facts: tuple[ConntrackFact, ...] = ()
        """Every table with entries; `window_drop` since the round before."""
        self.concerned: tuple[tuple[int, ConntrackFact], ...] = ()
        """(one of the processes whose connections it concerns, table)."""
        self.overruns = 0
        """How often the kernel dropped events."""
        self.means = hooks.means if hooks is not None else "ctnetlink"
        """What tells of an entry's end as it happens."""
        self._tell = tell
        self._hooks = hooks
        self._pids: Collection[int] = ()
        self._connections: dict[int, _Connection] = {}
        self._names: dict[Tuple, _Connection] = {}
        self._again: deque[tuple[int, int]] = deque()
        """(inode, namespace) of what was seen, the longest ago first."""
        self._tables = Tables(listen=hooks is None)
        self._homes: dict[int, int] = {}
        """Namespace -> the lowest pid of the processes that live there."""
        self._sockets: dict[int, socket.socket] = {}
        self._holders: dict[int, frozenset[int]] = {}
        self._holders_s = 0.0

    def fds(self) -> list[int]:
        """Readable when there are events."""
        hooks = [self._hooks.fd] if self._hooks is not None else []
        return hooks + [table.stream.fd for table in self._tables if table.stream is not None]

    def of(self, inode: int, flow: Tuple) -> tuple[Sighting, ...]:
        """Where the entry of this connection was seen."""
        found = self._connections.get(inode)
        return tuple(found.seen.values()) if found is not None and found.flow == flow else ()

    def close(self) -> None:
        if self._hooks is not None:
            self._hooks.close()
        self._tables.close()
        for diag in self._sockets.values():
            diag.close()

    def round(self, pids: Collection[int]) -> None:
        """One look at everything that concerns these processes."""
        self._pids = pids
        self._tables.refresh()
        self.missing = self._tables.missing
        tables = list(self._tables)
        self.facts = (*(table.fact for table in tables), *self._tables.counted.values())
        self._homes = {
            inode: pid for pid in sorted(self._pids, reverse=True) if (inode := netns.inode_of(pid)) is not None
        }
        if not tables:
            self._keep({})
            self.concerned = tuple(self._counted())
            return
        self._keep(self._established())
        self._ask_new(tables)
        self._ask_again()
        if self._hooks is not None:
            self._follow(self._hooks)
        self.concerned = tuple((pid, table.fact) for table in tables if (pid := self._concerned(table)) is not None)
        self.concerned += tuple(self._counted())

    def _counted(self) -> Iterator[tuple[int, ConntrackFact]]:
        """Those tables of which no more than their size is known."""
        for inode, fact in self._tables.counted.items():
            everybody = inode in (netns.own(), netns.inode_of(1))
            pid = min(self._pids, default=None) if everybody else self._homes.get(inode)
            if pid is not None:
                yield pid, fact

    def _concerned(self, table: Table) -> int | None:
        """The lowest pid of those that live with the table, or whose connections it holds.

        What leaves a container goes through the node's own table.
        """
        if table.netns in (netns.own(), netns.inode_of(1)):
            return min(self._pids, default=None)
        homes = {table.netns, *(known.netns for known in self._connections.values() if table.netns in known.seen)}
        return min((pid for inode, pid in self._homes.items() if inode in homes), default=None)

    def _established(self) -> dict[int, _Connection]:
        """The connections to other hosts of the namespaces that the watched processes live in."""
        own = self._homes
        for inode in self._sockets.keys() - own.keys():
            self._sockets.pop(inode).close()
        found: dict[int, _Connection] = {}
        for inode, pid in own.items():
            with suppress(OSError):
                if inode not in self._sockets:
                    self._sockets[inode] = netns.inside(pid, sock_diag.open_socket)
                for socket_inode, ends in sock_diag.connections(self._sockets[inode]):
                    if len(found) < MOST_CONNECTIONS and not is_loopback(ends[2]):
                        flow = Tuple(*ends)
                        found[socket_inode] = _Connection(socket_inode, inode, flow, {flow})
        return found

    def _keep(self, established: dict[int, _Connection]) -> None:
        """Forgets what ended, and takes in what is new."""
        for inode, known in list(self._connections.items()):
            if inode in established and established[inode].flow == known.flow:
                established[inode] = known
            else:
                for table in self._tables:
                    table.asked.pop(inode, None)
        self._connections = established
        self.lost = frozenset(inode for inode, known in established.items() if known.lost)
        self._names = {name: known for known in established.values() for name in known.names}

    def _ask_new(self, tables: list[Table]) -> None:
        """Asks every table about every connection once, and again when it turned out to have another name as well."""
        questions = QUESTIONS
        # The own namespace first: it may translate addresses.
        for known in list(self._connections.values()):
            for table in sorted(tables, key=lambda table: table.netns != known.netns):
                if table.asked.get(known.inode) == len(known.names):
                    continue
                questions -= len(known.names)
                if questions < 0:
                    return
                self._ask(table, known)

    def _ask(self, table: Table, known: _Connection) -> bool:
        """Whether the table has its entry."""
        names = sorted(known.names, key=lambda name: name != known.flow)
        table.asked[known.inode] = len(names)
        for name in names:
            try:
                entry = ctnetlink.find(table.asking, name)
            except OSError:
                return True
            if entry is None:
                continue
            if table.netns not in known.seen:
                self._again.append((known.inode, table.netns))
            known.seen[table.netns] = Sighting(table.netns, table.path, table.where, name, time.monotonic())
            known.names.add(as_sent_on(name, entry))
            for other in known.names:
                self._names[other] = known
            return True
        return False

    def _ask_again(self) -> None:
        """Whether the entries are still there, some of them in each round."""
        for _ in range(min(QUESTIONS_AGAIN, len(self._again))):
            inode, where = self._again.popleft()
            known, table = self._connections.get(inode), self._tables.get(where)
            if known is not None and table is not None and where in known.seen:
                self._again.append((inode, where))
                self._check(table, known)

    def _follow(self, hooks: conntrack_hooks.Stream) -> None:
        try:
            hooks.follow(self._names)
        except BpfError as error:
            because = f"the kernel does not tell at once of every lost entry ({error})"
            self.missing += (Missing("conntrack", because, "none needed: the tables are asked in turn"),)

    def _hear(self, hooks: conntrack_hooks.Stream) -> None:
        """What the kernel's functions tell: they are called before the entry is gone, so a table is asked twice."""
        reasons = {
            (known.inode, event.netns): event.reason
            for event in hooks.events()
            for known in self._about((event,))
            if event.netns is not None
        }
        for wait_s in (0.0, DELETED_S):
            time.sleep(wait_s if reasons else 0.0)
            for (inode, where), reason in list(reasons.items()):
                known, table = self._connections.get(inode), self._tables.get(where or 0)
                if known is not None and table is not None:
                    self._check(table, known, reason)
                    if where in known.lost:
                        del reasons[inode, where]

    def listen(self, ready: Collection[int]) -> None:
        """Takes the events of those of `fds` that are ready."""
        if self._hooks is not None and self._hooks.fd in ready:
            self._hear(self._hooks)
        for table in list(self._tables):
            if table.stream is None or table.stream.fd not in ready:
                continue
            try:
                events = table.stream.events()
            except OSError:
                continue
            for known in self._about(events):
                self._check(table, known)
            if table.stream.dump_again:
                table.stream.dump_again = False
                self.overruns += 1
                for known in [known for known in self._connections.values() if table.netns in known.seen]:
                    self._check(table, known)

    def _about(self, events: Iterable[FlowEvent]) -> list[_Connection]:
        """The connections whose entry vanished, or came back after it had."""
        found = {
            known.inode: known
            for event in events
            for name in conntrack_events.tuples(event)
            if (known := self._names.get(name)) is not None and (event.kind != NEW or known.lost)
        }
        return list(found.values())

    def _check(self, table: Table, known: _Connection, reason: str = "") -> None:
        """Whether a table that had the entry of a connection has it still."""
        if self._ask(table, known):
            known.lost.discard(table.netns)
        elif table.netns not in known.lost and table.netns in known.seen and self._lives(known):
            known.lost.add(table.netns)
            self._tell(replace(self._loss(table, known), reason=reason))
        self.lost = self.lost | {known.inode} if known.lost else self.lost - {known.inode}

    def _lives(self, known: _Connection) -> bool:
        """A connection that closed loses its entry as it should."""
        diag, flow = self._sockets.get(known.netns), known.flow
        if diag is None:
            return False
        with suppress(OSError):
            found = sock_diag.find_tcp(diag, flow.source, flow.source_port, flow.target, flow.target_port)
            return found is not None and found["inode"] == known.inode and found["state"] == "ESTABLISHED"
        return False

    def _loss(self, table: Table, known: _Connection) -> Lost:
        flow = known.flow
        if time.monotonic() - self._holders_s > HOLDERS_S:
            # A whole table can be lost at once: the fd tables are read once for all of it.
            self._holders = {pid: frozenset(holders.sockets_of(pid)) for pid in sorted(self._pids)}
            self._holders_s = time.monotonic()
        pids = tuple(pid for pid, inodes in self._holders.items() if known.inode in inodes)
        local, remote = endpoint(flow.source, flow.source_port), endpoint(flow.target, flow.target_port)
        return Lost(pids, known.inode, local, remote, table.where, time.monotonic())
