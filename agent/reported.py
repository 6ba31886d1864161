"""What a report's verdict points at: for all that read built reports (schema stucktrace.report/1). Pure."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


def thread(report: Json) -> Json | None:
    """The thread that the verdict is about."""
    return next((thread for thread in report["threads"] if thread["tid"] == report["verdict"]["tid"]), None)


def socket(report: Json) -> Json | None:
    """The socket that the verdict is about."""
    fd = report["verdict"]["fd"]
    return next((socket for socket in report["sockets"] if fd is not None and socket["fd"] == fd), None)


def peer(report: Json) -> str | None:
    """Who is at that socket's other end: by name where one is known."""
    found = socket(report)
    return (found["remote_name"] or found["remote"]) if found is not None else None
