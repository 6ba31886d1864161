"""The records of a RabbitMQ log: time, level, Erlang process, and all lines of the message. Any version, any wrapping.

Formats, by RabbitMQ's own sources (rabbit_logger_text_fmt, rabbit_logger_json_fmt), lager's and OTP's error_logger's:
- 3.9 to 4.x: `2026-11-21 17:33:10.389037+00:00 [warning] <0.677.0> text`, every line of a message with the same head;
- 3.7 and 3.8: `2020-06-15 02:34:14.730 [error] <0.19764.8> text`, further lines bare, no time zone;
- 3.6 and before: `=WARNING REPORT==== 25-Mar-2019::07:54:25 ===`, the text on the lines below, no time zone;
- JSON: one object a line with "time", "level", "msg" and "pid".
What a terminal, docker, compose or kubectl puts in front of a line, around it (docker's JSON) or between (colours) is
passed over.
"""

from __future__ import annotations

import calendar
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

HEAD = re.compile(
    r"(?:(?P<day>\d{4}-\d\d-\d\d)[ T](?P<clock>\d\d:\d\d:\d\d)(?P<part>[.,]\d+)?(?P<zone> ?Z| ?[+-]\d\d:?\d\d)?"
    r"|(?P<epoch>\b\d{10}(?:\d{6})?)) "
    r"\[(?P<level>[A-Za-z]{3,9})\] (?:(?P<process><\d+\.\d+\.\d+>) ?)?"
)
OLD_HEAD = re.compile(
    r"=(?P<level>[A-Z]+) REPORT==== (?P<day>\d{1,2})-(?P<month>[A-Z][a-z]{2})-(?P<year>\d{4})::(?P<clock>[\d:]{8})"
    r"(?P<part>\.\d+)? ?(?P<zone>UTC)? ?===$"
)
STAMP = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d)[ T](?P<clock>\d\d:\d\d:\d\d)(?P<part>[.,]\d+)?(?P<zone> ?Z| ?[+-]\d\d:?\d\d)?"
)
BY_MONTH = re.compile(
    r"\b(?P<day>\d\d)/(?P<month>[A-Z][a-z]{2})/(?P<year>\d{4})[: ](?P<clock>\d\d:\d\d:\d\d)(?P<zone> [+-]\d{4})?"
)
"""As in access logs, and as some frameworks date their error logs too."""
EPOCH = re.compile(
    r"\"(?:ts|time|timestamp|created|asctime|@timestamp|epoch)\": ?\"?(?P<seconds>\d{10})(?:\.?(?P<part>\d{1,9}))?\b"
)
"""Seconds since 1970 in a JSON line, or thousandths and less of them without the point."""
COLOUR = re.compile(r"\x1b\[[0-9;]*[mK]")
MONTHS = {name: number for number, name in enumerate(calendar.month_abbr) if name}
JSON_TIMES, JSON_TEXTS = ("time", "ts", "timestamp", "@timestamp"), ("msg", "message")
LAST = 253_402_300_800.0
"""The end of the year 9999."""
MOST_LINES = 500
"""Of one record: a crash report may be long."""
LONGEST_TEXT = 4_000
SEARCHED = 400
"""Characters of a line in which its head has to begin."""


@dataclass(frozen=True)
class Record:
    time: float
    level: str
    process: str
    text: str
    """All lines of the message."""


@dataclass
class _Open:
    """A record whose further lines may be to come."""

    record: Record
    key: str
    """The head, where every line of a message has it."""
    lines: list[str]


