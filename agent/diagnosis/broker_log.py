"""Which end of a connection in the broker's log belongs to which worker timeout, and with what delay. Pure.

By connection, `proven`: the client's address and port in the log are those of a socket that the worker had, towards the
same port, accepted before it was looked at and ended after. One address and port towards one service is one connection.
By time alone, `likely`: an abrupt close right after the worker was killed, or a missed heartbeat as late as the
broker's own rule makes it, where the log has so few of them that one in that place is no accident; else it is left out.
Where fewer connections ended than workers were killed just then, whose it was is open: `possible`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from stucktrace.diagnosis.broker_delays import (
    AFTER_KILL_S,
    BEATS,
    BEATS_SLACK_S,
    BEFORE_KILL_S,
    CONNECTION,
    TIME,
    Mode,
    Pair,
    modes,
)
from stucktrace.facts.correlation import (
    ABRUPT,
    CLOSED,
    FAILED,
    LOSSES,
    MISSED,
    Alarm,
    BrokerEvent,
    BrokerLog,
    Connection,
    WorkerTimeout,
)

CLOCKS_S = 3.0
"""What the clocks of two machines may differ by."""
UNKNOWN_PORT_S = 900.0
"""Where the log does not tell when a connection was accepted, an end later than this may be another one's."""
BY_CHANCE = 0.1
"""Ends of the kind expected by accident in the span that is searched for one timeout."""
ONE_DAY_S = 86_400.0
ZONE_S, FARTHEST_ZONE_S = 900.0, 14 * 3600.0


@dataclass(frozen=True)
class Unmatched:
    timeout: WorkerTimeout
    because: str


@dataclass(frozen=True)
class Correlation:
    pairs: tuple[Pair, ...]
    modes: tuple[Mode, ...]
    unmatched: tuple[Unmatched, ...]
    in_alarm: tuple[tuple[WorkerTimeout, Alarm], ...]
    offset: tuple[float, int] | None = None
    """(seconds, how many): taken for so far ahead of UTC, the log would match so many timeouts by connection."""


def wanted(timeouts: Iterable[WorkerTimeout]) -> Callable[[BrokerEvent], bool]:
    """What of a log has to be kept for these."""
    clients = {one.local for timeout in timeouts for one in timeout.connections}
    spans = sorted((_stuck(timeout) - CLOCKS_S, timeout.killed + UNKNOWN_PORT_S) for timeout in timeouts)
    merged: list[list[float]] = []
    for began, ended in spans:
        if merged and began <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], ended)
        else:
            merged.append([began, ended])

    def keep(event: BrokerEvent) -> bool:
        return event.client in clients or any(began <= event.time <= ended for began, ended in merged)

    return keep


def correlate(timeouts: Sequence[WorkerTimeout], log: BrokerLog) -> Correlation:
    """Each timeout with at most one event, and each event with at most one timeout."""
    pairs: dict[int, Pair] = {}
    by_client: dict[str, list[BrokerEvent]] = {}
    for event in log.events:
        by_client.setdefault(event.client, []).append(event)
    for index, timeout in enumerate(timeouts):
        found = _by_connection(timeout, by_client)
        if found is not None:
            pairs[index] = found
    used = {id(pair.event) for pair in pairs.values()}
    left = [
        index
        for index, timeout in enumerate(timeouts)
        if index not in pairs and not _known_to_broker(timeout, log, by_client)
    ]
    free = [event for event in log.events if event.kind in LOSSES and id(event) not in used]
    pairs.update(_by_time({index: timeouts[index] for index in left}, free, log))
    ordered = tuple(pairs[index] for index in sorted(pairs))
    unmatched = tuple(
        Unmatched(timeout, _because(timeout, log, by_client))
        for index, timeout in enumerate(timeouts)
        if index not in pairs
    )
    in_alarm = tuple((timeout, alarm) for timeout in timeouts for alarm in log.alarms if _overlap(timeout, alarm))
    offset = _offset(timeouts, log, by_client) if log.zone_assumed and not pairs else None
    return Correlation(ordered, tuple(modes(ordered)), unmatched, in_alarm, offset)


def _offset(
    timeouts: Sequence[WorkerTimeout], log: BrokerLog, by_client: dict[str, list[BrokerEvent]]
) -> tuple[float, int] | None:
    """The time zone with which most connections would match. Zones are whole quarters of an hour apart."""
    shifts: Counter[float] = Counter()
    for timeout in timeouts:
        for connection in timeout.connections:
            for event in by_client.get(connection.local, ()):
                shift = ZONE_S * round((event.time - timeout.killed) / ZONE_S)
                moved = replace(event, time=event.time - shift, accepted=None)
                if shift and abs(shift) <= FARTHEST_ZONE_S and _by_connection(timeout, {connection.local: [moved]}):
                    shifts[shift] += 1
    return max(shifts.items(), key=lambda item: item[1], default=None)


def _stuck(timeout: WorkerTimeout) -> float:
    return timeout.since if timeout.since is not None else timeout.killed - (timeout.timeout_s or 0.0)


def _by_connection(timeout: WorkerTimeout, by_client: dict[str, list[BrokerEvent]]) -> Pair | None:
    """The one that it hung on first; else the one that ended first."""
    looked = timeout.looked if timeout.looked is not None else timeout.killed
    found = []
    for connection in timeout.connections:
        events = [event for event in by_client.get(connection.local, ()) if _is_of(event, connection, looked)]
        if events:
            # The port may have been another connection's before, or may be one's later.
            event = events[-1] if connection.ended else events[0]
            # Behind the reason comes that it is closed. One that was closed as it should was not lost, whatever
            # became of others that had its port.
            event = next((one for one in events if one.kind in LOSSES and _one_end(one, event)), event)
            if event.kind in LOSSES:
                found.append(Pair(timeout, event, CONNECTION, connection))
    return min(found, key=lambda pair: (pair.connection != timeout.hung_on, pair.event.time), default=None)


