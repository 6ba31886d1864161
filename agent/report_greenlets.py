"""The report's part on suspended greenlets and tasks: who waits for what inside the thread of a hub or a loop."""

from __future__ import annotations

from typing import Any

from stucktrace.diagnosis import greenlets
from stucktrace.facts import GreenletFact, Snapshot

Json = dict[str, Any]


def build(snapshot: Snapshot) -> list[Json]:
    """One entry each; `frame` is the index of its innermost frame that is not of a library."""
    return [_entry(greenlet) for greenlet in snapshot.greenlets]


def _entry(greenlet: GreenletFact) -> Json:
    return {
        "kind": greenlet.kind,
        "name": greenlet.name,
        "tid": greenlet.tid,
        "address": hex(greenlet.address),
        "waits_for": greenlets.wait_of(greenlet) or None,
        "frame": greenlets.own_frame(greenlet.frames),
        "python": [{"function": frame.function, "file": frame.file, "line": frame.line} for frame in greenlet.frames],
    }