class Reader:
    """Lines in; out come the records that hold one of `words`, as most of a large log is about something else.

    `offset_s`: what local time is ahead of UTC, for times without a zone.
    """

    def __init__(self, offset_s: float, words: tuple[str, ...]) -> None:
        self._offset_s = offset_s
        self._words = words
        self._open: _Open | None = None
        self._bare = False
        """Further lines of the last record have no head of their own, and there may be some."""
        self._passed: re.Match[str] | None = None
        """The head of the last record that was passed over."""
        self.lines = self.unreadable = 0
        self.first: float | None = None
        self.last: float | None = None
        """The times of all records, by the order of the file."""
        self.zone_assumed = False

    def read(self, lines: Iterable[str]) -> Iterator[Record]:
        """The lines of one file."""
        for line in lines:
            self.lines += 1
            if "\x1b" in line:
                line = COLOUR.sub("", line)
            head = HEAD.search(line, 0, SEARCHED)
            if head is not None and not line.endswith(("}\n", "}")):
                yield from self._headed(head, line)
            else:
                yield from self._other(head, line.rstrip("\r\n"))
        yield from self._ended()
        if self._passed is not None:
            self._saw(self._passed)
        self._bare, self._passed = False, None

    def _headed(self, head: re.Match[str], line: str) -> Iterator[Record]:
        text = line[head.end() :].rstrip("\r\n")
        # Before 3.9 further lines of a message are bare.
        key = head[0] if head["zone"] or head["epoch"] else ""
        if key and self._open is not None and self._open.key == key and len(self._open.lines) < MOST_LINES:
            self._open.lines.append(text[:LONGEST_TEXT])
            return
        if self._open is not None:
            yield from self._ended()
        self._bare = not key
        if self.first is not None and not any(word in text for word in self._words):
            self._passed = head
            return
        time = self._saw(head)
        if time is None:
            self.unreadable += 1
        else:
            record = Record(time, head["level"].lower(), head["process"] or "", "")
            self._open = _Open(record, key, [text[:LONGEST_TEXT]])

    def _saw(self, head: re.Match[str]) -> float | None:
        """The time in a record's head."""
        if head["epoch"]:
            return self._at(int(head["epoch"]) / (1 if len(head["epoch"]) == 10 else 1_000_000), "Z")
        return self._at(_moment(head["day"], head["clock"], head["part"]), head["zone"])

    def _at(self, time: float | None, zone: str | None) -> float | None:
        """In UTC. None: there is no such time."""
        if time is None or not 0 <= time < LAST:
            return None
        self.zone_assumed |= zone is None
        time -= self._offset_s if zone is None else _ahead_s(zone)
        self.first = time if self.first is None else min(self.first, time)
        self.last = time if self.last is None else max(self.last, time)
        return time

    def _other(self, head: re.Match[str] | None, line: str) -> Iterator[Record]:
        """What may be JSON, an old head, or a further line."""
        if line.endswith("}") and 0 <= (brace := line.find("{")) < SEARCHED:
            found = self._json(line[brace:])
            if isinstance(found, str):
                wrapped = HEAD.search(found, 0, SEARCHED)
                if wrapped is not None:
                    yield from self._headed(wrapped, found)
                else:
                    self._further(found.rstrip("\r\n"))
                return
            if found is not None:
                yield from self._ended()
                self._bare = False
                yield found
                return
        if head is not None:
            yield from self._headed(head, line)
            return
        old = OLD_HEAD.search(line[-SEARCHED:]) if line.endswith("===") else None
        if old is None:
            self._further(line)
            return
        yield from self._ended()
        day = f"{old['year']}-{MONTHS.get(old['month'], 0):02}-{int(old['day']):02}"
        time = self._at(_moment(day, old["clock"], old["part"]), "Z" if old["zone"] else None)
        self._bare = time is not None
        if time is None:
            self.unreadable += 1
        else:
            self._open = _Open(Record(time, old["level"].lower(), "", ""), "", [])

    def _further(self, line: str) -> None:
        if not self._bare or "\ufffd" in line:
            self.unreadable += bool(line.strip())
        elif self._open is not None and len(self._open.lines) < MOST_LINES:
            self._open.lines.append(line[:LONGEST_TEXT])

    def _ended(self) -> Iterator[Record]:
        opened, self._open = self._open, None
        if opened is not None:
            yield replace(opened.record, text="\n".join(opened.lines).strip("\n"))

    def _json(self, text: str) -> Record | str | None:
        """A record; the line that docker wrapped; None for what is neither."""
        try:
            found: Any = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(found, dict):
            return None
        if isinstance(found.get("log"), str) and "msg" not in found:
            return str(found["log"])
        message = next((found[name] for name in JSON_TEXTS if isinstance(found.get(name), str)), None)
        when = next((found[name] for name in JSON_TIMES if name in found), None)
        if message is None or when is None:
            return None
        zone: str | None = "Z"
        if isinstance(when, int | float) and not isinstance(when, bool) and abs(when) < 1e6 * LAST:
            moment: float | None = when / 1_000_000 if when > 1e12 else float(when)
        else:
            stamp = STAMP.fullmatch(str(when))
            moment = _moment(stamp["day"], stamp["clock"], stamp["part"]) if stamp is not None else None
            zone = stamp["zone"] if stamp is not None else None
        time = self._at(moment, zone)
        if time is None:
            return None
        return Record(time, str(found.get("level", "")), str(found.get("pid", "")), message[:LONGEST_TEXT])


def moment_of(line: str, offset_s: float) -> tuple[float | None, bool]:
    """The time stamp in front of what any program's log line says, the most exact and last of several (a container's
    runtime sets its own before it), and whether it tells more than the second."""
    found = sorted(STAMP.finditer(line[:SEARCHED]), key=lambda stamp: (stamp["part"] is not None, stamp.start()))
    for stamp in reversed(found):
        time = _moment(stamp["day"], stamp["clock"], stamp["part"])
        if time is not None:
            return time - (offset_s if stamp["zone"] is None else _ahead_s(stamp["zone"])), stamp["part"] is not None
    other = BY_MONTH.search(line, 0, SEARCHED)
    if other is not None:
        day = f"{other['year']}-{MONTHS.get(other['month'], 0):02}-{int(other['day']):02}"
        time = _moment(day, other["clock"], None)
        if time is not None:
            return time - (offset_s if other["zone"] is None else _ahead_s(other["zone"])), False
    epoch = EPOCH.search(line)
    if epoch is not None:
        return int(epoch["seconds"]) + float("0." + (epoch["part"] or "0")), epoch["part"] is not None
    return None, False


def _moment(day: str, clock: str, part: str | None) -> float | None:
    """Seconds since 1970, as if it were UTC. None: there is no such time."""
    try:
        hours, minutes, seconds = map(int, clock.split(":"))
        fraction = float("0." + part[1:]) if part else 0.0
        return _midnight(day) + 3600 * hours + 60 * minutes + seconds + fraction
    except ValueError:
        return None


@lru_cache(maxsize=64)
def _midnight(day: str) -> int:
    year, month, number = map(int, day.split("-"))
    if not (1970 <= year <= 9999 and 1 <= month <= 12 and 1 <= number <= 31):
        raise ValueError(day)
    return calendar.timegm((year, month, number, 0, 0, 0, 0, 0, 0))


def _ahead_s(zone: str) -> float:
    """What a time zone is ahead of UTC: "Z", "+02:00", "-0330"."""
    zone = zone.strip().replace(":", "")
    if zone == "Z":
        return 0.0
    seconds = 3600.0 * int(zone[1:3]) + 60.0 * int(zone[3:5])
    return -seconds if zone[0] == "-" else seconds
