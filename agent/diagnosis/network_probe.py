"""What the answer to a probe (--probe) says of a connection.

An ACK proves that the peer's TCP has the connection; whether more than a segment without data passes, what is still
retransmitted tells, and the sequence number of that ACK: the peer may have sent what never came in. A reset proves that
nobody has it any more. Silence is an outage of a few seconds, seen at first hand: it adds to one that is known, and a
cut may still heal.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from stucktrace.diagnosis.model import Evidence, Finding
from stucktrace.diagnosis.words import age, count, size
from stucktrace.facts import ProbeFact, Snapshot, SocketFact

SOURCE = "tcp probe"


def lives(socket: SocketFact) -> bool:
    """The peer's TCP answered."""
    return socket.probe is not None and socket.probe.answer == "alive"


def forgotten(socket: SocketFact) -> bool:
    """The peer, or a firewall in its place, answered with a reset."""
    return socket.probe is not None and socket.probe.answer == "reset"


def unreceived(probe: ProbeFact | None) -> str:
    """What the living peer has sent and what is lost on its way; "": all came in, or it was not asked."""
    missing = probe.unreceived_bytes if probe is not None else 0
    return "" if not missing else "its FIN (or one byte)" if missing == 1 else size(missing)


def silent_s(socket: SocketFact) -> float:
    """For how long probes had no answer; 0: none was sent, or one was answered."""
    return socket.probe.seconds if socket.probe is not None and socket.probe.answer == "unreachable" else 0.0


def answered(socket: SocketFact) -> str:
    """The answer of a peer that lives, as part of a summary."""
    assert socket.probe is not None
    if socket.probe.after_s is None:
        return "it sends data just now, though its TCP acknowledged no probe"
    return f"its TCP answered a probe just now, within {_short(socket.probe.after_s)}"


def line(socket: SocketFact) -> Evidence | None:
    """The answer as evidence."""
    probe = socket.probe
    if probe is None:
        return None
    text = words(probe, socket.remote)
    if probe.answer == "alive" and socket.unacked and socket.retransmits:
        text += ", so the path is there again or loses only some segments (large ones, say)"
    return Evidence(SOURCE, "probe", probe.answer, text, time=probe.time or None)


def words(probe: ProbeFact, remote: str) -> str:
    """The answer in words."""
    if probe.answer == "alive" and probe.after_s is None:
        tries = count(probe.tries, "probe")
        return f"{remote} sends on the connection, so it has it, but acknowledged none of {tries}"
    if probe.answer == "alive":
        lost = (
            f"; by that answer's number it has sent {unreceived(probe)} that did not come in"
            if unreceived(probe)
            else ""
        )
        return f"the TCP of {remote} acknowledged a probe within {_short(probe.after_s)}: it has the connection{lost}"
    if probe.answer == "reset":
        return (
            f"{remote} answered a probe with a reset of the expected sequence number within {_short(probe.after_s)}: "
            "there, or at a firewall on the way, nobody knows the connection"
        )
    if probe.error:
        return f"{count(probe.tries, 'probe')} to {remote} could not leave this host: {probe.error}"
    tries = count(probe.tries, "probe")
    return f"{tries} within {age(probe.seconds)} had no answer, and nothing else of this connection came from {remote}"


def attach(snapshot: Snapshot, findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings, each with the answer of the peer of its connection, where that was asked."""
    return tuple(_attached(snapshot, finding) for finding in findings)


def _attached(snapshot: Snapshot, finding: Finding) -> Finding:
    socket = snapshot.socket(finding.fd)
    said = line(socket) if socket is not None else None
    if said is None or said in finding.evidence:
        return finding
    return replace(finding, evidence=(*finding.evidence, said))


def _short(seconds: float | None) -> str:
    """An answer comes in milliseconds."""
    if seconds is None:
        return "an unknown time"
    return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else age(seconds)
