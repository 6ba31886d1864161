"""The stacks in a report's text: the verdict's thread's, and those of the holders along the locks that it waits for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stucktrace import reported
from stucktrace.diagnosis.words import listing
from stucktrace.sinks.page import Page, clean

Json = dict[str, Any]

FRAMES_SHOWN = 12
HOLDERS_FRAMES_SHOWN = 6
HOLDERS_SHOWN = 3
NATIVE_FRAMES_SHOWN = 10


def stacks(page: Page, report: Json, verbose: bool) -> None:
    """The stack of the verdict's thread with the frame that matters marked; with a lock its holders' too."""
    thread = reported.thread(report)
    if thread is None or not (thread["python"] or thread["native"]):
        return
    _heading(page, thread)
    frames(page, report, thread, report["verdict"]["frame"], verbose=verbose)
    # With -v all threads are shown anyway.
    for holder in [] if verbose else list(_holders(report))[:HOLDERS_SHOWN]:
        if holder["python"]:
            _heading(page, holder)
            frames(page, report, holder, None, verbose=verbose, most=HOLDERS_FRAMES_SHOWN)


def _heading(page: Page, thread: Json) -> None:
    kind = "Python" if not thread["native"] else "Python and native" if thread["python"] else "Native"
    page.heading(f"{kind} stack of {clean(thread['name'], 60)} (tid {thread['tid']}), innermost first")


def _holders(report: Json) -> Iterator[Json]:
    """The threads along the locks that the verdict's thread waits for, nearest first."""
    held_by = {
        waiter["tid"]: owner["tid"]
        for lock in report["locks"]
        for owner in lock["owners"]
        for waiter in lock["waiters"]
    }
    threads = {thread["tid"]: thread for thread in report["threads"]}
    tid, seen = report["verdict"]["tid"], set()
    while tid in held_by and tid not in seen:
        seen.add(tid)
        tid = held_by[tid]
        if tid in threads and tid not in seen:
            yield threads[tid]


def _holding(report: Json, thread: Json) -> Mapping[int, str]:
    """Index of a frame -> whom the locks keep waiting that its with blocks hold."""
    found: dict[int, str] = {}
    for lock in report["locks"]:
        for owner in lock["owners"]:
            if owner["tid"] == thread["tid"] and owner["frame"] in thread["python"]:
                index = thread["python"].index(owner["frame"])
                words = f"holds what {_waiting(report, lock, thread)} for"
                words += f", taken in line {owner['taken']['line']}" if owner["taken"] else ""
                found[index] = f"{found[index]}; {words}" if index in found else words
    return found


def _waiting(report: Json, lock: Json, holder: Json) -> str:
    """The lock has one name in the holder's code and another in each waiter's: so it is told by who waits for it."""
    tids = [waiter["tid"] for waiter in lock["waiters"]]
    if holder["tid"] in tids:
        return "it waits"
    names = [thread["name"] for thread in report["threads"] if thread["tid"] in tids]
    return f"{listing(names, 2)} {'waits' if len(names) == 1 else 'wait'}"


def frames(
    page: Page, report: Json, thread: Json, marked: int | None, *, verbose: bool, most: int = FRAMES_SHOWN
) -> None:
    """A thread's frames, as many as there is room for around the marked one."""
    python, holding = thread["python"], _holding(report, thread)
    shown = range(len(python)) if verbose else _window(len(python), marked, most)
    if shown.start:
        page.lines.append(f"    ... {shown.start} inner frames (-v shows them)")
    for index in shown:
        _native_frames(page, thread, index, verbose)
        frame = python[index]
        where = clean(f"{frame['function']} ({short_path(frame['file'])}:{frame['line']})", 300)
        if index in holding:
            where += f"  <- {clean(holding[index], 200)}"
        page.lines.append(page.paint("  > " + where, "1") if index == marked else "    " + where)
        if verbose and "locals" in frame:
            for name, value in frame["locals"].items():
                page.lines.append(f"        {clean(name, 100)} = {clean(value, 200)}")
    if shown.stop < len(python):
        page.lines.append(f"    ... {len(python) - shown.stop} outer frames (-v shows them)")
    else:
        _native_frames(page, thread, len(python), verbose)
    if verbose and thread.get("native_ended"):
        page.text(f"(native frames may be missing: {thread['native_ended']})", "    ")


def _native_frames(page: Page, thread: Json, inside: int, verbose: bool) -> None:
    """Those that lie between the Python frame of this index and the next inner one."""
    frames = [frame for frame in thread["native"] if frame["inside"] == inside]
    if not verbose:
        # Of functions without a name in a row, in one library, the innermost stands for all.
        pairs = zip([None, *frames], frames, strict=False)
        frames = [frame for before, frame in pairs if not (_unnamed(frame) and before and _same_file(before, frame))]
    shown = frames if verbose else frames[:NATIVE_FRAMES_SHOWN]
    for frame in shown:
        library = frame["library"] or frame["file"].rpartition("/")[2]
        page.lines.append("    " + clean(f"{frame['function']} [{library}]", 300))
    if len(shown) < len(frames):
        page.lines.append(f"    ... {len(frames) - len(shown)} native frames (-v shows them)")


def _unnamed(frame: Json) -> bool:
    return "+0x" in frame["function"]


def _same_file(one: Json, other: Json) -> bool:
    return _unnamed(one) and bool(one["file"] == other["file"])


def _window(count: int, marked: int | None, most: int) -> range:
    """Which frames to show: the innermost, moved outwards as far as the marked one needs."""
    start = max(0, min((marked or 0) - most + 4, count - most))
    return range(start, min(count, start + most))


def short_path(path: str) -> str:
    """A file's last parts: from its package's folder in site-packages, else the last three."""
    for folder in ("/site-packages/", "/dist-packages/"):
        if folder in path:
            return path.rpartition(folder)[2]
    parts = path.split("/")
    return path if len(parts) <= 4 else ".../" + "/".join(parts[-3:])
