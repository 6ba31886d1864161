"""The report: one inspection as plain data, schema `stucktrace.report/1` (see report.schema.json beside this file).

Addresses are hex strings, ages seconds, times CLOCK_REALTIME seconds. What is not known is null, never left out.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stucktrace import __version__, report_amqp, report_broker, report_greenlets, report_locks
from stucktrace.collectors.command_line import without_userinfo
from stucktrace.diagnosis import libraries, network_probe
from stucktrace.diagnosis.model import Diagnosis, Finding
from stucktrace.diagnosis.tcp_timers import detection_window_s, gives_up_s
from stucktrace.facts import (
    Frame,
    NativeStack,
    PoolFact,
    ProcessFact,
    Snapshot,
    SocketFact,
    ThreadFact,
    WorkFact,
)

if TYPE_CHECKING:
    from stucktrace.inspection import Inspection

SCHEMA = "stucktrace.report/1"

Json = dict[str, Any]


def build(inspection: Inspection) -> Json:
    """The whole report of one inspected process."""
    snapshot, diagnosis = inspection.snapshot, inspection.diagnosis
    return {
        "schema": SCHEMA,
        "time": round(snapshot.time, 6),
        "tool": {"version": __version__},
        "host": host(),
        "verdict": _finding(snapshot, diagnosis.verdict),
        "findings": [_finding(snapshot, finding) for finding in diagnosis.findings],
        "process": _process(snapshot.process),
        "threads": [_thread(snapshot, diagnosis, thread) for thread in snapshot.threads],
        "sockets": [_socket(socket) for socket in snapshot.sockets],
        "locks": report_locks.build(snapshot),
        "pools": [_pool(pool) for pool in snapshot.pools],
        "greenlets": report_greenlets.build(snapshot),
        "amqp": report_amqp.build(snapshot, diagnosis.verdict),
        "broker": report_broker.build(snapshot),
        "graph": _graph(diagnosis),
        "children": [_child(child) for child in inspection.children],
        "siblings": {"same_wait": inspection.siblings.same_wait, "total": inspection.siblings.total}
        if inspection.siblings
        else None,
        "seen": {
            "engine": snapshot.seen.engine,
            "hooks": dict(snapshot.seen.hooks),
            "lost_records": snapshot.seen.lost_records,
            "paused_at_most_s": _seconds(_pause_s(snapshot)),
            "missing": [
                {"what": missing.what, "because": missing.because, "remedy": missing.remedy}
                for missing in snapshot.seen.missing
            ],
        },
        "timings_ms": {name: round(value, 3) for name, value in inspection.timings_ms.items()},
    }


@cache
def host() -> Json:
    """The node that the report is about."""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot_id = ""
    system = os.uname()
    return {"node": os.environ.get("NODE_NAME") or system.nodename, "kernel": system.release, "boot_id": boot_id}


def _child(child: Inspection) -> Json:
    verdict = child.diagnosis.verdict
    worker = child.snapshot.process.worker
    return {
        "pid": child.snapshot.process.pid,
        "role": worker.kind,
        "verdict": {
            "class": verdict.verdict_class,
            "code": verdict.code,
            "confidence": verdict.confidence,
            "summary": verdict.summary,
        },
    }


def _finding(snapshot: Snapshot, finding: Finding) -> Json:
    return {
        "class": finding.verdict_class,
        "code": finding.code,
        "severity": finding.severity,
        "confidence": finding.confidence,
        "summary": finding.summary,
        "evidence": [
            {
                "source": line.source,
                "what": line.what,
                "value": line.value,
                "unit": line.unit,
                "time": line.time,
                "text": line.text,
            }
            for line in finding.evidence
        ],
        "remedy": {
            "now": [{"do": now.do, "risk": now.risk, "loses": now.loses} for now in finding.now],
            "later": [{"do": later.do, "why": later.why} for later in finding.later],
        },
        "known_issues": [
            {"link": issue.link, "title": issue.title, "fix": issue.fix} for issue in finding.known_issues
        ],
        "tid": finding.tid,
        "fd": finding.fd,
        "lock": _hex(finding.lock),
        "chain": list(finding.chain),
        "frame": _python_frame(snapshot, finding),
        "subject": without_userinfo(finding.subject) or None,
        "story": finding.story or None,
    }


def _python_frame(snapshot: Snapshot, finding: Finding) -> int | None:
    """The index among the thread's Python frames alone, as they stand in the report."""
    frames = snapshot.frames(finding.tid) if finding.tid is not None else ()
    if finding.frame is None or finding.frame >= len(frames) or frames[finding.frame].native:
        return None if frames else finding.frame
    return sum(not frame.native for frame in frames[: finding.frame])