def _one_end(one: BrokerEvent, other: BrokerEvent) -> bool:
    """Both tell of the end of the same connection."""
    return one is other or (one.accepted is not None and one.accepted == other.accepted)


def _is_of(event: BrokerEvent, connection: Connection, looked: float) -> bool:
    """The event ended this very connection, which the worker had at that time."""
    # A service's address is not its server's, but mostly the port is the same.
    if event.server.rpartition(":")[2] != connection.remote.rpartition(":")[2]:
        return False
    if connection.ended:
        return looked - UNKNOWN_PORT_S <= event.time <= looked + CLOCKS_S
    if event.time < looked - CLOCKS_S:
        return False
    if event.accepted is not None:
        return event.accepted <= looked + CLOCKS_S
    return event.time <= looked + UNKNOWN_PORT_S


def _known_to_broker(timeout: WorkerTimeout, log: BrokerLog, by_client: dict[str, list[BrokerEvent]]) -> bool:
    """The log names one of the worker's connections: then the time of another one's end says nothing about it."""
    clients = [timeout.hung_on] if timeout.hung_on is not None else timeout.connections
    return any(one.local in log.open or one.local in by_client for one in clients)


def _by_time(timeouts: dict[int, WorkerTimeout], events: Sequence[BrokerEvent], log: BrokerLog) -> dict[int, Pair]:
    """The closest first."""
    times = [event.time for event in events]
    near = []
    for index, timeout in timeouts.items():
        first = bisect_left(times, min(_stuck(timeout), timeout.killed) - CLOCKS_S)
        last = bisect_right(times, timeout.killed + UNKNOWN_PORT_S)
        for number in range(first, last):
            near += [(abs(times[number] - due), index, number) for due in _expected(timeout, events[number])]
    near.sort()
    pairs: dict[int, Pair] = {}
    used: set[int] = set()
    for _, index, number in near:
        if index not in pairs and number not in used:
            pairs[index] = Pair(timeouts[index], events[number], TIME, None)
            used.add(number)
    span_s = (log.last or 0.0) - (log.first or 0.0)
    kept = {}
    for index, pair in pairs.items():
        others = log.counts.get(pair.event.kind, 0) - len(pairs)
        searched_s = AFTER_KILL_S + BEFORE_KILL_S
        if pair.event.kind == MISSED:
            searched_s = (BEATS[1] - BEATS[0]) * (pair.event.timeout_s or 0.0) + 2 * BEATS_SLACK_S
        if span_s > 0 and others * searched_s / span_s <= BY_CHANCE:
            kept[index] = pair
    losers = [timeouts[index] for index in timeouts if index not in kept]
    return {
        index: replace(pair, contested=any(any(_expected(loser, pair.event)) for loser in losers))
        for index, pair in kept.items()
    }


def _expected(timeout: WorkerTimeout, event: BrokerEvent) -> Iterator[float]:
    """When the event would be due, if it is not too far from that."""
    slack_s = timeout.resolution_s
    if event.kind in (ABRUPT, FAILED):
        if timeout.killed - BEFORE_KILL_S - slack_s <= event.time <= timeout.killed + AFTER_KILL_S + slack_s:
            yield timeout.killed
    elif event.timeout_s and timeout.since is not None:
        first, last = (timeout.since + beats * event.timeout_s for beats in BEATS)
        if first - BEATS_SLACK_S <= event.time <= last + BEATS_SLACK_S:
            yield (first + last) / 2


def _because(timeout: WorkerTimeout, log: BrokerLog, by_client: dict[str, list[BrokerEvent]]) -> str:
    """Why nothing was found."""
    if log.first is None or log.last is None:
        return "no record in the log"
    if timeout.killed < log.first - CLOCKS_S:
        return "it was before the log begins"
    if timeout.killed > log.last + AFTER_KILL_S:
        return "it was after the log ends"
    clients = [timeout.hung_on] if timeout.hung_on is not None else list(timeout.connections)
    looked = timeout.looked if timeout.looked is not None else timeout.killed
    for one in clients:
        accepted = log.open.get(one.local)
        if accepted is not None and accepted <= timeout.killed + CLOCKS_S:
            return f"the broker still had {one.local} open when the log ends: it never noticed"
        closed = [
            event for event in by_client.get(one.local, ()) if event.kind == CLOSED and _is_of(event, one, looked)
        ]
        if closed:
            after_s = closed[0].time - timeout.killed
            when = f"{abs(after_s):.1f} s {'after' if after_s >= 0 else 'before'} the kill"
            return f"{one.local} was closed as it should {when}"
    for one in clients:
        for event in by_client.get(one.local, ()):
            apart_s, same = event.time - looked, event.server.rpartition(":")[2] == one.remote.rpartition(":")[2]
            if same and abs(apart_s) < ONE_DAY_S:
                return (
                    f"{one.local} ended in the log {abs(apart_s):,.0f} s {'before' if apart_s < 0 else 'after'} the "
                    "worker was seen with it: another connection from that port, or the clocks differ"
                )
    if timeout.connections:
        return "none of its connections is in the log (another broker, or addresses translated in between)"
    return "its connections are not known, and nothing in the log stands out at that time"


def _overlap(timeout: WorkerTimeout, alarm: Alarm) -> bool:
    return alarm.since <= timeout.killed and (alarm.until is None or alarm.until >= _stuck(timeout))
