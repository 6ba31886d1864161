"""What a process does after its dead connection was ended: connects again, goes on, ends, or stays where it was.

Source: its sockets, and /proc/PID/task/TID/syscall of the thread that hung, ten times a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stucktrace.diagnosis.words import age, listing
from stucktrace.facts import SocketFact

if TYPE_CHECKING:
    from stucktrace.unstick import Plan

WATCH_S = 10.0
WATCH_EVERY_S = 0.1


@dataclass(frozen=True)
class Outcome:
    """What the process did next."""

    what: str
    """ "reconnected", "went-on", "ended" or "unchanged"."""
    after_s: float
    text: str
    remote: str = ""

    @property
    def good(self) -> bool:
        return self.what in ("reconnected", "went-on")


def look_on(
    plan: Plan,
    before: Collection[int],
    call_before: str | None,
    connections_of: Callable[[], Mapping[int, SocketFact] | None],
) -> Outcome:
    """Until the process has connected again or ended, or for a while. `before`: the inodes of its connections, and
    `call_before` the call of the thread, when the dead one was ended."""
    from stucktrace.collectors.process import still_same

    began, left_s = time.monotonic(), None
    while True:
        if not still_same(plan.process):
            after_s = time.monotonic() - began
            return Outcome("ended", after_s, f"the process ended {_after(after_s)}")
        connections, call = connections_of(), call_of(plan)
        after_s = time.monotonic() - began
        moved = call != call_before and not (call or "").startswith("running")
        if left_s is None and (moved or (connections is not None and plan.connection.inode not in connections)):
            left_s = after_s
        fresh = [
            other for inode, other in (connections or {}).items() if inode not in before and other.direction != "in"
        ]
        new = [other.remote for other in fresh if other.state == "ESTABLISHED"]
        again = next((remote for remote in new if same_service(plan.connection, remote)), "")
        # Another thread of it may connect at any time: what hung must have gone on too.
        if again and left_s is not None:
            text = f"the process connected again to {again} {_after(after_s)} and goes on"
            return Outcome("reconnected", after_s, text, again)
        if after_s > WATCH_S or (left_s is not None and plan.connection.direction == "in"):
            break
        time.sleep(WATCH_EVERY_S)
    trying = next((other.remote for other in fresh if other.state == "SYN_SENT"), "")
    if left_s is None:
        return Outcome("unchanged", after_s, f"nothing changed for {age(after_s)}: the thread is still in its call")
    text = f"the thread left its call {_after(left_s)} and the process goes on"
    if plan.connection.direction == "in":
        return Outcome("went-on", left_s, f"{text}; to connect again is its client's business")
    text += "; it has not connected again"
    if new:
        text += f" to that service, but to {listing(new)}"
    elif trying:
        text += f": {trying} does not answer"
    return Outcome("went-on", left_s, text)


def same_service(old: SocketFact, remote: str) -> bool:
    """The address may change with a name's; the port tells which service it is."""
    return remote.rpartition(":")[2] == old.remote.rpartition(":")[2]


def _after(seconds: float) -> str:
    return "at once" if seconds < WATCH_EVERY_S else f"within {age(seconds)}"


def call_of(plan: Plan) -> str | None:
    """The call that the thread is in, with its arguments; None when it is gone."""
    tid = plan.finding.tid
    try:
        with open(f"/proc/{plan.process.pid}/task/{tid}/syscall") as file:
            return file.read()
    except OSError:
        return None
