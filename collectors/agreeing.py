"""Reading what can change meanwhile: a thing counts as soon as two readings of it in a row agree."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")
_READINGS = 4


def read(
    readings: Callable[[Sequence[int]], Mapping[int, T]], places: Sequence[int], ends: float
) -> tuple[dict[int, T], bool]:
    """What lies at these places, and whether there was time for all (`ends`: CLOCK_MONOTONIC).

    `readings` reads those that it is given, and leaves out what is none or could not be read.
    """
    agreed: dict[int, T] = {}
    before = readings(places)
    left = list(before)
    for _ in range(_READINGS - 1):
        now = readings(left)
        agreed.update((place, read) for place, read in now.items() if before.get(place) == read)
        left = [place for place in now if place not in agreed]
        if not left:
            break
        if time.monotonic() > ends:
            return agreed, False
        before = now
    return agreed, True
