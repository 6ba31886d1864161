"""rabbitmqctl in a container is a stranger's program: what it says is bounded, and nothing of it stays behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from stucktrace.collectors import broker_view_found
from stucktrace.collectors.broker_view_found import _Ctl
from stucktrace.errors import CollectorError

from tests.harness.kernel import wait_until


def program(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    path = folder / "rabbitmqctl"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    program(tmp_path, monkeypatch, """echo '[{"name": "q"}, 7]'""")
    assert _Ctl(None).rows("list_queues", "name") == [{"name": "q"}]


@pytest.mark.parametrize("text", ["echo Error: no node >&2; exit 69", "echo '{}'", "echo '[' ", "kill -9 $$"])
def test_what_is_no_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str):
    program(tmp_path, monkeypatch, text)
    with pytest.raises(CollectorError) as error:
        _Ctl(None).rows("list_queues", "name")
    assert error.value.missing.remedy


@pytest.mark.parametrize("text", ["exec yes", "exec sleep 1000", "exit 0"])
def test_one_that_does_not_end_is_ended_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
):
    monkeypatch.setattr(broker_view_found, "_MOST_BYTES", 1 << 20)
    monkeypatch.setattr(broker_view_found, "_COMMAND_S", 1)
    held = tmp_path / "held"
    os.mkfifo(held)
    reader = os.open(held, os.O_RDONLY | os.O_NONBLOCK)
    # What it starts and leaves behind holds its output and this pipe open.
    program(tmp_path, monkeypatch, f"sleep 1000 3> {held} &\n{text}")
    with pytest.raises(CollectorError):
        _Ctl(None).rows("list_queues", "name")
    wait_until(lambda: at_its_end(reader), "the end of what it started")
    os.close(reader)


def at_its_end(reader: int) -> bool:
    """Nobody holds the pipe's other end any more."""
    try:
        return os.read(reader, 1) == b""
    except BlockingIOError:
        return False
