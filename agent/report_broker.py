"""The report's part on the broker's own view, and on what the process means to consume."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from stucktrace.facts import BrokerFact, Snapshot


def build(snapshot: Snapshot) -> dict[str, Any] | None:
    """None where neither is known."""
    fact = snapshot.broker
    if fact is None and not snapshot.subscriptions:
        return None
    return {
        "subscriptions": [asdict(each) for each in snapshot.subscriptions],
        "view": None if fact is None else _view(fact, snapshot.broker_before),
    }


def _view(fact: BrokerFact, before: BrokerFact | None) -> dict[str, Any]:
    apart_s = None if before is None else fact.time - before.time
    return {
        "kind": fact.kind,
        "source": fact.source,
        "where": fact.where,
        "time": round(fact.time, 3),
        "read_again_after_s": None if apart_s is None else round(apart_s, 3),
        "complete": fact.complete,
        "matched_by": fact.matched_by or None,
        "connections": [asdict(each) for each in fact.connections],
        "channels": [asdict(each) for each in fact.channels],
        "consumers": [asdict(each) for each in fact.consumers],
        "queues": [asdict(each) for each in fact.queues],
    }
