"""What a process that hangs on an AMQP broker is asked besides: what it is configured to, and conntrack for its flow.

That takes longer than a look, so it is done for such a verdict alone, and only for who asks about one process.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from stucktrace.diagnosis import amqp_layers
from stucktrace.diagnosis.model import Diagnosis
from stucktrace.facts import ProcessFact, SettingFact, Snapshot, SocketFact
from stucktrace.facts.conntrack import Flow

if TYPE_CHECKING:
    from stucktrace.run import Run


def deepened(run: Run, snapshot: Snapshot, diagnosis: Diagnosis) -> Snapshot:
    """The snapshot with layers 3 and 4; as it was where the verdict is not about a broker."""
    wait = amqp_layers.subject(snapshot, diagnosis.verdict)
    if wait is None or not run.options.siblings:
        return snapshot
    pid = snapshot.process.pid
    settings = run.collect("settings", (), partial(_settings, snapshot.process), pid)
    flow = None
    if wait.socket is not None and wait.socket.protocol == "tcp":
        flow = run.collect("conntrack entry", None, partial(_flow, pid, wait.socket), pid)
    return replace(snapshot, settings=settings, flow=flow)


def _settings(process: ProcessFact) -> tuple[SettingFact, ...]:
    if not process.is_python:
        return ()
    from stucktrace.collectors import celery_settings, gunicorn_settings, startup
    from stucktrace.facts import WORKERS

    found: tuple[SettingFact, ...] = ()
    if process.worker.kind.startswith("gunicorn-"):
        argv, environ = startup.recall(process.pid, process.argv)
        worker = process.worker.kind in WORKERS
        found, _ = gunicorn_settings.collect(process, argv, environ, process.ppid if worker else None)
    return (*found, *celery_settings.collect(process))


def _flow(pid: int, socket: SocketFact) -> Flow | None:
    from stucktrace.collectors import conntrack_node, ctnetlink

    if not ctnetlink.is_there():
        return None
    return next(iter(conntrack_node.collect({pid: (socket,)}, (pid,), 0.0).flows), None)
