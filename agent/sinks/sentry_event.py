"""An alert's event as Sentry's event payload: threads with stack traces, tags, contexts, breadcrumbs. Pure.

After https://develop.sentry.dev/sdk/data-model/event-payloads/. All text comes from targets or may: it is escaped and
bounded, and so is the whole. Of a stack only function, file and line go out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from stucktrace import __version__, reported
from stucktrace.diagnosis.words import age
from stucktrace.sinks.page import clean
from stucktrace.sinks.sink import Item

Json = dict[str, Any]

LARGEST_EVENT_BYTES = 900_000
"""Sentry takes 1 MB."""
MOST_THREADS = 50
MOST_FRAMES = 100
MOST_BREADCRUMBS = 100
MOST_LINES = 30
LONGEST_TAG = 200
LONGEST_TEXT = 1_000
LONGEST_NAME = 300

_LIBRARY = re.compile(r".*/(?:site-packages|dist-packages)/(.+)")
_STANDARD = re.compile(r".*/lib(?:64)?/python\d(?:\.\d+)?t?/(.+)")


def tags(event: Json) -> dict[str, str]:
    """What Sentry can search by. Those from the report are there on `opened` only."""
    report = event["report"]
    # "NAMESPACE/NAME", or the uid alone.
    namespace, _, pod = next((one["pod"] for one in event["affected"] if one["pod"]), "").rpartition("/")
    found = {
        "node": event["node"],
        "code": event["code"],
        "confidence": event["confidence"],
        "namespace": namespace,
        "pod": pod,
    }
    if report is not None:
        process, thread = report["process"], reported.thread(report)
        container = process["container"] or {}
        worker = process["worker"]
        found |= {
            "namespace": container.get("namespace") or namespace,
            "pod": container.get("pod_name") or container.get("pod") or pod,
            "container": container.get("name") or (container.get("id") or "")[:12],
            "worker": process["kind"],
            "worker_class": worker["class"] or worker["pool"],
            "peer": reported.peer(report),
        }
        if thread and thread["work"]:
            found |= {thread["work"]["kind"]: thread["work"]["name"], "task_id": thread["work"]["id"]}
    return {name: clean(value, LONGEST_TAG) for name, value in found.items() if value}


def build(item: Item, tags: dict[str, str], *, environment: str, server_name: str) -> Json:
    """The payload, small enough for Sentry."""
    event, report = item.event, item.event["report"]
    summary = clean(event["summary"], LONGEST_TEXT)
    resolved = event["type"] == "resolved"
    if resolved:
        processes = "1 process" if event["count"] == 1 else f"{event['count']} processes"
        summary = f"{event['how']} after {age(event['duration_s'])}, {processes}: {summary}"
    payload: Json = {
        "event_id": item.id.hex,
        "timestamp": event["time"],
        "platform": "python",
        "logger": "stucktrace",
        "level": "info" if resolved else _level(event),
        "message": summary,
        "fingerprint": [event["fingerprint"]],
        "tags": tags,
        "server_name": server_name or event["node"],
        "sdk": {"name": "stucktrace", "version": __version__},
        "contexts": {"alert": _alert(event)},
        "breadcrumbs": {"values": [_breadcrumb(entry) for entry in item.timeline[-MOST_BREADCRUMBS:]]},
    }
    if environment:
        payload["environment"] = environment
    exception: Json = {
        "type": event["code"],
        "value": summary,
        "mechanism": {"type": "stucktrace", "handled": resolved},
    }
    payload["exception"] = {"values": [exception]}
    if report is None:
        return payload
    payload["contexts"] |= _contexts(report)
    payload["modules"] = {
        clean(name, LONGEST_NAME): clean(version, LONGEST_NAME)
        for name, version in report["process"]["packages"].items()
    }
    thread = reported.thread(report)
    if thread is not None:
        exception["thread_id"] = thread["tid"]
        exception["stacktrace"] = {"frames": _frames(thread)}
        if thread["work"]:
            payload["transaction"] = clean(thread["work"]["name"], LONGEST_TAG)
    threads = _threads(report)
    payload["threads"] = {"values": threads}
    while len(threads) > 1 and len(json.dumps(payload)) > LARGEST_EVENT_BYTES:
        del threads[len(threads) // 2 :]
    return payload


def _level(event: Json) -> str:
    if event["severity"] == "critical":
        return "fatal" if event["confidence"] == "proven" else "error"
    return str(event["severity"])


def _threads(report: Json) -> list[Json]:
    """The verdict's thread first: the others may be cut off."""
    verdict_tid = report["verdict"]["tid"]
    threads = sorted(report["threads"], key=lambda thread: thread["tid"] != verdict_tid)
    return [
        {
            "id": thread["tid"],
            "name": clean(thread["name"], LONGEST_NAME),
            "main": thread["tid"] == report["process"]["pid"],
            "current": thread["tid"] == verdict_tid,
            "crashed": thread["tid"] == verdict_tid,
            "stacktrace": {"frames": _frames(thread)},
        }
        for thread in threads[:MOST_THREADS]
    ]


