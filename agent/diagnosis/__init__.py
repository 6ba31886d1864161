"""Rules: pure functions from a snapshot to findings, and the judge that picks the verdict among them.

A rule is `(snapshot, budgets) -> Iterator[Finding]`: no I/O, no clock, and nothing yielded where it cannot tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from stucktrace.diagnosis import (
    behind,
    broker,
    configuration,
    consumers,
    deadlocks,
    file_locks,
    graph,
    graph_labels,
    held_locks,
    judge,
    known_issues,
    loops,
    network_connect,
    network_inbound,
    network_loops,
    network_outage,
    network_probe,
    network_sharing,
    network_silence,
    orphaned_locks,
    pipes,
    pools,
    pools_connections,
    pools_lost,
    process_locks,
    states,
)
from stucktrace.diagnosis.model import INFO, POSSIBLE, Budgets, Diagnosis, Finding
from stucktrace.facts import Snapshot

Rule = Callable[[Snapshot, Budgets], Iterator[Finding]]

RULES: tuple[Rule, ...] = (
    network_outage.half_open,
    network_silence.peer_silent,
    consumers.consumer_lost,
    consumers.lost_tags,
    consumers.deliveries_held,
    network_connect.connect_failing,
    network_connect.dns_unanswered,
    network_inbound.slow_client,
    network_inbound.peer_not_reading,
    network_loops.loop_connections,
    broker.broker_blocked,
    broker.broker_says_blocked,
    broker.channel_closed,
    broker.heartbeats_missing,
    network_sharing.self_call,
    network_sharing.shared_connection,
    deadlocks.deadlock,
    orphaned_locks.orphaned_lock,
    held_locks.lock_held,
    process_locks.process_lock,
    file_locks.file_lock,
    loops.blocked_loop,
    loops.stale_epoll,
    pipes.pipe_stuck,
    pools.pool_starved,
    pools_connections.connections_out,
    pools_lost.work_lost,
    pools_lost.queue_locked,
    states.stopped,
    states.uninterruptible,
    states.gil_held,
    states.spinning,
    configuration.keepalive_too_slow,
    configuration.no_timeout,
    configuration.no_heartbeat,
)
"""Every rule. The order does not matter: the judge decides what is the root cause."""


def diagnose(snapshot: Snapshot, budgets: Budgets) -> Diagnosis:
    """The verdict on one snapshot. Never raises: a rule that fails on odd data becomes a finding that says so."""
    findings = [finding for rule in RULES for finding in _apply(rule, snapshot, budgets)]
    try:
        findings = behind.attach(snapshot, known_issues.attach(snapshot, findings))
        ordered = network_probe.attach(snapshot, judge.order(snapshot, budgets, findings))
    except Exception as error:
        ordered = (failed("judge", error), *findings)
    edges = graph.edges(snapshot)
    found = Diagnosis(ordered[0], ordered, edges, graph.waits_for(snapshot), graph_labels.labels(snapshot, edges))
    return with_native_stacks(snapshot, found) if snapshot.native else found


def with_native_stacks(snapshot: Snapshot, diagnosis: Diagnosis) -> Diagnosis:
    """With what the native stacks tell of the findings; as it was, and a finding that says so, where that fails."""
    from stucktrace.diagnosis import native

    try:
        return native.explain(snapshot, diagnosis)
    except Exception as error:
        return replace(diagnosis, findings=(*diagnosis.findings, failed("native", error)))


def _apply(rule: Rule, snapshot: Snapshot, budgets: Budgets) -> list[Finding]:
    findings: list[Finding] = []
    try:
        findings.extend(rule(snapshot, budgets))
    except Exception as error:
        findings.append(failed(rule.__name__, error))
    return findings


def failed(what: str, error: Exception) -> Finding:
    """Not a verdict: it tells that one question stayed open because of a fault in stucktrace."""
    summary = f"the rule {what} failed on these facts ({type(error).__name__}: {error}), so it could not decide"
    return Finding("inconclusive", POSSIBLE, summary, severity=INFO)
