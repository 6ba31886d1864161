"""What grows steadily in a process: its memory, its open files. Pure: samples in, trends out.

A warm-up, a cache that fills and then stays, or a saw-tooth is no steady growth: each third of the time has to show it,
the last one hardly less than the whole, and nothing of it may be given back.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from statistics import median

MOST = 120
"""Samples of a series: beyond, every second one is dropped and the interval doubles."""
MEMORY_EVERY_S, FDS_EVERY_S = 60.0, 30.0

MEMORY_SPAN_S, MEMORY_SAMPLES = 1800.0, 30
MEMORY_AT_LEAST_BYTES, MEMORY_TIMES = 200_000_000, 2.0
FDS_SPAN_S, FDS_SAMPLES, FDS_AT_LEAST, FDS_SHARE = 600.0, 20, 100, 0.5
WITHIN_S, WITHIN_SPANS = 86_400.0, 6.0
"""What is left lasts longer than a day, or than so many times of what was seen: too far for a prediction."""
GIVEN_BACK = 0.15
"""Of the whole growth: a larger fall in between is a saw-tooth."""
EARLY_SHARE, LAST_SHARE = 0.25, 0.5
"""Of the overall rate, in the first and second third and in the last one."""


class Series:
    """Samples of one quantity of one process, thinned out as they get many."""

    def __init__(self, every_s: float) -> None:
        self.every_s = every_s
        self.times: array[float] = array("d")
        self.values: array[float] = array("d")

    def due(self, at: float) -> bool:
        return not self.times or at - self.times[-1] >= self.every_s

    def add(self, at: float, value: float) -> None:
        """Takes the sample when it is time for one."""
        if not self.due(at):
            return
        self.times.append(at)
        self.values.append(value)
        if len(self.times) > MOST:
            self.times, self.values = self.times[1::2], self.values[1::2]
            self.every_s *= 2


def steady(series: Series, span_s: float, samples: int) -> float | None:
    """The rate of a steady growth, in units a second, over the latest times that show one; None: there is none.

    The start of a process is its warm-up: what grew then and not since is left out, so the latest half counts too.
    """
    for skip in (0, len(series.times) // 2):
        times, values = series.times[skip:], series.values[skip:]
        if len(times) < samples or times[-1] - times[0] < span_s:
            return None
        rate = _steady(times, values)
        if rate is not None:
            return rate
    return None


def _steady(times: array[float], values: array[float]) -> float | None:
    rate, grown = _slope(times, values), values[-1] - values[0]
    if rate <= 0 or grown <= 0:
        return None
    highest, fall = values[0], 0.0
    for value in values:
        highest = max(highest, value)
        fall = max(fall, highest - value)
    if fall > GIVEN_BACK * grown:
        return None
    third = (times[-1] - times[0]) / 3
    for number, share in ((0, EARLY_SHARE), (1, EARLY_SHARE), (2, LAST_SHARE)):
        first = bisect_left(times, times[0] + number * third)
        last = bisect_left(times, times[0] + (number + 1) * third) if number < 2 else len(times)
        if last - first < 3 or _slope(times[first:last], values[first:last]) < share * rate:
            return None
    return rate


def _slope(times: array[float], values: array[float]) -> float:
    """Theil and Sen: the median of the slopes between samples half of the series apart."""
    half = len(times) // 2
    return median(
        (values[index + half] - values[index]) / (times[index + half] - times[index])
        for index in range(len(times) - half)
    )


def memory_rate(series: Series) -> float | None:
    """Bytes a second; None: no growth worth a word."""
    if not series.times or series.values[-1] - min(series.values) < MEMORY_AT_LEAST_BYTES:
        return None
    if series.values[-1] < MEMORY_TIMES * min(series.values):
        return None
    return steady(series, MEMORY_SPAN_S, MEMORY_SAMPLES)


def runs_out(series: Series, rate: float, left: float) -> bool:
    """At this rate what is left is used up soon enough to say so."""
    return left < rate * min(WITHIN_S, WITHIN_SPANS * (series.times[-1] - series.times[0]))


def fds_rate(series: Series, limit: float | None) -> float | None:
    """Files a second of a growth that has used up half of the limit; None: there is none."""
    if limit is None or not series.times or series.values[-1] < FDS_SHARE * limit:
        return None
    if series.values[-1] - min(series.values) <= FDS_AT_LEAST:
        return None
    return steady(series, FDS_SPAN_S, FDS_SAMPLES)
