"""The answer of `stucktrace probe-broker`: as JSON by schema stucktrace.probe-broker/1, and as text."""

from __future__ import annotations

from typing import Any

from stucktrace import __version__
from stucktrace.probe_broker import HEALTHY, SCHEMA, SLOW, Outcome, Series, milliseconds


def as_json(outcome: Outcome) -> dict[str, Any]:
    """The answer by schema stucktrace.probe-broker/1. Times in milliseconds."""
    url, p99_s = outcome.wanted.url, outcome.p99_s
    return {
        "schema": SCHEMA,
        "time": round(outcome.began, 3),
        "tool": {"version": __version__},
        "broker": {"url": str(url), "kind": url.kind, "server": outcome.server, "address": outcome.phases.address},
        "verdict": {
            "code": outcome.code,
            "reason": outcome.reason,
            "summary": outcome.summary,
            "remedy": outcome.remedy,
            "p99_ms": None if p99_s is None else round(p99_s * 1000, 3),
            "threshold_ms": outcome.wanted.threshold_ms,
            "over_threshold": outcome.over_threshold,
        },
        "phases_ms": {name: round(seconds * 1000, 3) for name, seconds in outcome.phases.seconds.items()},
        "round_trips": [_series_json(series) for series in outcome.series],
        "wanted": outcome.wanted.samples,
        "stopped": outcome.stopped,
        "notes": list(outcome.notes),
    }


def _series_json(series: Series) -> dict[str, Any]:
    def ms(share: float) -> float:
        return round(series.percentile_s(share) * 1000, 3)

    return {
        "kind": series.kind,
        "count": len(series.seconds),
        "p50_ms": ms(0.5),
        "p95_ms": ms(0.95),
        "p99_ms": ms(0.99),
        "max_ms": ms(1.0),
    }


_PHASES = {
    "dns": "DNS",
    "tcp": "TCP connect",
    "tls": "TLS",
    "amqp": "AMQP login",
    "redis": "login",
    "channel": "channel",
}
_KINDS = {
    "persistent": "persistent, to disk",
    "transient": "transient, to no queue",
    "ping": "PING",
}
_COLOURS = {HEALTHY: "32;1", SLOW: "33;1"}


def as_text(outcome: Outcome, colour: bool) -> str:
    """The answer as a person reads it."""
    from stucktrace.sinks.page import clean

    head = f"{outcome.code}: {clean(outcome.summary)}"
    if colour:
        head = f"\x1b[{_COLOURS.get(outcome.code, '31;1')}m{head}\x1b[0m"
    server = f" ({clean(outcome.server, 80)})" if outcome.server else ""
    lines = [head, f"  {clean(str(outcome.wanted.url))}{server}"]
    if outcome.phases.seconds:
        steps = ", ".join(
            f"{_PHASES[name]} {milliseconds(seconds)}" for name, seconds in outcome.phases.seconds.items()
        )
        lines.append(f"  way there: {steps}")
    if outcome.series:
        lines += ["", f"  {'round trips':<26}{'count':>7}{'p50':>12}{'p95':>12}{'p99':>12}{'max':>12}"]
    for series in outcome.series:
        figures = "".join(f"{milliseconds(series.percentile_s(share)):>12}" for share in (0.5, 0.95, 0.99, 1.0))
        lines.append(f"  {_KINDS[series.kind]:<26}{len(series.seconds):>7}{figures}")
    if outcome.stopped:
        lines.append(f"  stopped before all {outcome.wanted.samples} were measured")
    lines += [f"  {clean(note)}" for note in outcome.notes]
    if outcome.remedy:
        lines += ["", f"  {clean(outcome.remedy)}"]
    return "\n".join(lines) + "\n"
