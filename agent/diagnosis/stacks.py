"""What a thread waits for, in the words of its own code: the purpose of a wait, read from the Python frames.

The same system call means an idle worker or a hung one; the frames above it tell which. This file walks the frames,
`vocabulary.py` holds the names.

The walk goes from the innermost frame outwards. Transport frames (recv, read_frame, select) mean nothing: an idle
consumer and a hung confirm share them. The first frame that means something decides; where it is one that its library
uses for several purposes (`weak`), frames of the same library above it say better. A frame of code that nobody knows
ends the walk: what lies above it is what called that code, not what it waits for.
"""

from __future__ import annotations

from stucktrace.diagnosis import vocabulary
from stucktrace.diagnosis.purposes import Purpose, Reading
from stucktrace.diagnosis.vocabulary_entry import Entry
from stucktrace.facts import Frame

__all__ = ["Purpose", "Reading", "read"]

UNIVERSAL = ("", "python")
"""Families of Python's own library, which every other library uses to wait."""


def read(frames: tuple[Frame, ...]) -> Reading:
    """The purpose of the wait at the top of these frames (innermost first)."""
    held: Reading | None = None
    passed: list[Frame] = []
    for index, frame in enumerate(frames):
        if frame.native:
            continue
        if _begins_here(frame):
            break
        entry = vocabulary.find(frame)
        if entry is not None and entry.leaf and (passed or (held is not None and held.family not in UNIVERSAL)):
            entry = None
        if entry is None and vocabulary.passes_through(frame):
            continue
        if held is not None and held.family not in UNIVERSAL and (entry is None or entry.family != held.family):
            if vocabulary.in_family(frame, held.family) or (entry is not None and entry.purpose is None):
                continue
            return held
        if entry is None:
            if held is not None:
                return held
            passed.append(frame)
            if len({vocabulary.place(other) for other in passed if not vocabulary.is_standard(other)}) > 1:
                break
            continue
        if passed and not _reaches(entry, passed):
            break
        if entry.purpose is None or (entry.relay and held is not None and held.family == entry.family):
            continue
        if held is not None and entry.leaf and held.purpose in (Purpose.JOIN, Purpose.LOCK):
            return held
        held = _reading(entry, frame, index)
        if not entry.weak:
            return held
    if held is not None:
        return held
    return _by_name(frames, passed)


def _begins_here(frame: Frame) -> bool:
    """The first frame of a thread or of a forked child: what lies above it in a fork is the parent's past."""
    return vocabulary.bare(frame.function) in ("_bootstrap", "_bootstrap_inner") and frame.file.endswith(
        ("threading.py", "multiprocessing/process.py", "billiard/process.py")
    )


def _reaches(entry: Entry, passed: list[Frame]) -> bool:
    """Whether the entry can speak for what the unknown frames inside it do."""
    if not entry.family:
        return False
    return all(vocabulary.in_family(frame, entry.family) for frame in passed)


def _reading(entry: Entry, frame: Frame, index: int) -> Reading:
    assert entry.purpose is not None
    reason = entry.reason.replace("{function}", vocabulary.bare(frame.function))
    return Reading(entry.purpose, reason, index, entry.family)


def _by_name(frames: tuple[Frame, ...], passed: list[Frame]) -> Reading:
    """What the names of the innermost unknown code say, as long as it is one library or one file."""
    own = [frame for frame in passed if not vocabulary.is_standard(frame)]
    if not own:
        return Reading(Purpose.UNKNOWN, "", _index(frames, passed[0]) if passed else None)
    place = vocabulary.place(own[0])
    found: dict[Purpose, Frame] = {}
    for frame in own:
        if vocabulary.place(frame) != place:
            break
        purpose = vocabulary.generic(frame)
        if purpose is not None and (purpose is not Purpose.WORK or frame.file == passed[0].file):
            found.setdefault(purpose, frame)
    for purpose, reason in (
        (Purpose.SUBSCRIPTION, "waits in {function}, by its name a call whose purpose is to wait"),
        (Purpose.WORK, "waits in {function}, by its name a loop that waits for work"),
        (Purpose.REQUEST, "waits for a reply in {function}"),
    ):
        if purpose in found:
            frame = found[purpose]
            text = reason.replace("{function}", vocabulary.bare(frame.function))
            return Reading(purpose, text, _index(frames, frame), by_name=True)
    return Reading(Purpose.UNKNOWN, "", _index(frames, own[0]))


def _index(frames: tuple[Frame, ...], wanted: Frame) -> int:
    return next(index for index, frame in enumerate(frames) if frame is wanted)