def _process(process: ProcessFact) -> Json:
    worker, container = process.worker, process.container
    return {
        "pid": process.pid,
        "ns_pid": process.ns_pid,
        "start_time": process.start_time,
        "kind": worker.kind,
        "role": worker.worker_class or worker.pool or None,
        "argv": [without_userinfo(word) for word in process.argv],
        "ppid": process.ppid,
        "age_s": _seconds(process.age_s),
        "rss_bytes": process.rss_bytes,
        "fd_count": process.fd_count,
        "state": process.state,
        "python": {"version": process.python_version, "executable": process.executable} if process.is_python else None,
        "packages": dict(process.packages),
        "worker": {
            "class": worker.worker_class or None,
            "pool": worker.pool or None,
            "timeout_s": worker.timeout_s,
            "timeout_source": worker.timeout_source or None,
            "seconds_to_kill": _seconds(worker.seconds_to_kill),
            "last_notify_s": _seconds(worker.last_notify_s),
            "concurrency": worker.concurrency,
            "threads": worker.threads,
        },
        "container": {
            "id": container.id,
            "pod": container.pod or None,
            "pod_name": container.pod_name or None,
            "namespace": container.namespace or None,
            "name": container.name or None,
        }
        if container
        else None,
    }


def _frame(frame: Frame) -> Json:
    written: Json = {"function": frame.function, "file": frame.file, "line": frame.line}
    if frame.locals:
        written["locals"] = dict(frame.locals)
    return written


def _thread(snapshot: Snapshot, diagnosis: Diagnosis, thread: ThreadFact) -> Json:
    python = snapshot.python_thread(thread.tid)
    frames = python.frames if python else ()
    kind, ref = diagnosis.waits_for.get(thread.tid, ("none", ""))
    call = thread.syscall
    return {
        "tid": thread.tid,
        "ns_tid": thread.ns_tid,
        "name": (python.name if python and python.name else thread.name),
        "state": thread.state,
        "on_cpu_s": _seconds(thread.on_cpu_s),
        "syscall": {
            "name": call.name,
            "args": [hex(argument) for argument in call.args],
            "fd": call.fd,
            "timeout_s": call.timeout_s,
        }
        if call
        else None,
        "blocked_s": _seconds(thread.blocked_s),
        "blocked_since_source": thread.blocked_since_source or None,
        "owns_gil": python.owns_gil if python else None,
        "python": [_frame(frame) for frame in frames if not frame.native],
        "native_ended": stack.ended or None if (stack := snapshot.native_stack(thread.tid)) else None,
        "native": _native(snapshot.native_stack(thread.tid), frames),
        "work": _work(snapshot.work_of(thread.tid)),
        "waits_for": {"kind": kind, "ref": ref or None},
    }


def _native(stack: NativeStack | None, frames: tuple[Frame, ...]) -> list[Json]:
    """The C frames; `inside` says how many of the Python frames lie inside of each."""
    if stack is None:
        told = [(frame, sum(not other.native for other in frames[:index])) for index, frame in enumerate(frames)]
        pairs = [(frame, inside) for frame, inside in told if frame.native]
    else:
        pairs = list(zip(stack.frames, stack.inside, strict=True))
    return [
        {
            "function": frame.function,
            "file": frame.file,
            "line": frame.line,
            "library": libraries.words(frame.file) or None,
            "inside": inside,
        }
        for frame, inside in pairs
    ]


