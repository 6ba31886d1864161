"""What each node of the graph is, in words: for those that draw it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from stucktrace.diagnosis import evidence
from stucktrace.diagnosis.lock_words import acquires_in, by_tid, title
from stucktrace.diagnosis.model import Edge
from stucktrace.diagnosis.words import age, process
from stucktrace.facts import Snapshot


def labels(snapshot: Snapshot, edges: Iterable[Edge]) -> Mapping[str, str]:
    """A line for each node that more is known of than its name says."""
    nodes = dict.fromkeys(node for edge in edges for node in (edge.source, edge.target))
    known = _known(snapshot)
    return {node: known[node] for node in nodes if node in known}


def _known(snapshot: Snapshot) -> Mapping[str, str]:
    waits = by_tid(snapshot)
    known: dict[str, str] = {}
    for thread in snapshot.threads:
        wait = waits.get(thread.tid)
        since = f", for {age(wait.age_s)}" if wait is not None and wait.age_s is not None else ""
        known[f"thread:{thread.tid}"] = f"{evidence.who(snapshot, thread.tid)}{acquires_in(wait)}{since}"
    for lock in snapshot.locks:
        known.setdefault(f"lock:{lock.address:#x}", title(lock))
        for step in lock.beyond:
            known[f"process:{step.pid}"] = process(step.pid, step.command)
            if step.lock is not None:
                known[f"lock:{step.pid}/{step.lock:#x}"] = (
                    f"the {step.kind.replace('-', ' ')} at {step.lock:#x} of pid {step.pid}"
                )
        owner = lock.owner
        if owner is not None and owner.state == "absent":
            number = owner.ns_tid or owner.tid or ""
            origin = "a thread of the parent" if owner.parent_thread else "which ended"
            name = " ".join(filter(None, ("thread", owner.name, f"(tid {number})" if number else "")))
            known[f"absent:{number}"] = f"{name}, {origin}: not in this process"
    for socket in snapshot.sockets:
        known[f"socket:{socket.inode}"] = f"{socket.protocol} {socket.local or '?'} -> {socket.remote or '?'}"
        if socket.peer is not None:
            known.update((f"process:{pid}", process(pid, socket.peer.command)) for pid in socket.peer.pids)
    for pipe in snapshot.pipes:
        fds = ", ".join(map(str, pipe.fds))
        known[f"pipe:{pipe.inode}"] = f"pipe {pipe.path or pipe.inode} (fd {fds})"
    for pool in snapshot.pools:
        size = f" of {pool.size}" if pool.size is not None else ""
        known[f"pool:{pool.address:#x}"] = f"pool {pool.name}{size} ({pool.kind})"
    for relative in snapshot.relatives:
        known[f"process:{relative.pid}"] = f"{process(relative.pid, relative.command)}, a {relative.relation}"
    own = snapshot.process
    known[f"process:{own.pid}"] = f"{process(own.pid, own.command)}, this process"
    return known
