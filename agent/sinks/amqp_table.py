"""The connections that `stucktrace amqp` watches as a table for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stucktrace.amqp_notices import oldest_s, silent, stuck, total
from stucktrace.diagnosis.words import age
from stucktrace.sinks.amqp import Row, milliseconds, why
from stucktrace.sinks.table import GAP, padded


def table(rows: Sequence[Row]) -> list[str]:
    """Its heading first."""
    columns: dict[str, list[str]] = {}
    for row in rows:
        for name, text in _cells(row).items():
            columns.setdefault(name, [name]).append(text)
    for name in _LEFT_OUT_WHEN_EMPTY:
        if {"0", "-"}.issuperset(columns.get(name, ())[1:]):
            columns.pop(name, None)
    widths = {name: max(map(len, texts)) for name, texts in columns.items()}
    return [
        GAP.join(padded(columns[name][index], wide, name not in _TO_THE_LEFT) for name, wide in widths.items()).rstrip()
        for index in range(len(rows) + 1 if rows else 0)
    ]


_LEFT_OUT_WHEN_EMPTY = ("REFUSED", "DELIVERED")
_TO_THE_LEFT = frozenset({"CONNECTION", "STATE"})


def _cells(row: Row) -> Mapping[str, str]:
    fact = row.fact
    latency = fact.confirms if fact is not None else None

    def number(name: str) -> str:
        found = total(fact, name) if fact is not None else None
        return "-" if found is None else str(found)

    return {
        "CONNECTION": (f"fd {row.fd} " if row.fd is not None else "") + row.remote,
        "PUBLISHED": number("publishes"),
        "PER S": "-" if row.published_per_s is None else f"{row.published_per_s:.0f}",
        "CONFIRMED": number("acks"),
        "REFUSED": number("nacks"),
        "OPEN": number("unconfirmed"),
        "P50": milliseconds(latency.p50_s) if latency is not None and latency.count else "-",
        "P99": milliseconds(latency.p99_s) if latency is not None and latency.count else "-",
        "DELIVERED": number("deliveries"),
        "BEATS": "-" if fact is None else f"{fact.heartbeats_in or 0}/{fact.heartbeats_out or 0}",
        "STATE": state(row),
    }


def state(row: Row) -> str:
    """The last column."""
    fact = row.fact
    if not row.open or (fact is not None and fact.closed is not None):
        return "closed"
    if fact is None:
        return "no frame yet"
    if fact.encrypted:
        return "encrypted"
    match stuck(fact):
        case "blocked":
            assert fact.blocked is not None
            return f"blocked {age(fact.blocked.age_s)}: {why(fact.blocked)}"
        case "channel-closed":
            return "channel closed by the broker, confirm open"
        case "unconfirmed":
            return f"no confirm for {age(oldest_s(fact))}"
    if silent(fact, fact.last_frame_in_s):
        return f"broker silent {age(fact.last_frame_in_s)}"
    if silent(fact, fact.last_frame_out_s):
        return f"process silent {age(fact.last_frame_out_s)}"
    ages = [age_s for age_s in (fact.last_frame_in_s, fact.last_frame_out_s) if age_s is not None]
    return f"quiet {age(min(ages))}" if ages else "no frame yet"
