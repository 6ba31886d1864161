"""Which processes run greenlets or an event loop: told by what was read anyway, before anything is searched for."""

from __future__ import annotations

from stucktrace.facts import Frame, ProcessFact, PythonFact

GREENLET = "_greenlet"
"""What greenlet's extension module is called."""
LOOP_FILES = ("/asyncio/base_events.py", "/asyncio/runners.py")
"""Of a loop's thread: uvloop's is started by asyncio too."""
_LIBRARIES = ("gevent", "eventlet")


def has_greenlets(process: ProcessFact, python: PythonFact | None) -> bool:
    """greenlet is loaded, and gevent or eventlet uses it: by its own libraries or a frame of its code."""
    if not any(name.startswith(GREENLET) for name in process.libraries):
        return False
    if any(is_gevent(name) for name in process.libraries):
        return True
    frames = (frame for thread in python.threads for frame in thread.frames) if python else ()
    return any(green_library(frame) for frame in frames)


def is_gevent(library: str) -> bool:
    """The base name of a mapped file is that of gevent's compiled modules."""
    return library.startswith("_gevent_c")


def green_library(frame: Frame) -> str:
    """ "gevent" or "eventlet" for a frame of their own code, else ""."""
    return next((library for library in _LIBRARIES if f"/{library}/" in frame.file), "")


def loop_threads(python: PythonFact | None) -> tuple[int, ...]:
    """tids of the threads that run an event loop of asyncio."""
    threads = python.threads if python is not None else ()
    return tuple(thread.tid for thread in threads if any(frame.file.endswith(LOOP_FILES) for frame in thread.frames))
