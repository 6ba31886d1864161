"""The real agent, and gunicorn in a PID namespace of its own, so that an agent in there sees nothing of other tests."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema

from tests.harness import command, journals, kernel, targets

Event = dict[str, Any]
ALONE = ("unshare", "--pid", "--fork", "--mount-proc")


@functools.cache
def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads(resources.files("stucktrace").joinpath("alert.schema.json").read_text())
    return jsonschema.Draft202012Validator(schema)


def validate(event: Event) -> None:
    validator().validate(event)
    if event["report"] is not None:
        command.validator().validate(event["report"])


def own_pid(pid: int) -> int:
    """The pid of a process in its own namespace."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[-1])


@dataclass
class Agent:
    process: subprocess.Popen[bytes]
    pid: int
    errors: Path
    journals: Path
    events: list[Event] = field(default_factory=list)
    _rest: bytes = b""

    def read(self, timeout_s: float) -> Event | None:
        """The next event; None when none came in time."""
        assert self.process.stdout is not None
        end = time.monotonic() + timeout_s
        while b"\n" not in self._rest:
            readable, _, _ = select.select([self.process.stdout], [], [], max(0.0, end - time.monotonic()))
            chunk = os.read(self.process.stdout.fileno(), 1 << 16) if readable else b""
            if not chunk:
                return None
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        event = json.loads(line)
        validate(event)
        self.events.append(event)
        return event

    def wait_for(self, kind: str, timeout_s: float = 120) -> Event:
        """The next event of this type."""
        end = time.monotonic() + timeout_s
        while event := self.read(max(0.0, end - time.monotonic())):
            if event["type"] == kind:
                return event
        raise AssertionError(f"no {kind} event; events: {summaries(self.events)}; stderr: {self.said()}")

    def said(self) -> str:
        return self.errors.read_text(errors="replace")

    def end(self, number: int = signal.SIGTERM) -> int:
        """Its exit status after this signal."""
        os.kill(self.pid, number)
        return self.process.wait(60)


def summaries(events: list[Event]) -> list[str]:
    return [f"{event['type']} {event['code']} {event['how']} {event['summary']}" for event in events]


@contextlib.contextmanager
def watching(
    beside: int, *options: str | int, netns: str = "", allowed: Sequence[str] = (), program: Path = command.COMMAND
) -> Iterator[Agent]:
    """An agent in the PID and mount namespace of the process `beside`, once it has looked around.

    Its network namespace is one of its own, or `netns`. `allowed`: what goes in front of it (setpriv ...).
    `program`: the command, where another user has to be able to run it.
    In the end its journals are replayed: they have to give the verdicts that it alerted.
    """
    descriptor, name = tempfile.mkstemp(prefix="agent-", suffix=".log")
    network = [f"--net=/run/netns/{netns}"] if netns else ["unshare", "--net"]
    inside = ["nsenter", "-t", str(beside), "-p", "-m", *network]
    kept = Path(tempfile.mkdtemp(prefix="journals-"))
    kept.chmod(0o777)
    process = subprocess.Popen(
        [*inside, *allowed, str(program), "agent", "--json", "--journal", str(kept), *map(str, options)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=descriptor,
    )  # fmt: skip
    os.close(descriptor)
    errors = Path(name)
    try:
        kernel.wait_until(
            lambda: "watching" in errors.read_text() or process.poll() is not None, "the agent's first words"
        )
        assert process.poll() is None, errors.read_text()
        watcher = Agent(process, kernel.children(process.pid)[0], errors, kept)
        yield watcher
        journals.check(kept, watcher.events)
        assert "Traceback" not in errors.read_text(), errors.read_text()
    finally:
        for pid in [*targets.descendants(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(60)
        errors.unlink()
        shutil.rmtree(kept)


@dataclass(frozen=True)
class Gunicorn:
    master: int
    workers: tuple[int, ...]
    port: int
    netns: str | None
    output: Path
    """Its error log."""

    @contextlib.contextmanager
    def request(self, path: str) -> Iterator[subprocess.Popen[bytes]]:
        """A client with one request; its process ends with the answer."""
        code = f"import urllib.request; urllib.request.urlopen('http://127.0.0.1:{self.port}{path}').read()"
        inside = ["ip", "netns", "exec", self.netns] if self.netns else []
        client = subprocess.Popen([*inside, sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        try:
            yield client
        finally:
            client.kill()
            client.wait(60)


@contextlib.contextmanager
def gunicorn(
    *options: str | int, workers: int = 1, netns: str | None = None, python: Sequence[str] = (sys.executable,)
) -> Iterator[Gunicorn]:
    """gunicorn with tests/targets/web_app.py, alone in a PID namespace."""
    arguments = [
        "-b", "127.0.0.1:0", "-w", str(workers), "--no-control-socket", "--chdir", str(targets.TARGETS),
        *map(str, options), "web_app:application",
    ]  # fmt: skip
    started = [*python, "-m", "gunicorn", *arguments]
    env = {"PYTHONPATH": str(targets.TARGETS / "untitled")}
    with targets.start(started, prefix=ALONE, ready=False, env=env, netns=netns) as target:
        kernel.wait_until(lambda: target.log().count("Booting worker") == workers, "all workers booted")
        (master,) = kernel.wait_for_children(target.pid, 1)
        port = int(target.log().partition("http://127.0.0.1:")[2].split()[0])
        try:
            yield Gunicorn(master, tuple(kernel.wait_for_children(master, workers)), port, netns, target.output)
        finally:
            # The first process of a namespace ends last, when all others there are gone.
            with contextlib.suppress(ProcessLookupError):
                os.kill(master, signal.SIGKILL)
            kernel.wait_until(lambda: not kernel.alive(master), "the end of the namespace")
