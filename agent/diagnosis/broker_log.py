"""Which end of a connection in the broker's log belongs to which worker timeout, and with what delay. Pure.

By connection, `proven`: the client's address and port in the log are those of a socket that the worker had, towards the
same port, accepted before it was looked at and ended after. One address and port towards one service is one connection.
By time alone, `likely`: an abrupt close right after the worker was killed, or a missed heartbeat as late as the
broker's own rule makes it, where the log has so few of them that one in that place is no accident; else it is left out.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from stucktrace.diagnosis.model import LIKELY, PROVEN
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

CONNECTION, TIME = "connection", "time"
CLOCKS_S = 3.0
"""What the clocks of two machines may differ by."""
AFTER_KILL_S = 3.0
"""A killed worker's connections are closed by its kernel at once: by time alone nothing later counts."""
BEFORE_KILL_S = 0.5
UNKNOWN_PORT_S = 900.0
"""Where the log does not tell when a connection was accepted, an end later than this may be another one's."""
BEATS = 2.0, 3.0
"""rabbit_heartbeat.erl: the receiver looks once in each timeout, and gives up when it saw nothing new twice: between
two and three timeouts after the last byte."""
BEATS_SLACK_S = 2.0
BY_CHANCE = 0.1
"""Ends of the kind expected by accident in the span that is searched for one timeout."""
BUCKET_S = 1.0
LEAST_MODE = 2


@dataclass(frozen=True)
class Pair:
    """A worker timeout, and the end of its connection as the broker saw it."""

    timeout: WorkerTimeout
    event: BrokerEvent
    by: str
    """CONNECTION or TIME."""
    connection: Connection | None
    """As the worker has it; None where only the time tells."""

    @property
    def confidence(self) -> str:
        return PROVEN if self.by == CONNECTION else LIKELY

    @property
    def after_kill_s(self) -> float:
        return self.event.time - self.timeout.killed

    @property
    def after_stuck_s(self) -> float | None:
        return self.event.time - self.timeout.since if self.timeout.since is not None else None


@dataclass(frozen=True)
class Mode:
    """The commonest delay."""

    kind: str
    """Of the broker's event."""
    since: str
    """"stuck" or "kill"."""
    seconds: float
    within_s: float
    """Half of the bucket's width: all of `count` are that close."""
    count: int
    of: int
    """Pairs of this kind."""
    means: str
    """ "" where nothing known explains it."""


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
    return Correlation(ordered, tuple(modes(ordered)), unmatched, in_alarm)


def _stuck(timeout: WorkerTimeout) -> float:
    return timeout.since if timeout.since is not None else timeout.killed - (timeout.timeout_s or 0.0)


def _by_connection(timeout: WorkerTimeout, by_client: dict[str, list[BrokerEvent]]) -> Pair | None:
    """The one that it hung on first; else the one that ended first."""
    looked = timeout.looked if timeout.looked is not None else timeout.killed
    found = []
    for connection in timeout.connections:
        events = [
            event
            for event in by_client.get(connection.local, ())
            if event.kind in LOSSES and _is_of(event, connection, looked)
        ]
        if events:
            # The port may have been another connection's before, or may be one's later.
            event = events[-1] if connection.ended else events[0]
            found.append(Pair(timeout, event, CONNECTION, connection))
    return min(found, key=lambda pair: (pair.connection != timeout.hung_on, pair.event.time), default=None)


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
    return kept


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
    for one in clients:
        accepted = log.open.get(one.local)
        if accepted is not None and accepted <= timeout.killed + CLOCKS_S:
            return f"the broker still had {one.local} open when the log ends: it never noticed"
        closed = [
            event
            for event in by_client.get(one.local, ())
            if event.kind == CLOSED and _is_of(event, one, timeout.killed)
        ]
        if closed:
            return f"{one.local} was closed as it should {closed[0].time - timeout.killed:.1f} s after the kill"
    if timeout.connections:
        return "none of its connections is in the log (another broker, or addresses translated in between)"
    return "its connections are not known, and nothing in the log stands out at that time"


def modes(pairs: Sequence[Pair]) -> Iterator[Mode]:
    """The densest bucket of the delays, for each kind of event and from either moment; the commonest first."""
    found = []
    for kind in sorted({pair.event.kind for pair in pairs}):
        those = [pair for pair in pairs if pair.event.kind == kind]
        stuck = [(delay, pair) for pair in those if (delay := pair.after_stuck_s) is not None]
        for since, delays in (("stuck", stuck), ("kill", [(pair.after_kill_s, pair) for pair in those])):
            if delays:
                seconds, within = densest([delay for delay, _ in delays])
                members = [pair for delay, pair in delays if abs(delay - seconds) <= BUCKET_S / 2 + 1e-6]
                means = _means(kind, since, seconds, members)
                found.append(Mode(kind, since, seconds, BUCKET_S / 2, within, len(delays), means))
    yield from sorted(found, key=lambda mode: -mode.count)


def densest(values: Sequence[float]) -> tuple[float, int]:
    """(middle, how many) of the bucket, anywhere, that holds most of the values; around their median where it can."""
    ordered = sorted(values)
    best: tuple[int, int] = (0, 0)
    start = 0
    for end, value in enumerate(ordered):
        while value - ordered[start] > BUCKET_S:
            start += 1
        if end - start + 1 > best[1] - best[0]:
            best = start, end + 1
    inside = ordered[best[0] : best[1]]
    middle = min(max(median(inside), inside[-1] - BUCKET_S / 2), inside[0] + BUCKET_S / 2)
    return middle, len(inside)


def _means(kind: str, since: str, seconds: float, pairs: Sequence[Pair]) -> str:
    limits = [pair.timeout.timeout_s for pair in pairs if pair.timeout.timeout_s]
    if kind == MISSED:
        beats = [pair.event.timeout_s for pair in pairs if pair.event.timeout_s]
        if since == "stuck" and beats and BEATS[0] * min(beats) - 1 <= seconds <= BEATS[1] * max(beats) + BEATS_SLACK_S:
            return f"that is the broker's heartbeat ({median(beats):g} s), missed two to three times"
        if since == "kill" and seconds < 0:
            return "the broker had given the connection up before gunicorn did"
        return ""
    if since == "kill" and -BEFORE_KILL_S <= seconds <= AFTER_KILL_S:
        return "a killed worker's connections are closed by its kernel, so the kill is the cause"
    if since == "stuck" and limits and abs(seconds - median(limits)) <= max(2.0, 0.1 * median(limits)):
        return f"that is gunicorn's timeout ({median(limits):g} s)"
    return ""


def _overlap(timeout: WorkerTimeout, alarm: Alarm) -> bool:
    return alarm.since <= timeout.killed and (alarm.until is None or alarm.until >= _stuck(timeout))
