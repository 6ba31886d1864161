"""The suspended greenlets and tasks of a report as a short table: those in the same wait are one line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stucktrace.sinks.text_stacks import short_path

GROUPS_SHOWN = 8
_NAMES = {"asyncio-task": "asyncio task"}

Json = dict[str, Any]
_Key = tuple[str, str, int, str]


def heading(greenlets: list[Json]) -> str:
    """For example "20 gevent greenlets are suspended"."""
    kinds: dict[str, int] = {}
    for each in greenlets:
        kinds[each["kind"]] = kinds.get(each["kind"], 0) + 1
    words = [f"{number} {_noun(kind)}{'s' if number > 1 else ''}" for kind, number in kinds.items()]
    return f"Suspended: {', '.join(words)}"


def _noun(kind: str) -> str:
    return _NAMES.get(kind, kind if kind == "greenlet" else f"{kind} greenlet")


def lines(greenlets: list[Json], verbose: bool) -> Iterator[str]:
    """One for each wait, the commonest first."""
    groups: dict[_Key, int] = {}
    for each in greenlets:
        groups[_key(each)] = groups.get(_key(each), 0) + 1
    ordered = sorted(groups.items(), key=lambda group: (-group[1], group[0]))
    shown = ordered if verbose else ordered[:GROUPS_SHOWN]
    for (function, file, line, wait), number in shown:
        yield f"{number:>5}  {function} ({file}:{line})" + (f": {wait}" if wait else "")
    if len(shown) < len(ordered):
        rest = sum(number for _, number in ordered[GROUPS_SHOWN:])
        yield f"{rest:>5}  in {len(ordered) - GROUPS_SHOWN} other waits (-v shows them)"


def _key(greenlet: Json) -> _Key:
    if not greenlet["python"]:
        return greenlet["name"], "?", 0, greenlet["waits_for"] or ""
    frame = greenlet["python"][greenlet["frame"]]
    return frame["function"], short_path(frame["file"]), frame["line"], greenlet["waits_for"] or ""
