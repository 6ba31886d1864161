"""A line of the target's own source, to name a lock as its code does: "Handler.lock" from `with self.lock:`.

The file is read in the target's own root, only when it is a regular file of a reasonable size, and may have changed
since the target loaded it: a name is all that is taken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from stucktrace.collectors.target_files import read_inside
from stucktrace.facts import Frame

_MAX_FILE_BYTES = 2 << 20
_MAX_NAME = 60
_LONGEST_LINE = 1_000
"""What is longer was not written by hand, and names nothing."""

_NAME = r"[A-Za-z_][\w.]*(?:\[[\w'\"]{1,30}\])?"
_WITH = re.compile(rf"^\s*(?:async\s+)?with\s+\(?\s*({_NAME})\s*(?:as\s+\w+\s*)?\)?\s*:")
_CALL = re.compile(rf"({_NAME})\.(?:acquire|__enter__)\(")


def called(pid: int, frame: Frame, seen: dict[str, Mapping[int, str]]) -> str:
    """What the frame's line calls, for example "self.ready.wait", if it is a single call; else ""."""
    if frame.native or not frame.file.startswith("/"):
        return ""
    if frame.file not in seen:
        seen[frame.file] = _lines(pid, frame.file)
    return called_in(seen[frame.file].get(frame.line, ""))


def called_in(line: str) -> str:
    """The only call in one line of code. In a string or a definition there is none."""
    if len(line) > _LONGEST_LINE or re.match(r"\s*(?:async\s+)?(?:def|class)\b", line) or re.search(r"[\"'#]", line):
        return ""
    calls = re.findall(rf"({_NAME})\(", line)
    return calls[0][:_MAX_NAME] if len(calls) == 1 and line.count("(") == 1 else ""


def lock_name(pid: int, frame: Frame, seen: dict[str, Mapping[int, str]]) -> str:
    """What the code calls the lock that this frame acquires, "" when its line does not tell.

    `seen`: the files read so far.
    """
    if frame.native or not frame.file.startswith("/"):
        return ""
    if frame.file not in seen:
        seen[frame.file] = _lines(pid, frame.file)
    return name_in(seen[frame.file].get(frame.line, ""), frame.function)


def name_in(line: str, function: str) -> str:
    """The lock in one line of code; `self.` becomes the class, where the function's name has it."""
    if len(line) > _LONGEST_LINE:
        return ""
    calls = _CALL.findall(line)
    found = _WITH.match(line)
    name = found[1] if found else calls[0] if len(calls) == 1 else ""
    holder, _, attribute = name.partition(".")
    parts = function.split(".")
    if holder == "self" and attribute and len(parts) > 1 and parts[-2] != "<locals>":
        name = f"{parts[-2]}.{attribute}"
    return name[:_MAX_NAME]


def text(pid: int, path: str) -> str:
    """A file of source as the target sees it; "" where it cannot be read."""
    found = read_inside(pid, path, _MAX_FILE_BYTES + 1)
    return found.decode(errors="replace") if found is not None and len(found) <= _MAX_FILE_BYTES else ""


def _lines(pid: int, path: str) -> Mapping[int, str]:
    return dict(enumerate(text(pid, path).splitlines(), 1))
