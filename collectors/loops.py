"""Whether a variable's value may be left over, from an earlier turn of a loop or from before it was given back, by the
lines of source.

A frame stands at a line. What a line above gave back is left over. Inside a loop, a variable that is only assigned at
this line or further down the loop's body has what the turn before gave it. Lines are told apart by their indentation;
where a statement cannot be made out, every variable counts as left over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_LOOP = re.compile(r"\s*(?:async\s+)?(?:for|while)\b")
_DEF = re.compile(r"\s*(?:async\s+)?(?:def|class)\b")
_BACK = r"(?:put|release|return|give|close|check_?in|free|back|restore|discard|invalidate)"
_MOST_LINES = 2_000
_LONGEST_LINE = 500
"""The patterns take the square of it."""


def stale(lines: Sequence[str], number: int, names: Iterable[str]) -> list[str]:
    """Of these variables, those that may be left over at line `number` (the first is 1)."""
    if not 0 < number <= len(lines) or not _whole(lines[number - 1]):
        return list(names)
    body = _outermost_loop(lines, number - 1)
    current = lines[number - 1]
    if body and any(len(line) > _LONGEST_LINE for line in lines[body.start : body.stop]):
        return list(names)
    found = []
    for name in names:
        here = _assigns(current, name)
        above = any(_assigns(line, name) for line in lines[body.start : number - 1]) if body else False
        inside = any(_assigns(line, name) for line in lines[body.start : body.stop]) if body else False
        if here or (inside and not above) or _given_back(lines, number - 1, name):
            found.append(name)
    return found


def _given_back(lines: Sequence[str], at: int, name: str) -> bool:
    """A line above, of the same function, gives it back by the name of what it calls."""
    word = re.escape(name)
    back = re.compile(rf"{_BACK}\w*\([^)]*\b{word}\b|\b{word}\.\w*{_BACK}|\bdel\b.*\b{word}\b", re.I)
    for index in range(at - 1, max(-1, at - _MOST_LINES), -1):
        if len(lines[index]) > _LONGEST_LINE or back.search(lines[index]):
            return True
        if _DEF.match(lines[index]) and _indent(lines[index]) < _indent(lines[at]):
            return False
    return False


def _whole(line: str) -> bool:
    """A statement of one line, as far as its brackets tell."""
    pairs = (("(", ")"), ("[", "]"), ("{", "}"))
    return (
        bool(line.strip())
        and len(line) <= _LONGEST_LINE
        and all(line.count(first) == line.count(last) for first, last in pairs)
    )


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _outermost_loop(lines: Sequence[str], at: int) -> range | None:
    """The lines of the outermost loop of the function around a line, its header with them."""
    depth, header = _indent(lines[at]), at if _LOOP.match(lines[at]) else None
    for index in range(at - 1, max(-1, at - _MOST_LINES), -1):
        line = lines[index]
        if not line.strip() or line.lstrip().startswith("#") or _indent(line) >= depth:
            continue
        depth = _indent(line)
        if _DEF.match(line):
            break
        if _LOOP.match(line):
            header = index
    if header is None:
        return None
    outer = _indent(lines[header])
    end = header + 1
    while end < len(lines) and (not lines[end].strip() or _indent(lines[end]) > outer):
        end += 1
    return range(header, end)


def _assigns(line: str, name: str) -> bool:
    word = rf"\b{re.escape(name)}\b"
    return bool(
        re.match(rf"\s*[^=()\[\]]*{word}[^=()\[\]]*(?::[^=]+)?(?:[-+*/|&]?=(?!=))", line)
        or re.search(rf"{word}\s*:=", line)
        or re.match(rf"\s*(?:async\s+)?for\b[^=]*{word}[^=]*\bin\b", line)
        or re.search(rf"\bas\s+\(?[^:]*{word}", line)
    )
