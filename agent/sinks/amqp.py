"""What `stucktrace amqp` saw, as lines, and as JSON objects of schema stucktrace.amqp/1 (amqp.schema.json).

Texts from the wire are escaped (`page.clean`).
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from stucktrace.amqp_notices import MISSED_BEATS, Notice, oldest_s, silent, stuck, total, untouched
from stucktrace.diagnosis import network_probe
from stucktrace.diagnosis.words import age, count
from stucktrace.facts import AmqpFact, AmqpMethod, Latency, ProbeFact
from stucktrace.facts_codec import encode
from stucktrace.sinks.page import clean

SCHEMA = "stucktrace.amqp/1"
LONGEST_TEXT = 200


@dataclass(frozen=True)
class Row:
    """One connection as it stands."""

    local: str
    remote: str
    fact: AmqpFact | None = None
    """None: nothing of it was seen."""
    fd: int | None = None
    open: bool = True
    """The process still has it."""
    published_per_s: float | None = None
    inode: int | None = None
    probe: ProbeFact | None = None
    """What its peer's TCP answered when the watching began (--probe)."""
    watched_s: float | None = None
    """For how long its packets were looked for."""


def event_as_json(notice: Notice) -> dict[str, Any]:
    return {"schema": SCHEMA, "type": "event", **asdict(notice)}


def summary_as_json(row: Row, now: float) -> dict[str, Any]:
    fact: dict[str, Any] = encode(row.fact or AmqpFact(row.local, row.remote, "wire"))
    fact.pop("inode", None)
    totals = {name: None if row.fact is None else total(row.fact, name) for name in _TOTALS}
    return {
        "schema": SCHEMA,
        "type": "summary",
        "time": now,
        **fact,
        "fd": row.fd,
        "probe": None if row.probe is None else encode(row.probe),
        "open": row.open,
        "stuck": (row.fact is not None and row.open and stuck(row.fact)) or None,
        "totals": {**totals, "oldest_unconfirmed_s": None if row.fact is None else oldest_s(row.fact)},
    }


_TOTALS = ("publishes", "acks", "nacks", "returns", "unconfirmed", "deliveries", "consumer_acks")


# Lines


def line(notice: Notice) -> str:
    """ "17:40:01.123  10.0.0.1:40000 -> 10.0.0.2:5672  the broker blocks publishing: low on memory"."""
    at = time.strftime("%H:%M:%S", time.localtime(notice.time)) + f".{int(notice.time % 1 * 1000):03d}"
    return f"{at}  {notice.local} -> {notice.remote}  {words(notice)}"


def words(notice: Notice) -> str:
    """What happened."""
    reason = clean(notice.text, LONGEST_TEXT)
    why = " ".join(word for word in (str(notice.code or ""), reason) if word)
    cause = f" (because of {clean(notice.method, LONGEST_TEXT)})" if notice.method else ""
    on = f" on channel {notice.channel}" if notice.channel else ""
    said = f": {why}" if why else ""
    match notice.event:
        case "opened":
            return "a new connection"
        case "ended":
            return f"the {notice.by} ends the TCP connection"
        case "missed":
            return f"bytes from the {notice.by} were not captured: counts are at least what is said"
        case "encrypted":
            return "encrypted: its frames cannot be read"
        case "consumer-cancelled":
            return f"the broker cancels a consumer{on}"
        case "blocked":
            return f"the broker takes no publishes for now (connection.blocked){said}"
        case "unblocked":
            return "the broker takes publishes again (connection.unblocked)"
        case "connection-closed":
            return f"the {notice.by or 'peer'} closes the connection{said}{cause}"
        case "channel-closed":
            return f"the {notice.by or 'peer'} closes channel {notice.channel}{said}{cause}"
        case "nacked":
            return f"the broker refuses {count(notice.count, 'publish', 'publishes')}{on} (basic.nack)"
        case "returned":
            back = "a publish comes" if notice.count == 1 else f"{notice.count} publishes come"
            return f"{back} back{on} (basic.return){said}"
        case "unconfirmed":
            publishes = count(notice.count, "publish", "publishes")
            return f"{publishes}{on} without a confirm, the oldest for {age(notice.age_s)}"
        case "confirmed":
            return f"all publishes{on} are confirmed, after {age(notice.age_s)}"
        case "broker-silent" | "client-silent":
            who = "the broker" if notice.event == "broker-silent" else "the process"
            return f"{who} has sent nothing for {age(notice.age_s)}; a heartbeat is due every {age(notice.heartbeat_s)}"
        case "probed":
            return reason
        case "heard-again":
            return f"the {'process' if notice.by == 'client' else 'broker'} sends again"
    return f"{notice.event}{on}{said}"


# Summary


