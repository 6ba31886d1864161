"""Ends the one dead connection that a process hangs on, so that its own retry takes over instead of a kill.

It acts on a proof alone: the verdict is `half-open` and `proven`, nobody else holds the socket, a second look just
before says the same of the same process, socket and tuple, and the peer's TCP, asked once more, does not answer: a path
that came back heals the connection with the next retransmission, which may be two minutes away. Everything else is
refused with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stucktrace import probing, unstick_watch
from stucktrace.diagnosis import network_probe
from stucktrace.diagnosis.model import PROVEN, Finding
from stucktrace.diagnosis.words import listing, process, size
from stucktrace.errors import CollectorError, Refused, StucktraceError
from stucktrace.facts import MASTERS, ProcessFact, SocketFact
from stucktrace.inspection import Inspection, Opening, follow, inspect_all
from stucktrace.run import Options
from stucktrace.unstick_watch import Outcome

if TYPE_CHECKING:
    from stucktrace.collectors.kernel import Kernel

NOTHING_DONE = "nothing was done"


@dataclass(frozen=True)
class Plan:
    """One connection to end, and why that may be done."""

    process: ProcessFact
    connection: SocketFact
    finding: Finding
    loses: str
    destroys: bool
    """The kernel has SOCK_DESTROY."""
    asks: bool = False
    """The peer's TCP can be asked just before."""

    @property
    def ended(self) -> bool:
        """The reset that a probe brought has ended it already."""
        return self.connection.probe is not None and self.connection.probe.answer == "reset"

    def lines(self) -> tuple[str, ...]:
        """What is going to be done, why, how, and what that may cost."""
        target, connection = self.process, self.connection
        fds = listing(f"fd {fd}" for fd in connection.fds)
        how = (
            "by SOCK_DESTROY: its call fails with ECONNABORTED (103), what is queued is thrown away"
            if self.destroys
            else "by shutdown(2) on a duplicate of its fd, for this kernel has no SOCK_DESTROY: its call ends with an "
            "end of file; what is queued may still be delivered, so that a message which is sent again arrives twice"
        )
        asks = (
            "; before that its peer is asked once more (a probe), and nothing is done if it answers"
            if self.asks
            else ""
        )
        unacked = f" ({size(connection.send_bytes)})" if connection.send_bytes else ""
        return (
            f"will end one connection of {process(target.pid, target.command)}: {fds}, {connection.local} -> "
            f"{connection.remote}",
            f"why: {self.finding.summary}",
            f"how: {how}{asks}",
            f"may be lost or doubled: what was sent and not acknowledged{unacked} may have arrived all the same; "
            f"{self.loses}",
        )


class Unsticker:
    """The steps, in their order: `plan`, `end`, `watch`, `verdict`."""

    def __init__(self, pid: int, options: Options) -> None:
        found = follow(pid)
        if len(found) != 1:
            raise Refused(
                f"process {pid} stands above several processes ({', '.join(map(str, found))})",
                "name the one that hangs",
            )
        self.pid = found[0]
        self._options = replace(options, children=False, siblings=False)
        self._opening = Opening(options.engine)
        self._before: frozenset[int] = frozenset()
        self._call: str | None = None

    def _look(self, *, probe: bool) -> Inspection:
        options = replace(self._options, probe=probe)
        answer = inspect_all((self.pid,), options, self._opening.opened)[self.pid]
        if isinstance(answer, StucktraceError):
            raise answer
        return answer

    def plan(self) -> Plan:
        """What would be done. Raises Refused with the reason why not."""
        self._before = frozenset(self._connections() or ())
        inspection = self._look(probe=self._options.probe)
        finding, connection = _proven(inspection)
        target = inspection.snapshot.process
        made = Plan(target, connection, finding, _loses(finding), destroys=True)
        if made.ended:
            return made
        _alone(target.pid, connection)
        from stucktrace.collectors import sock_destroy

        destroys = sock_destroy.can_destroy(target.pid, connection)
        return replace(made, destroys=destroys, asks=probing.possible(self._opening.opened().kernel))

    def end(self, plan: Plan) -> str:
        """Ends it, if a last look says the same: returns how ("destroyed", "shut-down", "ended-by-probe").

        Raises Refused, or CannotInspect where that is not permitted.
        """
        from stucktrace.collectors import sock_destroy

        inspection = self._look(probe=False)
        _, connection = _proven(inspection)
        target = inspection.snapshot.process
        before = (plan.process.pid, plan.process.start_time, *_identity(plan.connection))
        if (target.pid, target.start_time, *_identity(connection)) != before:
            raise Refused("the process hangs on another connection by now", f"{NOTHING_DONE}; look again")
        _alone(target.pid, connection)
        self._before, self._call = frozenset(self._connections() or ()), unstick_watch.call_of(plan)
        if plan.asks and self._asked(target.pid, connection) == "reset":
            return "ended-by-probe"
        known = self._connections() or {}
        if not _unheard(connection, known.get(connection.inode)):
            raise Refused(f"{connection.remote} was heard again at this moment", NOTHING_DONE)
        self._before = frozenset(known)
        if plan.destroys:
            sock_destroy.destroy(target.pid, connection)
            return "destroyed"
        sock_destroy.shut_down(target.pid, connection.fds[0], connection)
        return "shut-down"

    def _asked(self, pid: int, connection: SocketFact) -> str:
        """What the peer's TCP answers at the last moment. Raises Refused when it lives, or was not asked after all."""
        from stucktrace.collectors.tcp_probe import Unaskable

        try:
            answer = probing.ask(pid, (connection.inode,), self._opening.opened().kernel).get(connection.inode)
        except Unaskable:
            return ""
        except CollectorError as error:
            raise Refused(f"the peer could not be asked: {error.missing.because}", NOTHING_DONE) from None
        if answer is not None and answer.answer == "alive":
            raise Refused(
                f"{network_probe.words(answer, connection.remote)}; it heals with its next retransmission, or only "
                "small segments pass (look at the MTUs on the way)",
                NOTHING_DONE,
            )
        return answer.answer if answer is not None else ""

    def watch(self, plan: Plan) -> Outcome:
        """What the process does next."""
        return unstick_watch.look_on(plan, self._before, self._call, self._connections)

    def verdict(self) -> Finding | None:
        """What is said of the process now; None when it is gone."""
        try:
            return self._look(probe=False).diagnosis.verdict
        except StucktraceError:
            return None

    def _connections(self) -> dict[int, SocketFact] | None:
        """Its TCP connections; None when they cannot be read, as at its end."""
        from stucktrace.collectors import openfiles, sockets

        kernel: Kernel | None = self._opening.opened().kernel
        try:
            files = {self.pid: openfiles.read_fds(self.pid)}
            found = sockets.collect((self.pid,), files, kernel)[self.pid]
        except (CollectorError, StucktraceError, KeyError):
            return None
        return {socket.inode: socket for socket in found if socket.protocol == "tcp"}


