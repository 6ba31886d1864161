"""What a sink is, what it is given, and how it says that it cannot take it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any, Protocol

from stucktrace.sinks import journal

Json = dict[str, Any]

IDS = uuid.UUID("5f4ec1b0-9f0d-5c61-8a8c-3a1c6f0b7d11")


@dataclass(frozen=True)
class Item:
    event: Json
    """Schema stucktrace.alert/1."""
    timeline: tuple[Json, ...] = ()
    """What the kernel and the looks showed before it: {"time": CLOCK_REALTIME s, "category", "message", "pid"}."""

    @property
    def id(self) -> uuid.UUID:
        """The same for one event however often it is sent, also after a restart: receivers drop duplicates by it."""
        event = self.event
        return uuid.uuid5(IDS, f"{event['id']} {event['type']} {event['time']}")


class SinkDown(Exception):
    """The sink takes nothing now: the item is kept and tried again, after `retry_after_s` if the sink named a time."""

    def __init__(self, reason: str, retry_after_s: float | None = None, remedy: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.remedy = remedy


class SinkRefused(Exception):
    """The sink will never take this item."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Sink(Protocol):
    @property
    def name(self) -> str: ...

    def deliver(self, item: Item) -> None:
        """Returns when the item is taken. Called by one thread alone. SinkDown, SinkRefused; stdout: OutputFailed."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class SinkStatus:
    delivered: int = 0
    dropped: int = 0
    """Fell over the bound, or could not be read again."""
    refused: int = 0
    pending: int = 0
    last_error: str = ""
    """Empty while it works."""
    pending_bytes: int = 0


def pack(item: Item) -> bytes:
    return journal.pack({"event": item.event, "timeline": list(item.timeline)})


def unpack(data: bytes) -> Item:
    """ValueError when it is none."""
    record = journal.unpack(data)
    event, timeline = record.get("event"), record.get("timeline")
    if not isinstance(event, dict) or not isinstance(timeline, list):
        raise ValueError("no alert")
    return Item(event, tuple(timeline))