def _pause_s(snapshot: Snapshot) -> float | None:
    if snapshot.native_pause_s is not None:
        return snapshot.native_pause_s
    return snapshot.python.paused_at_most_s if snapshot.python else None


def _work(work: WorkFact | None) -> Json | None:
    if work is None:
        return None
    return {
        "kind": work.kind,
        "name": work.name,
        "id": work.id or None,
        "age_s": _seconds(work.age_s),
        "method": work.method or None,
        "path": work.path or None,
        "peer": work.peer or None,
    }


def _socket(socket: SocketFact) -> Json:
    keepalive, peer = socket.keepalive, socket.peer
    return {
        "fd": socket.fds[0] if socket.fds else None,
        "inode": socket.inode,
        "family": socket.family,
        "local": socket.local,
        "remote": socket.remote or None,
        "remote_name": None,
        "direction": socket.direction or None,
        "protocol": socket.protocol,
        "state": socket.state or None,
        "unacked": socket.unacked,
        "retransmits": socket.retransmits,
        "backoff": socket.backoff,
        "rto_s": _seconds(socket.rto_s),
        "timer": socket.timer or None,
        "gives_up_s": _seconds(gives_up_s(socket)),
        "last_send_s": _seconds(socket.last_send_s),
        "last_receive_s": _seconds(socket.last_receive_s),
        "last_ack_s": _seconds(socket.last_ack_s),
        "keepalive": {
            "on": keepalive.on,
            "idle_s": keepalive.idle_s,
            "interval_s": keepalive.interval_s,
            "count": keepalive.count,
            "probes_unanswered": keepalive.probes_unanswered,
        }
        if keepalive
        else None,
        "user_timeout_s": _seconds(socket.user_timeout_s),
        "detection_window_s": _seconds(detection_window_s(socket)),
        "queues": {"send_bytes": socket.send_bytes, "receive_bytes": socket.receive_bytes},
        "peer": {
            "pids": list(peer.pids),
            "command": peer.command or None,
            "state": peer.state,
            "unread_bytes": peer.unread_bytes,
            "in_accept_queue": peer.in_accept_queue,
        }
        if peer
        else None,
        "conntrack": socket.conntrack,
        "probe": _probe(socket),
        "shared_with": list(socket.shared_with),
    }


def _probe(socket: SocketFact) -> Json | None:
    probe = socket.probe
    if probe is None:
        return None
    return {
        "answer": probe.answer,
        "tries": probe.tries,
        "seconds": _seconds(probe.seconds),
        "after_s": None if probe.after_s is None else round(probe.after_s, 6),
        "error": probe.error or None,
        "unreceived_bytes": probe.unreceived_bytes,
        "time": probe.time,
        "text": network_probe.words(probe, socket.remote),
    }


def _pool(pool: PoolFact) -> Json:
    return {
        "address": hex(pool.address),
        "kind": pool.kind,
        "name": pool.name,
        "size": pool.size,
        "members": [
            {
                "pid": member.pid,
                "tid": member.tid,
                "work": _hex(member.work),
                "does": member.does or None,
                "idle": member.idle,
                "age_s": _seconds(member.age_s),
            }
            for member in pool.members
        ],
        "queued": pool.queued,
        "awaited": [
            {"tid": each.tid, "result": hex(each.result), "state": each.state, "runs_on": each.runs_on}
            for each in pool.awaited
        ],
        "complete": pool.complete,
        "certain": pool.certain,
        "made_by": pool.made_by,
    }


def _graph(diagnosis: Diagnosis) -> Json:
    nodes = dict.fromkeys(name for edge in diagnosis.edges for name in (edge.source, edge.target))
    return {
        "nodes": list(nodes),
        "edges": [{"from": edge.source, "to": edge.target, "label": edge.label or None} for edge in diagnosis.edges],
        "labels": dict(diagnosis.labels),
    }


def _hex(address: int | None) -> str | None:
    return None if address is None else hex(address)


def _seconds(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
