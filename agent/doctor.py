"""What can be seen from here: every ability is tested by using it, on a child process that is started for it.

A list of capabilities says what ought to work; only doing it says what does (a seccomp filter, a security module, a
user namespace or a mount option can each take it away again). Each line names what suffers without it, and what would
help.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from stucktrace import __version__, privileges
from stucktrace.abilities import TESTS, Refused, Test, a_child
from stucktrace.collectors import permission
from stucktrace.errors import CannotInspect, CollectorError

LESS = "stucktrace works with less, and says in each report what it could not see."


@dataclass(frozen=True)
class Result:
    name: str
    works: bool
    needed: bool
    seen: str
    """What was seen, or why it did not work."""
    serves: str
    remedy: str
    """"" when it works."""


def examine() -> Iterator[Result]:
    """Runs all tests, one after the other."""
    with a_child() as pid:
        for test in TESTS:
            yield _run(test, pid)


def _run(test: Test, pid: int) -> Result:
    remedy = ""
    try:
        return Result(test.name, True, test.needed, test.use(pid), test.serves, "")
    except Refused as refused:
        because, remedy = str(refused), refused.remedy
    except CollectorError as error:
        because, remedy = error.missing.because, error.missing.remedy
    except CannotInspect as error:
        because, remedy = error.message, error.remedy
    except OSError as error:
        because = os.strerror(error.errno) if error.errno else str(error)
    except Exception as error:
        because = f"{type(error).__name__}: {error}"
    return Result(test.name, False, test.needed, because, test.serves, remedy or _remedy(test))


def _remedy(test: Test) -> str:
    """The capabilities that lack, or what else refuses."""
    said = permission.remedy(*test.needs, call=test.call) if test.needs else ""
    return "; ".join(one for one in (test.remedy, said) if one)


@dataclass(frozen=True)
class Permitted:
    """What the capabilities allow, for a process of another user in another network namespace."""

    feature: str
    needs: tuple[str, ...]
    lacks: tuple[str, ...]


def features() -> tuple[Permitted, ...]:
    return tuple(
        Permitted(one.name, one.needs, permission.lacking(*one.needs)) for one in privileges.FEATURES if one.needs
    )


def run(as_json: bool) -> int:
    """Prints every result as it comes. Exit status: 0 all needed abilities are there, 1 something is missing."""
    from stucktrace.output import write

    began = time.perf_counter()
    results = []
    for result in examine():
        results.append(result)
        if not as_json:
            write(text(result))
    lacking = [result for result in results if result.needed and not result.works]
    if as_json:
        import json

        answer: dict[str, Any] = {
            "schema": "stucktrace.doctor/1",
            "tool": {"version": __version__},
            "complete": not lacking,
            "abilities": [asdict(result) for result in results],
            "features": [asdict(one) for one in features()],
            "took_s": round(time.perf_counter() - began, 3),
        }
        write(json.dumps(answer) + "\n")
        return 1 if lacking else 0
    write(f"\n{_features_text()}\n")
    if lacking:
        write(f"\n{len(lacking)} of {len(results)} abilities missing. {LESS}\n")
    else:
        write("\nEverything that stucktrace needs is there.\n")
    return 1 if lacking else 0


def _features_text() -> str:
    """The features that no capability lacks for, then each other one with those that do."""
    found = features()
    lines = []
    if allowed := [one.feature for one in found if not one.lacks]:
        lines.append(f"Permitted for processes of other users in other network namespaces: {', '.join(allowed)}.")
    if short := [one for one in found if one.lacks]:
        width = max(len(one.feature) for one in short)
        lines.append("In part, or not at all; docs/privileges.md says what is lost without each capability:")
        lines += [f"  {one.feature:<{width}}  lacks {permission.caps(one.lacks)}" for one in short]
    return "\n".join(lines)


def text(result: Result) -> str:
    """One result as a person reads it."""
    from stucktrace.sinks.page import clean

    mark = "ok  " if result.works else "NO  " if result.needed else "note"
    lines = [f"{mark}  {result.name:<18} {clean(result.seen, 200)}"]
    if not result.works:
        lines.append(f"      {'':<18} without it: {result.serves}")
        lines.append(f"      {'':<18} remedy: {clean(result.remedy, 300)}")
    return "\n".join(lines) + "\n"