def summary(row: Row) -> list[str]:
    """Of one connection, its name first."""
    client = clean(row.fact.client, 60) if row.fact is not None else ""
    place = f"fd {row.fd}" if row.fd is not None and row.open else ""
    about = ", ".join(word for word in (client, place, "" if row.open else "closed") if word)
    lines = [f"{row.local} -> {row.remote}" + (f"  ({about})" if about else "")]
    if row.probe is not None:
        lines.append(f"  {network_probe.words(row.probe, row.remote)}")
    if row.fact is None:
        return [*lines, "  no frame passed"]
    if row.fact.last_frame_in_s is None and row.fact.last_frame_out_s is None and not row.fact.encrypted:
        quiet_s = row.watched_s if untouched(row.fact) else None
        said = [_heartbeats(row.fact, row.open, quiet_s)] if row.fact.heartbeat_s is not None else []
        return [*lines, *(f"  {text}" for text in ("no frame passed", *said, *_unknown(row.fact)))]
    return lines + [f"  {text}" for text in _sentences(row.fact, row.open) if text]


def _sentences(fact: AmqpFact, is_open: bool) -> list[str]:
    if fact.encrypted:
        return ["encrypted: its frames cannot be read on the wire"]
    return [
        _stuck_words(fact) if is_open else "",
        _publishing(fact),
        _latency(fact.confirms),
        _consuming(fact),
        _heartbeats(fact, is_open),
        _closed(fact),
        *(f"channel {c.number} was closed by the {c.closed_by}: {why(c.closed)}" for c in fact.channels if c.closed),
        *_unknown(fact),
    ]


def _unknown(fact: AmqpFact) -> list[str]:
    return [f"not known: {clean(text, LONGEST_TEXT)}" for text in fact.unknown]


def _stuck_words(fact: AmqpFact) -> str:
    match stuck(fact):
        case "blocked":
            assert fact.blocked is not None
            return f"STUCK: blocked by the broker for {age(fact.blocked.age_s)}: {why(fact.blocked)}"
        case "channel-closed":
            return "STUCK: a publish waits for its confirm on a channel that the broker has closed"
        case "unconfirmed":
            unconfirmed = count(total(fact, "unconfirmed") or 0, "publish", "publishes")
            return f"STUCK: {unconfirmed} without a confirm, the oldest for {age(oldest_s(fact))}"
    return ""


def _publishing(fact: AmqpFact) -> str:
    published = total(fact, "publishes")
    if not published:
        return "published nothing"
    parts = [f"published {published}"]
    for name, word in (("acks", "confirmed"), ("nacks", "refused"), ("returns", "came back")):
        number = total(fact, name)
        if number or (name == "acks" and any(channel.confirms for channel in fact.channels)):
            parts.append(f"{word} {number or 0}")
    if unconfirmed := total(fact, "unconfirmed"):
        parts.append(f"without a confirm {unconfirmed}, the oldest for {age(oldest_s(fact))}")
    return ", ".join(parts)


def _latency(latency: Latency | None) -> str:
    if latency is None or not latency.count:
        return ""
    named = (("p50", latency.p50_s), ("p95", latency.p95_s), ("p99", latency.p99_s), ("max", latency.max_s))
    return "confirms took " + "  ".join(f"{name} {milliseconds(value)}" for name, value in named)


def milliseconds(seconds: float) -> str:
    """ "0.42 ms", "12 ms", "1.4 s"."""
    if seconds >= 9.995:
        return age(seconds)
    if seconds >= 0.9995:
        return f"{seconds:.1f} s"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.00995 else f"{seconds * 1000:.2f} ms"


def _consuming(fact: AmqpFact) -> str:
    delivered = total(fact, "deliveries")
    return f"delivered {delivered}, acknowledged {total(fact, 'consumer_acks') or 0}" if delivered else ""


_SOURCES = {"tune-ok": "negotiated", "client": "by the client's own record", "observed": "as it beats"}


def _heartbeats(fact: AmqpFact, is_open: bool, quiet_s: float | None = None) -> str:
    """`quiet_s`: for how long not a byte was seen."""
    beats = f"heartbeats: {fact.heartbeats_in or 0} in, {fact.heartbeats_out or 0} out"
    if fact.heartbeat_s is None:
        return beats
    if not fact.heartbeat_s:
        return "heartbeats: off"
    said = f"{beats}; every {age(fact.heartbeat_s)} ({_SOURCES.get(fact.heartbeat_source, fact.heartbeat_source)})"
    for who, age_s in (("broker", fact.last_frame_in_s or quiet_s), ("process", fact.last_frame_out_s or quiet_s)):
        if is_open and silent(fact, age_s):
            said += f"; the {who} has sent nothing for {age(age_s)}, which is over {MISSED_BEATS} of them"
    return said


def _closed(fact: AmqpFact) -> str:
    return f"closed by the {fact.closed_by or 'peer'}: {why(fact.closed)}" if fact.closed is not None else ""


def why(method: AmqpMethod | None) -> str:
    if method is None:
        return ""
    words = " ".join(word for word in (str(method.code or ""), clean(method.text, LONGEST_TEXT)) if word)
    return (words or "no reason given") + (f" (because of {clean(method.method, 60)})" if method.method else "")
