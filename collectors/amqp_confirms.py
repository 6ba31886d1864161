"""Which publishes of a channel are confirmed, by the tags of the broker's acks and nacks, and how long it took. No I/O.

RabbitMQ numbers a channel's publishes from 1 since confirm.select ("Publisher confirms" in its documentation); the
number itself is not on the wire. `ExactTags` counts along. `InferredTags` is for a channel whose publishes were not all
seen: an ack of tag T says that the last publish seen by then has at least T, so what was published behind the highest T
is surely unconfirmed, and no more than that is claimed.
"""

from __future__ import annotations

import math
from array import array
from collections import deque

from stucktrace.facts.amqp import Latency

MOST_OUTSTANDING = 100_000
"""Tags kept of one channel. Of older ones only their number is known."""
_MOST_SKIPPED = 4096
_LATE_S = 0.1
_DISORDER_S = 0.001
"""So much may the capture's clock mistake the order of the two directions."""
_COMPACT_AT = 4096
_FARTHEST = 1 << 24
"""No ack is so far ahead of the one before."""

_SETTLED, _NOT_KNOWN = -1.0, -2.0
"""In the place of a publish's time."""

_STEPS = 100.0
"""Buckets for each factor of e: a percentile is right within 1 %."""
_SHORTEST_S = 1e-6


class Latencies:
    """How long confirms took, in buckets of 1 %: the memory does not grow with their number."""

    __slots__ = ("buckets", "count", "max_s")

    def __init__(self) -> None:
        self.buckets: dict[int, int] = {}
        self.count = 0
        self.max_s = 0.0

    def add(self, seconds: float) -> None:
        bucket = int(math.log(seconds) * _STEPS) if seconds > _SHORTEST_S else int(math.log(_SHORTEST_S) * _STEPS)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
        self.count += 1
        self.max_s = max(self.max_s, seconds)

    def add_all(self, other: Latencies) -> None:
        for bucket, count in other.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + count
        self.count += other.count
        self.max_s = max(self.max_s, other.max_s)

    def clear(self) -> None:
        self.buckets.clear()
        self.count = 0
        self.max_s = 0.0

    def summary(self) -> Latency | None:
        if not self.count:
            return None
        return Latency(self.count, self._rank(0.5), self._rank(0.95), self._rank(0.99), self.max_s)

    def _rank(self, share: float) -> float:
        """The nearest rank."""
        wanted = math.ceil(share * self.count)
        seen = 0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            if seen >= wanted:
                # int() cuts towards zero: a negative bucket's values lie below its number.
                middle = bucket + 0.5 if bucket > 0 else bucket - 0.5 if bucket < 0 else 0.0
                return min(math.exp(middle / _STEPS), self.max_s)
        return self.max_s


