"""Delivery with sinks that do what the test says: one thread each, bounded memory, retries, and words about it."""

from __future__ import annotations

import resource
import threading
from pathlib import Path
from typing import Any

import pytest
from stucktrace.output import OutputFailed
from stucktrace.sinks import backlog, lane
from stucktrace.sinks.delivery import Delivery, Item, SinkDown, SinkRefused
from stucktrace.sinks.spool import Spool

from tests.harness.kernel import wait_until


def item(number: int, padding: int = 0) -> Item:
    return Item({"id": str(number), "type": "opened", "time": 1.0, "summary": "x" * padding})


class Sink:
    def __init__(self, name: str = "collector", *outcomes: Exception) -> None:
        self.name = name
        self.outcomes = list(outcomes)
        """Of the next deliveries; then they succeed."""
        self.taken: list[int] = []
        self.tries = 0
        self.open = threading.Event()
        self.open.set()
        """While it is not set a delivery hangs."""
        self.closed = False

    def deliver(self, item: Item) -> None:
        self.tries += 1
        self.open.wait()
        if self.outcomes:
            raise self.outcomes.pop(0)
        self.taken.append(int(item.event["id"]))

    def close(self) -> None:
        self.closed = True


class Words(list[str]):
    def __call__(self, message: str, remedy: str) -> None:
        self.append(f"{message}; {remedy}")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "FIRST_RETRY_S", 0.01)


def delivery(*sinks: Any, spool: Path | None = None) -> tuple[Delivery, Words]:
    words = Words()
    return Delivery(sinks, spool, 1 << 20, words), words


@pytest.mark.parametrize("spooled", [False, True])
def test_a_sink_that_hangs_holds_up_nobody(spooled, tmp_path):
    hangs, works = Sink("hangs"), Sink("works")
    hangs.open.clear()
    all_of_them, words = delivery(hangs, works, spool=tmp_path if spooled else None)
    for number in range(50):
        all_of_them.put(item(number))
    wait_until(lambda: works.taken == list(range(50)))
    assert all_of_them.status()["hangs"].pending == 50
    if spooled:
        wait_until(lambda: len(list((tmp_path / "hangs").glob("*.item"))) == 50)
    all_of_them.drain(0.2)
    (word,) = words
    assert "hangs: 50 alerts could not be delivered" in word and ("in the spool" if spooled else "are lost") in word
    assert works.closed and not hangs.taken
    hangs.open.set()
    if spooled:
        again = Sink("hangs")
        delivery(again, spool=tmp_path)
        wait_until(lambda: again.taken == list(range(50)))


def test_retries_keep_the_order_and_are_two_words_an_outage():
    sink = Sink("collector", *[SinkDown("connection refused")] * 4, SinkRefused("too large"), SinkDown("reset"))
    all_of_them, words = delivery(sink)
    for number in range(4):
        all_of_them.put(item(number))
    wait_until(lambda: sink.taken == [1, 2, 3])
    all_of_them.drain(5)
    status = all_of_them.status()["collector"]
    assert (status.delivered, status.refused, status.pending, status.last_error) == (3, 1, 0, "")
    kinds = [word.partition(";")[0].partition(" after")[0] for word in words]
    assert kinds == [
        "collector: connection refused", "collector refused an alert: too large", "collector works again",
        "collector: reset", "collector works again",
    ]  # fmt: skip


def test_a_named_time_is_kept_and_does_not_delay_the_end():
    sink = Sink("collector", SinkDown("429", 3600.0))
    all_of_them, _ = delivery(sink)
    all_of_them.put(item(1))
    wait_until(lambda: all_of_them.status()["collector"].last_error == "429")
    all_of_them.drain(60)
    assert (sink.tries, sink.closed) == (1, True)


def test_what_waits_is_tried_once_more_at_the_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lane, "FIRST_RETRY_S", 3600.0)
    sink = Sink("collector", SinkDown("connection refused"))
    all_of_them, _ = delivery(sink)
    all_of_them.put(item(1))
    all_of_them.put(item(2))
    wait_until(lambda: all_of_them.status()["collector"].last_error)
    all_of_them.drain(60)
    assert (sink.taken, all_of_them.status()["collector"].pending) == ([1, 2], 0)


def test_a_mistake_in_a_sink_costs_one_alert():
    sink = Sink("collector", KeyError("report"))
    all_of_them, words = delivery(sink)
    all_of_them.put(item(1))
    all_of_them.put(item(2))
    wait_until(lambda: sink.taken == [2])
    assert len(words) == 1 and "KeyError" in words[0]


def test_a_broken_stdout_is_told_and_the_others_go_on():
    stdout, other = Sink("stdout", OutputFailed("Broken pipe")), Sink("collector")
    all_of_them, _ = delivery(stdout, other)
    for number in range(3):
        all_of_them.put(item(number))
    wait_until(lambda: all_of_them.failed and other.taken == [0, 1, 2])
    assert str(all_of_them.failed) == "Broken pipe" and stdout.tries == 1


def test_memory_is_bounded_and_the_oldest_fall_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backlog, "MEMORY_BYTES", 10_000)
    sink = Sink()
    sink.open.clear()
    all_of_them, words = delivery(sink)
    for number in range(30):
        all_of_them.put(item(number, padding=1000))
    wait_until(lambda: sink.tries)
    status = all_of_them.status()["collector"]
    assert 0 < status.pending < 10 and status.pending + status.dropped == 30
    assert len(words) == 1 and "dropped" in words[0]
    sink.open.set()
    all_of_them.drain(60)
    assert sink.taken[-1] == 29 and len(sink.taken) == status.pending
    assert sink.taken[1:] == list(range(30 - status.pending + 1, 30))


def test_stdout_is_never_spooled(tmp_path):
    stdout = Sink("stdout")
    stdout.open.clear()
    all_of_them, _ = delivery(stdout, spool=tmp_path)
    all_of_them.put(item(1))
    all_of_them.drain(0.1)
    stdout.open.set()
    assert not list(tmp_path.iterdir())


def test_text_that_is_no_utf_8_arrives():
    heard: list[str] = []
    sink = Sink()
    sink.deliver = lambda item: heard.append(item.event["summary"])  # type: ignore[method-assign]
    all_of_them, words = delivery(sink)
    all_of_them.put(Item({"id": "1", "type": "opened", "time": 1.0, "summary": "caf\udce9"}))
    wait_until(lambda: heard == ["caf\udce9"])
    assert not words


def test_a_spool_that_cannot_be_read_for_a_while_loses_nothing(tmp_path: Path):
    waiting = backlog.Backlog(Spool(tmp_path), 1 << 20)
    waiting.add(b"first")
    waiting.save()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(SinkDown, match="Too many open files"):
            waiting.take()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    waiting.put_back()
    taken = waiting.take()
    assert taken is not None and taken[1] == b"first" and not waiting.dropped
