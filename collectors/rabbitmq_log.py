"""What RabbitMQ's log says of its AMQP connections: how each one ended, and when resource alarms held publishers up.

The words are those of rabbit_reader.erl (log_connection_exception), rabbit_alarm.erl and their ancestors from 3.5 on; a
real 3.10 was read too. Files are streamed, plain or gzip; of what is in them only what was asked for is kept.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

from stucktrace.collectors.rabbitmq_records import Reader, Record
from stucktrace.errors import CannotInspect
from stucktrace.facts.correlation import ABRUPT, CLOSED, FAILED, HANDSHAKE, MISSED, Alarm, BrokerEvent, BrokerLog

ENDS = r"\(?(?P<client>[^\s()]+:\d+) -> (?P<server>[^\s()]+:\d+)(?P<rest>.*)"
ACCEPTING = re.compile(r"accepting AMQP connection (?:<[\d.]+> )?" + ENDS, re.DOTALL)
CLOSING = re.compile(r"closing AMQP (?:1\.0 )?connection (?:(?P<process><[\d.]+>) )?" + ENDS, re.DOTALL)
FORCED = re.compile(r"Error on AMQP connection (?P<process><[\d.]+>) " + ENDS, re.DOTALL)
ON_ONE_LINE = re.compile(r"\): (?P<reason>\S.*)$")
UNEXPECTED = re.compile(r"client unexpectedly closed TCP connection|connection_closed_abruptly")
HEARTBEATS = re.compile(
    r"missed heartbeats from client, timeout: (?P<seconds>\d+)\s*s|\{heartbeat_timeout,(?P<other>\d+)\}"
)
ALARM = re.compile(
    r"(?P<resource>\w+(?: descriptors?)?) (?:resource )?limit alarm (?P<what>set|cleared)(?: on node (?P<node>\S+))?"
)
WORDS = "AMQP connection", "AMQP 1.0 connection", "limit alarm", "in the last second"
"""One of them stands in every message that is read here."""
DROPPED = re.compile(r"dropped (?P<number>\d+) (?:messages|events) in the last second")
LONGEST_LINE_BYTES = 1 << 20
LONGEST_REASON = 300
MOST_OPEN = 200_000
"""Connections whose end is still to come: ends that are not logged must not fill the memory."""
LOOKED_AT = 1_000
"""Lines of a file in which its first record is looked for."""
GZIP = b"\x1f\x8b"
Wanted = Callable[[BrokerEvent], bool]
Bytes = io.BufferedReader | gzip.GzipFile


def read(paths: Iterable[str], offset_s: float, wanted: Wanted, torn: Callable[[str], None]) -> BrokerLog:
    """The files, "-" for stdin, as one log. `torn` is told of a file that ends before its time. CannotInspect."""
    parser = Parser(offset_s, wanted)
    for path in sorted(paths, key=lambda path: _first(path, offset_s)):
        with opened(path) as file:
            parser.feed(_lines(file, path, torn))
    return parser.log()


class Parser:
    """Lines of one or several files of one broker, the oldest first."""

    def __init__(self, offset_s: float, wanted: Wanted) -> None:
        self._reader = Reader(offset_s, WORDS)
        self._wanted = wanted
        self._events: dict[tuple[float, str, str], BrokerEvent] = {}
        self._open: dict[str, float] = {}
        self._alarms: list[tuple[float, str, str, str]] = []
        self._counts: Counter[str] = Counter()
        self._dropped = 0

    def feed(self, lines: Iterable[str]) -> None:
        for record in self._reader.read(lines):
            self._take(record)

    def log(self) -> BrokerLog:
        events = sorted(self._events.values(), key=lambda event: event.time)
        return BrokerLog(
            tuple(events),
            dict(self._counts),
            dict(self._open),
            tuple(alarms(self._alarms)),
            self._reader.lines,
            self._reader.unreadable,
            self._dropped,
            self._reader.first,
            self._reader.last,
            self._reader.zone_assumed,
        )

    def _take(self, record: Record) -> None:
        text = record.text
        if "AMQP" in text:
            accepted = ACCEPTING.match(text)
            if accepted is not None:
                self._accept(record.time, accepted["client"])
                return
            event = ended(record)
            if event is not None:
                self._end(event)
        elif "limit alarm" in text:
            found = ALARM.match(text)
            if found is not None:
                self._alarms.append((record.time, found["resource"], found["what"], found["node"] or ""))
        elif "dropped" in text and (left_out := DROPPED.search(text)):
            self._dropped += int(left_out["number"])

    def _accept(self, time: float, client: str) -> None:
        self._counts["accepted"] += 1
        self._open[client] = time
        if len(self._open) > MOST_OPEN:
            self._open.pop(next(iter(self._open)))

    def _end(self, event: BrokerEvent) -> None:
        accepted = self._open.get(event.client)
        if accepted is not None and accepted <= event.time:
            event = replace(event, accepted=accepted)
            # The reason for an exception comes first, and then that the connection is closed.
            if event.kind != FAILED:
                del self._open[event.client]
        key = event.time, event.client, event.kind
        if key not in self._events:
            self._counts[event.kind] += 1
            if self._wanted(event):
                self._events[key] = event


def ended(record: Record) -> BrokerEvent | None:
    """The end of a connection that the record tells of."""
    found = CLOSING.match(record.text) or FORCED.match(record.text)
    if found is None:
        return None
    first, _, more = found["rest"].partition("\n")
    on_one_line = ON_ONE_LINE.search(first)
    # What a client calls itself stands on the first line too: only what is behind it is the broker's word.
    reason = more.strip() or (on_one_line["reason"] if on_one_line else "")
    kind, timeout_s = FAILED, None
    heartbeats = HEARTBEATS.search(reason)
    if UNEXPECTED.search(reason):
        kind = ABRUPT
    elif heartbeats is not None:
        kind, timeout_s = MISSED, float(heartbeats["seconds"] or heartbeats["other"])
    elif "handshake_timeout" in reason:
        kind = HANDSHAKE
    elif not reason and not first.rstrip().endswith(":"):
        kind = CLOSED
    return BrokerEvent(
        record.time,
        kind,
        found["client"],
        found["server"],
        found["process"] or record.process,
        " ".join(reason.split())[:LONGEST_REASON],
        timeout_s,
    )


def alarms(said: Iterable[tuple[float, str, str, str]]) -> Iterator[Alarm]:
    """(time, resource, "set" or "cleared", node; "" for the whole cluster) -> when each one was in force."""
    since: dict[tuple[str, str], float] = {}
    for time, resource, what, node in sorted(said):
        node = node.rstrip(".")
        if what == "set":
            since.setdefault((resource, node), time)
            continue
        for key in [key for key in since if key[0] == resource and (not node or key[1] in (node, ""))]:
            yield Alarm(key[0], key[1], since.pop(key), time)
    for (resource, node), began in since.items():
        yield Alarm(resource, node, began, None)


def _first(path: str, offset_s: float) -> float:
    """When the file begins: rotated logs are named newest first as often as not."""
    if not Path(path).is_file():
        # A pipe can be read once only.
        return math.inf
    reader = Reader(offset_s, WORDS)
    with opened(path) as file:
        for _ in reader.read(islice(_lines(file, path, lambda _: None), LOOKED_AT)):
            break
    return reader.first if reader.first is not None else math.inf


@contextmanager
def opened(path: str, remedy: str = "give RabbitMQ's log, or - for stdin") -> Iterator[Bytes]:
    """A log, plain or gzip; "-" is stdin. CannotInspect where it cannot be read."""
    try:
        if path == "-":
            yield _unpacked(io.BufferedReader(io.FileIO(0, closefd=False)))
            return
        if Path(path).is_dir():
            raise CannotInspect(f"{path} is a directory", "name the log files in it, rotated ones too")
        with open(path, "rb") as file:
            yield _unpacked(file)
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile):
            raise CannotInspect(f"{path}: {error}", "") from None
        raise CannotInspect(
            f"cannot read {path}: {os.strerror(error.errno) if error.errno else error}", remedy
        ) from None


def _unpacked(file: io.BufferedReader) -> Bytes:
    return gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == GZIP else file


def _lines(file: Bytes, path: str, torn: Callable[[str], None]) -> Iterator[str]:
    try:
        while line := file.readline(LONGEST_LINE_BYTES):
            yield line.decode(errors="replace")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        torn(f"{path} is torn: {error}")
