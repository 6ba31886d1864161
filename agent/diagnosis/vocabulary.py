"""Names: which function of which library waits for what. Data for `stacks.read`, and the lookups over it.

Sources: the libraries' own code, read version by version; a function is named with the tail of its file's path, never
by its name alone. For libraries that are not listed, `generic` knows families of names that the field uses for the
same shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from stucktrace.diagnosis import vocabulary_clients, vocabulary_python
from stucktrace.diagnosis.purposes import Purpose
from stucktrace.diagnosis.vocabulary_entry import Entry
from stucktrace.facts import Frame

ENTRIES: tuple[Entry, ...] = (*vocabulary_python.ENTRIES, *vocabulary_clients.ENTRIES)

PASS_THROUGH = (
    "sentry_sdk/",
    "opentelemetry/",
    "ddtrace/",
    "newrelic/",
    "elasticapm/",
    "scout_apm/",
    "wrapt/",
    "decorator.py",
    "functools.py",
    "contextlib.py",
    "tenacity/",
    "backoff/",
    "retrying.py",
)
"""Wrappers that stand between a library's function and its caller and mean nothing themselves."""

# fmt: off
_SUBSCRIPTION_NAMES = frozenset(
    {
        "listen", "listener", "consume", "consumer", "consuming", "subscribe", "subscriber", "poll", "drain_events",
        "watch", "watcher", "follow", "tail", "wait_for_message", "wait_for_messages", "wait_for_event",
        "wait_for_events", "wait_for_notification", "wait_for_notify", "wait_for_job", "next_message", "next_event",
        "next_job", "next_notification", "get_message", "get_messages", "get_event", "get_events", "receive_message",
        "receive_messages", "receive_event", "receive_events", "recv_message", "recv_messages", "iter_messages",
        "iter_events", "read_events", "read_messages", "fetch_message", "fetch_messages", "fetch_job", "get_next_job",
        "get_job", "dequeue", "reserve", "long_poll", "longpoll", "notifies", "notifications", "messages",
        "consume_messages", "consume_events", "start_consuming", "process_messages", "process_events", "receive_loop",
        "recv_loop", "receiver_loop", "read_loop", "reader_loop", "message_loop", "listen_loop", "consume_loop",
        "subscribe_loop", "consumer_loop", "poll_forever", "consume_forever", "listen_forever", "receive_forever",
        "watch_forever",
    }
)
_WORK_NAMES = frozenset(
    {
        "serve_forever", "serve", "accept", "run_forever", "worker_loop", "main_loop", "mainloop", "event_loop",
        "run_loop", "loop_forever", "wait_for_signal", "wait_for_signals", "wait_for_work", "wait_for_task",
        "wait_for_tasks", "wait_for_termination", "sigwait", "_worker", "worker_main", "get_task", "get_work",
        "next_task",
    }
)
_REQUEST_NAMES = frozenset(
    {
        "query", "execute", "executemany", "execute_command", "send_command", "command", "request", "send_request",
        "do_request", "make_request", "request_response", "call", "call_method", "invoke", "rpc", "fetch", "fetchone",
        "fetchall", "fetchmany", "get_response", "getresponse", "read_response", "recv_response", "receive_response",
        "wait_for_response", "await_response", "search", "commit", "rollback", "ping", "run_command", "run_query",
        "exec_query", "send_query", "urlopen",
    }
)
# fmt: on


@lru_cache(maxsize=1)
def _by_function() -> dict[str, tuple[Entry, ...]]:
    table: dict[str, list[Entry]] = {}
    for entry in ENTRIES:
        for function in entry.functions:
            table.setdefault(function, []).append(entry)
    return {function: tuple(entries) for function, entries in table.items()}


@lru_cache(maxsize=1)
def _family_files() -> dict[str, tuple[str, ...]]:
    files: dict[str, dict[str, None]] = {}
    for entry in ENTRIES:
        for file in entry.files:
            package = file.split("/")[0] + "/" if "/" in file else file
            files.setdefault(entry.family, {})[package] = None
    return {family: tuple(names) for family, names in files.items()}


def bare(function: str) -> str:
    """The name without its class: py-spy gives qualified names from CPython 3.11 on."""
    return function.rsplit(".", 1)[-1]


def find(frame: Frame) -> Entry | None:
    """The entry for this frame, None when the vocabulary does not know it."""
    name = bare(frame.function)
    entries = _by_function().get(name)
    if not entries:
        return None
    return next((entry for entry in entries if _in_files(frame.file, entry.files)), None)


def is_transport(frame: Frame) -> bool:
    """A frame that only carries bytes or polls, for a wait that a frame above it names."""
    entry = find(frame)
    return entry is not None and entry.purpose is None


def passes_through(frame: Frame) -> bool:
    return _in_files(frame.file, PASS_THROUGH)


def in_family(frame: Frame, family: str) -> bool:
    """Whether the frame lies in a package of this family, known function or not."""
    return bool(family) and _in_files(frame.file, _family_files().get(family, ()))


def generic(frame: Frame) -> Purpose | None:
    """What the function's name alone suggests, in code that the vocabulary does not know.

    A name that says "request" counts only in an installed library: in an application's own code any name can stand
    over a wait that is meant to last, and a false alarm is worse than a miss.
    """
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", bare(frame.function)).lower().lstrip("_")
    if name in _SUBSCRIPTION_NAMES:
        return Purpose.SUBSCRIPTION
    if name in _WORK_NAMES or f"_{name}" in _WORK_NAMES:
        return Purpose.WORK
    if name in _REQUEST_NAMES and is_library(frame):
        return Purpose.REQUEST
    return None


def is_library(frame: Frame) -> bool:
    """The frame is of an installed distribution."""
    return "/site-packages/" in frame.file or "/dist-packages/" in frame.file


def is_standard(frame: Frame) -> bool:
    """The frame is of Python's own library."""
    return not is_library(frame) and (
        frame.file.startswith("<frozen ") or re.search(r"/lib(64)?/python\d\.\d+/", frame.file) is not None
    )


def own_frame(frames: Iterable[Frame]) -> Frame | None:
    """The innermost frame of the application's own code."""
    return next((f for f in frames if not f.native and not is_library(f) and not is_standard(f)), None)


def place(frame: Frame) -> str:
    """What code the frame belongs to: the package of a library, else its very file."""
    for root in ("/site-packages/", "/dist-packages/"):
        if root in frame.file:
            return root + frame.file.rsplit(root, 1)[1].split("/")[0]
    return frame.file


@lru_cache(maxsize=8192)
def _in_files(file: str, tails: Iterable[str]) -> bool:
    path = "/" + file.removeprefix("<frozen ").removesuffix(">")
    return any((f"/{tail}" in path) if tail.endswith("/") else path.endswith(f"/{tail}") for tail in tails)