def _proven(inspection: Inspection) -> tuple[Finding, SocketFact]:
    """The verdict and its connection. Raises Refused when that is no proven half-open one."""
    pid, verdict = inspection.snapshot.process.pid, inspection.diagnosis.verdict
    if verdict.code == "inconclusive":
        remedies = (each.remedy for each in inspection.snapshot.seen.missing if each.remedy)
        raise Refused(
            f"what pid {pid} hangs on cannot be told: {verdict.summary}",
            "; ".join((NOTHING_DONE, *dict.fromkeys(remedies))[:2]),
        )
    if verdict.code != "half-open":
        raise Refused(
            f"nothing proves that pid {pid} hangs on a dead connection: its verdict is {verdict.code} "
            f"({verdict.summary})",
            f"{NOTHING_DONE}; {_whom(inspection.snapshot.process)}",
        )
    if verdict.confidence != PROVEN:
        raise Refused(
            f"that the connection is half-open is only {verdict.confidence}: {verdict.summary}",
            f"{NOTHING_DONE}; it is proven by a reset (--probe), by a lost conntrack entry, or where a thread hangs on "
            "it when nothing was acknowledged for 30 s",
        )
    connection = inspection.snapshot.socket(verdict.fd)
    if connection is None or connection.protocol != "tcp":
        raise Refused("the verdict names no TCP connection", NOTHING_DONE)
    return verdict, connection


def _whom(target: ProcessFact) -> str:
    if target.worker.kind in MASTERS:
        return f"name the worker that hangs: stucktrace pid {target.pid} shows them"
    return "only a connection that is proven to be half-open is ended"


def _alone(pid: int, connection: SocketFact) -> None:
    """Raises Refused when another process holds the socket too, or one may: it would lose its connection as well."""
    from stucktrace.collectors import file_holders, permission, sharers
    from stucktrace.collectors.holders import command_of

    held, complete = file_holders.find((f"socket:[{connection.inode}]",))
    others = sorted({*connection.shared_with, *(each.pid for each in held)} - {pid})
    if others:
        names = listing(process(other, command_of(other)) for other in others)
        raise Refused(
            f"the connection to {connection.remote} is shared with {names}, which would lose it too",
            f"{NOTHING_DONE}; restart the processes",
        )
    hidden = () if complete else file_holders.unreadable()
    # A connection comes into another process by a fork.
    kin = next((other for other in hidden if sharers.may_share(other, (pid,))), None)
    if kin is not None:
        raise Refused(
            f"whether {process(kin, command_of(kin))} holds the connection to {connection.remote} too cannot be seen",
            f"{NOTHING_DONE}; {permission.to_read(kin, otherwise='')}",
        )


def _unheard(before: SocketFact, now: SocketFact | None) -> bool:
    """The very connection, and nothing has come from its peer since."""
    if now is None or _identity(now) != _identity(before) or now.state != before.state:
        return False
    if (now.bytes_acked, now.bytes_received) != (before.bytes_acked, before.bytes_received):
        return False
    return now.last_ack_s is None or before.last_ack_s is None or now.last_ack_s >= before.last_ack_s


def _identity(connection: SocketFact) -> tuple[int, str, str]:
    return connection.inode, connection.local, connection.remote


def _loses(finding: Finding) -> str:
    return next((step.loses for step in finding.now if step.loses), "the library's own retry sends it again, or nobody")
