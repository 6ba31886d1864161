"""Alerts on stdout: JSON lines (schema stucktrace.alert/1), or text with the whole report where an alert is opened."""

from __future__ import annotations

import json
import time
from typing import Any

from stucktrace.diagnosis.words import age
from stucktrace.output import colour_wanted, terminal_width, write
from stucktrace.sinks import text
from stucktrace.sinks.page import clean
from stucktrace.sinks.sink import Item

PIDS_SHOWN = 8


class Stdout:
    """The sink of that name. Nobody has to read what it writes: it stands in a thread of its own (delivery.py)."""

    name = "stdout"

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def deliver(self, item: Item) -> None:
        """OutputFailed when stdout is broken."""
        deliver(item.event, as_json=self._as_json)

    def close(self) -> None:
        pass


def deliver(event: dict[str, Any], *, as_json: bool) -> None:
    """Writes one event. OutputFailed when stdout is broken."""
    if as_json:
        write(json.dumps(event, ensure_ascii=True, separators=(", ", ": ")) + "\n")
        return
    page = headline(event) + "\n"
    if event["report"] is not None:
        page += text.render(event["report"], colour=colour_wanted(), width=terminal_width()) + "\n"
    write(page)


def headline(event: dict[str, Any]) -> str:
    """The event in one line."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["time"]))
    words = [at, event["type"].upper(), event["code"], f"({event['confidence']})"]
    if event["type"] == "resolved":
        words.append(f"{event['how']} after {age(event['duration_s'])},")
        words.append(f"{event['count']} process{'es' if event['count'] != 1 else ''} in all")
    else:
        pids = [str(affected["pid"]) for affected in event["affected"]]
        more = event["count"] - PIDS_SHOWN
        words.append(f"for {age(event['duration_s'])}: pid {', '.join(pids[:PIDS_SHOWN])}")
        words += [f"and {more} more"] * (more > 0)
    return clean(" ".join(words) + f": {event['summary']}")