class ExactTags:
    """All publishes since confirm.select were seen: each has its tag."""

    __slots__ = ("_first", "_head", "_times", "blurred", "forgotten", "latencies", "open")

    def __init__(self) -> None:
        self._first = 1
        """The tag of `_times[0]`."""
        self._times = array("d")
        self._head = 0
        """No publish before this index is open."""
        self.open = 0
        self.forgotten = 0
        """Unconfirmed ones that are too many to keep."""
        self.latencies = Latencies()
        self.blurred = False
        """Some acks cannot be counted one by one."""

    @property
    def last(self) -> int:
        """The tag of the last publish."""
        return self._first + len(self._times) - 1

    def publish(self, time_s: float) -> None:
        self._times.append(time_s)
        self.open += 1
        if len(self._times) - self._head > MOST_OUTSTANDING:
            self._forget(len(self._times) - self._head - MOST_OUTSTANDING // 2)

    def settle(self, tag: int, multiple: bool, time_s: float) -> int:
        """How many publishes this ack or nack settles."""
        if multiple:
            return self._settle_all(tag or self.last, time_s)
        index = tag - self._first
        if index < 0:
            if self.forgotten:
                self.forgotten -= 1
                return 1
            return 0
        if index >= len(self._times):
            return 0
        sent_s = self._times[index]
        if sent_s == _SETTLED:
            return 0
        self._times[index] = _SETTLED
        if sent_s != _NOT_KNOWN:
            self.open -= 1
            self.latencies.add(time_s - sent_s)
        if index == self._head:
            self._advance()
        return 1

    def _settle_all(self, tag: int, time_s: float) -> int:
        times = self._times
        count = 0
        if self.forgotten:
            if tag >= self._first:
                count, self.forgotten = self.forgotten, 0
            else:
                # Which of those before the first that is kept were settled one by one was forgotten with them.
                self.blurred = True
        for index in range(self._head, min(tag - self._first + 1, len(times))):
            sent_s = times[index]
            if sent_s >= 0:
                self.open -= 1
                self.latencies.add(time_s - sent_s)
                count += 1
            times[index] = _SETTLED
        self._advance()
        return count

    def acks_missed(self) -> None:
        """A gap in what the broker sent: which of the open publishes are confirmed is not known any more."""
        for index in range(self._head, len(self._times)):
            if self._times[index] >= 0:
                self._times[index] = _NOT_KNOWN
        if self.open or self.forgotten:
            self.blurred = True
        self.open = self.forgotten = 0
        self._advance()

    def oldest(self) -> float | None:
        """When the oldest open publish was sent (of those kept)."""
        return self._times[self._head] if self._head < len(self._times) else None

    def _advance(self) -> None:
        times, head, end = self._times, self._head, len(self._times)
        while head < end and times[head] < 0:
            head += 1
        self._head = head
        if head > _COMPACT_AT and head * 2 > end:
            # What is still not known before the head is settled when its ack comes, or never: it is let go.
            del times[:head]
            self._first += head
            self._head = 0

    def _forget(self, number: int) -> None:
        begin = self._head
        for index in range(begin, begin + number):
            if self._times[index] >= 0:
                self.open -= 1
                self.forgotten += 1
        del self._times[: begin + number]
        self._first += begin + number
        self._head = 0
        self._advance()


class InferredTags:
    """Publishes whose tags are not known for sure."""

    __slots__ = ("_acked_s", "_highest", "_owed", "_owed_s", "_skipped", "_tail", "blurred", "latencies", "overflow")

    def __init__(self, highest: int | None = None) -> None:
        self._acked_s = 0.0
        """When the last ack came."""
        self._highest = highest
        """The highest tag acked; or, None, no ack was seen."""
        self._tail: deque[float] = deque()
        """Publishes that have a higher one."""
        self._owed, self._owed_s = 0, 0.0
        """So many publishes are acked that were not seen; since when. Unless they come late, the tags are higher than
        thought, and what was timed by them is wrong."""
        self._skipped: set[int] = set()
        """Tags below the highest that no ack covered, of the time since the first ack."""
        self.blurred = False
        self.latencies = Latencies()
        """Taken as if every publish from before were confirmed; forgotten when that turns out to be wrong."""
        self.overflow = 0
        """More of them, behind the tail, than are kept."""

    @property
    def open(self) -> int:
        """Publishes that have a higher tag."""
        return len(self._tail) + self.overflow

    def publish(self, time_s: float) -> None:
        if time_s <= self._acked_s:
            # It comes late in the capture: the last ack was sent after it, and may be its own.
            self._owed = max(0, self._owed - 1)
            return
        if self.overflow or len(self._tail) >= MOST_OUTSTANDING:
            self.overflow += 1
        else:
            self._tail.append(time_s)

    def settle(self, tag: int, multiple: bool, time_s: float) -> int:
        highest = self._highest
        if highest is not None and tag - highest > _FARTHEST:
            return 0
        if self._owed and time_s - self._owed_s > _LATE_S:
            self._owed = 0
            self.latencies.clear()
        self._acked_s = max(self._acked_s, time_s)
        if highest is None:
            self.blurred = multiple
            self._highest = tag
            self._drop_tail(time_s)
            return 1
        if multiple:
            return self._settle_all(tag, highest, time_s)
        if tag <= highest:
            self._skipped.discard(tag)
            return 1
        if tag - highest - 1 <= _MOST_SKIPPED - len(self._skipped):
            self._skipped.update(range(highest + 1, tag))
        else:
            self.blurred = True
        sent_s = self._pass(tag - highest, time_s)
        if len(sent_s) == tag - highest:
            self.latencies.add(max(0.0, time_s - sent_s[-1]))
        self._highest = tag
        return 1

    def _settle_all(self, tag: int, highest: int, time_s: float) -> int:
        # From before the first ack seen there may have been open ones too: how many is not known.
        self.blurred = True
        if not tag:
            tag = highest + self.open
        covered = {skipped for skipped in self._skipped if skipped <= tag}
        self._skipped -= covered
        if tag <= highest:
            return len(covered)
        seen = self.open
        for sent_s in self._pass(tag - highest, time_s):
            self.latencies.add(time_s - sent_s)
        self._highest = tag
        # Beyond those seen it settles some from before; more of them than that many are nobody's.
        return len(covered) + min(tag - highest, seen - self.open + _MOST_SKIPPED)

    def _pass(self, number: int, time_s: float) -> list[float]:
        """Takes so many publishes from the tail; none, when there are fewer: then the tags are higher than thought."""
        if len(self._tail) < number <= self.open:
            self.overflow -= number - len(self._tail)
            number = len(self._tail)
        elif number > len(self._tail) or self._tail[number - 1] > time_s + _DISORDER_S:
            if not self._owed:
                self._owed_s = time_s
            self._owed += max(1, number - len(self._tail))
            self._drop_tail(time_s)
            return []
        return [self._tail.popleft() for _ in range(number)]

    def _drop_tail(self, time_s: float) -> None:
        """All that was published before: an ack then may be of any of it."""
        if self.overflow:
            self._tail.clear()
            self.overflow = 0
        while self._tail and self._tail[0] <= time_s + _DISORDER_S:
            self._tail.popleft()

    def acks_missed(self) -> None:
        self.blurred = True
        self._highest = None
        self._skipped.clear()
        self._drop_tail(math.inf)

    def oldest(self) -> float | None:
        return self._tail[0] if self._tail else None
