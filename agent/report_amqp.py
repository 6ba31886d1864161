"""The report's part on AMQP: the connections whose state could be read, and the answer layer by layer."""

from __future__ import annotations

from typing import Any

from stucktrace.diagnosis import amqp_layers
from stucktrace.diagnosis.model import Finding
from stucktrace.facts import AmqpChannel, AmqpFact, AmqpMethod, Snapshot

Json = dict[str, Any]


def build(snapshot: Snapshot, verdict: Finding) -> Json:
    """`layers` is [] unless the verdict is about a wait for a broker."""
    return {
        "connections": [_connection(fact) for fact in snapshot.amqp],
        "layers": [
            {"layer": layer.number, "name": layer.name, "lines": list(layer.lines)}
            for layer in amqp_layers.layers(snapshot, verdict)
        ],
        "settings": [
            {
                "subject": setting.subject,
                "name": setting.name,
                "value": setting.value,
                "source": setting.source,
                "in_force": setting.in_force,
            }
            for setting in amqp_layers.shown(snapshot.settings)
        ],
    }


def _connection(fact: AmqpFact) -> Json:
    return {
        "local": fact.local,
        "remote": fact.remote,
        "source": fact.source,
        "client": fact.client,
        "fd": fact.fd,
        "heartbeat_s": fact.heartbeat_s,
        "blocked": _method(fact.blocked),
        "assumes": fact.blocked_assumes or None,
        "closed": _method(fact.closed),
        "last_in": _method(fact.last_in),
        "waits_for": fact.waits_for or None,
        "channel": fact.waiting_channel,
        "tid": fact.waiting_tid,
        "channels": [_channel(channel) for channel in fact.channels],
    }


def _method(method: AmqpMethod | None) -> Json | None:
    if method is None:
        return None
    return {"name": method.name, "age_s": method.age_s, "code": method.code, "text": method.text}


def _channel(channel: AmqpChannel) -> Json:
    return {
        "number": channel.number,
        "open": channel.is_open,
        "confirms": channel.confirms,
        "consumers": None if channel.consumers is None else len(channel.consumers),
        "closed": _method(channel.closed),
    }
