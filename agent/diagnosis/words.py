"""Words for numbers and names, used by every rule and by the text output, so that an age looks the same everywhere."""

from __future__ import annotations

from collections.abc import Iterable

MINUTE, HOUR, DAY = 60, 3600, 86400


def age(seconds: float | None) -> str:
    """An age or a length of time: "0.4 s", "1.4 s", "35 s", "12 min", "3 h", "4 d"."""
    if seconds is None:
        return "an unknown time"
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    if seconds < 2 * MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 2 * HOUR:
        return f"{seconds / MINUTE:.0f} min"
    if seconds < 2 * DAY:
        return f"{seconds / HOUR:.0f} h"
    return f"{seconds / DAY:.0f} d"


def size(length_bytes: int | None) -> str:
    """A number of bytes: "563 bytes", "12 kB", "3.2 MB"."""
    if length_bytes is None:
        return "an unknown number of bytes"
    if length_bytes < 10_000:
        return count(length_bytes, "byte")
    if length_bytes < 1_000_000:
        return f"{length_bytes / 1000:.0f} kB"
    if length_bytes < 1_000_000_000:
        return f"{length_bytes / 1_000_000:.1f} MB"
    return f"{length_bytes / 1_000_000_000:.1f} GB"


def count(number: int, noun: str, plural: str = "") -> str:
    """ "1 segment", "3 segments"."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def listing(items: Iterable[str], most: int = 4) -> str:
    """ "a", "a and b", "a, b and c", "a, b, c, d and 3 more"."""
    names = list(items)
    if len(names) > most:
        names = [*names[:most], f"{len(names) - most} more"]
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def a(noun: str) -> str:
    """ "an Account", "a queue.Queue"."""
    return f"{'an' if noun[:1].lower() in 'aeiou' and noun else 'a'} {noun}"


def process(pid: int, command: str = "") -> str:
    """ "redis-server (pid 812)" or "pid 812"."""
    return f"{command} (pid {pid})" if command else f"pid {pid}"