def _frames(thread: Json) -> list[Json]:
    """The outermost first, as Sentry has it; the innermost ones where there are too many."""
    frames = [_native(frame) for frame in thread["native"] if frame["inside"] == 0]
    for number, frame in enumerate(thread["python"], 1):
        frames.append(_frame(frame))
        frames += [_native(called) for called in thread["native"] if called["inside"] == number]
    return frames[:MOST_FRAMES][::-1]


def _frame(frame: Json) -> Json:
    path = clean(frame["file"], LONGEST_NAME)
    inside = _LIBRARY.match(path) or _STANDARD.match(path)
    written: Json = {
        "function": clean(frame["function"], LONGEST_NAME),
        "filename": inside[1] if inside else path,
        "abs_path": path,
        "in_app": inside is None and not _foreign(path),
    }
    if frame["line"]:
        written["lineno"] = frame["line"]
    if inside and path.endswith(".py"):
        written["module"] = inside[1].removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return written


def _foreign(path: str) -> bool:
    """Frozen modules, and the scripts that pip writes into bin/."""
    pure = PurePosixPath(path)
    return path.startswith("<frozen ") or (pure.parent.name == "bin" and not pure.suffix)


def _native(frame: Json) -> Json:
    return {
        "platform": "native",
        "function": clean(frame["function"], LONGEST_NAME),
        "filename": clean(frame["file"], LONGEST_NAME),
        "package": clean(frame["file"], LONGEST_NAME),
        "in_app": False,
    }


def _breadcrumb(entry: Json) -> Json:
    return {
        "timestamp": entry["time"],
        "type": "default",
        "level": "info",
        "category": entry["category"],
        "message": clean(entry["message"], LONGEST_TEXT),
        "data": {"pid": entry["pid"]} if entry["pid"] is not None else {},
    }


def _alert(event: Json) -> Json:
    affected = [
        f"pid {who['pid']}" + (f" in pod {clean(who['pod'], LONGEST_TAG)}" if who["pod"] else "")
        for who in event["affected"]
    ]
    return {
        "type": "stucktrace",
        "event": event["type"],
        "id": event["id"],
        "count": event["count"],
        "affected": ", ".join(affected)[:LONGEST_TEXT],
        "duration_s": event["duration_s"],
        "how": event["how"],
    }


def _contexts(report: Json) -> Iterator[tuple[str, Json]]:
    verdict, process, thread = report["verdict"], report["process"], reported.thread(report)
    yield (
        "verdict",
        {"evidence": _lines(line["text"] for line in verdict["evidence"]), "chain": _lines(verdict["chain"])},
    )
    yield (
        "remedy",
        {
            "now": _lines(
                f"{now['do']} (risk: {now['risk']}; loses: {now['loses']})" for now in verdict["remedy"]["now"]
            ),
            "later": _lines(f"{later['do']}: {later['why']}" for later in verdict["remedy"]["later"]),
            "known_issues": _lines(f"{issue['title']}: {issue['link']}" for issue in verdict["known_issues"]),
        },
    )
    yield (
        "process",
        {
            "pid": process["pid"],
            "pid_in_container": process["ns_pid"],
            "command": clean(" ".join(process["argv"]), LONGEST_TEXT),
            "age": age(process["age_s"]),
            "rss_bytes": process["rss_bytes"],
            "open_files": process["fd_count"],
            "timeout_s": process["worker"]["timeout_s"],
            "seconds_to_kill": process["worker"]["seconds_to_kill"],
        },
    )
    if thread and thread["work"]:
        yield (
            "work",
            {
                name: clean(value, LONGEST_TEXT) if isinstance(value, str) else value
                for name, value in thread["work"].items()
            },
        )
    if process["python"]:
        yield "runtime", {"name": "Python", "version": clean(process["python"]["version"], LONGEST_TAG)}
    yield "os", {"name": "Linux", "kernel_version": report["host"]["kernel"]}


def _lines(lines: Any) -> list[str]:
    return [clean(line, LONGEST_TEXT) for line, _ in zip(lines, range(MOST_LINES), strict=False)]
