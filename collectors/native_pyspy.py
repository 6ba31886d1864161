"""Native frames as py-spy reads them, which stops the target: for threads that cannot be unwound while they sleep."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from stucktrace.collectors import python
from stucktrace.facts import Frame, NativeStack, Snapshot

SOURCE = "py-spy --native"


@dataclass(frozen=True)
class Stopped:
    stacks: tuple[NativeStack, ...]
    pause_s: float
    """Upper bound of the time the target stood still."""


def collect(snapshot: Snapshot, tids: Collection[int]) -> Stopped:
    """Raises CollectorError."""
    dump = python.collect(snapshot.process, snapshot.threads, native=True, show_locals=False)
    stacks = [
        _split(thread.tid, thread.frames, len(snapshot.frames(thread.tid)))
        for thread in dump.threads
        if thread.tid in tids
    ]
    return Stopped(tuple(stacks), dump.paused_at_most_s or 0.0)


def _split(tid: int, frames: tuple[Frame, ...], known: int) -> NativeStack:
    """py-spy lists native and Python frames together."""
    native, inside, python_inside = [], [], 0
    for frame in frames:
        if frame.native:
            native.append(frame)
            inside.append(python_inside)
        else:
            python_inside += 1
    if python_inside == known:
        return NativeStack(tid, tuple(native), tuple(inside))
    # It went on since its Python frames were read.
    first = sum(count == 0 for count in inside)
    return NativeStack(tid, tuple(native[:first]), (0,) * first, "the thread went on meanwhile")
