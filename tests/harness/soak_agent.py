"""The agent of the soak: started again and again, killed at random, and measured from outside, by the kernel's accounts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.harness import command, kernel, targets

Event = dict[str, Any]
TICKS = os.sysconf("SC_CLK_TCK")
GONE_WITHIN_S = 30.0
"""After a kill: the kernel frees BPF programs behind an RCU grace period, and helpers notice the end of their parent."""


@dataclass
class Life:
    """One process of the agent. Times are CLOCK_MONOTONIC."""

    process: subprocess.Popen[bytes]
    began: float
    """When it said that it watches."""
    ended: float = float("inf")
    killed: bool = False
    events: list[tuple[float, Event]] = field(default_factory=list)

    def of(self, kind: str) -> dict[str, float]:
        """Alert id -> when an event of this type came."""
        return {event["id"]: at for at, event in self.events if event["type"] == kind}


@dataclass(frozen=True)
class Sample:
    at: float
    life: int
    rss_mb: float
    fds: int
    threads: int
    children: int
    maps: int
    programs: int
    cpu_s: float


def bpf_objects(pid: int) -> tuple[set[int], set[int]]:
    """Ids of the maps and of the programs that its descriptors hold."""
    found: dict[str, set[int]] = {"map": set(), "prog": set()}
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            for kind, number in re.findall(r"^(map|prog)_id:\s+(\d+)$", entry.read_text(), re.MULTILINE):
                found[kind].add(int(number))
    return found["map"], found["prog"]


def loaded(kind: str) -> set[int]:
    """Ids of all maps ("map") or programs ("prog") of this machine."""
    said = subprocess.run(["bpftool", "-j", kind, "show"], capture_output=True, text=True, timeout=120).stdout
    return {entry["id"] for entry in json.loads(said)}


class Watcher:
    """Keeps one agent running. `hear(event, now)` is called for each of its events."""

    def __init__(self, folder: Path, dsn: str, hear: Callable[[Event, float], None]) -> None:
        self.journals, self.spool = folder / "journals", folder / "spool"
        self._log, self._events = folder / "agent.log", folder / "events.jsonl"
        self._dsn, self._hear = dsn, hear
        self.lives: list[Life] = []
        self.samples: list[Sample] = []
        self.wrong: list[str] = []

    @property
    def life(self) -> Life:
        return self.lives[-1]

    def start(self) -> None:
        options = ["--match", ".", "--stuck-after", "10", "--metrics", "127.0.0.1:9464", "--sentry-dsn", self._dsn,
                   "--journal", str(self.journals), "--spool", str(self.spool)]  # fmt: skip
        with open(self._log, "ab") as errors:
            told = errors.tell()
            process = subprocess.Popen(
                [command.COMMAND, "agent", "--json", *options],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
            )  # fmt: skip

        def watching() -> bool:
            assert process.poll() is None, self._log.read_text()[-2000:]
            return b"watching" in self._log.read_bytes()[told:]

        kernel.wait_until(watching, "the agent's first words", 180)
        life = Life(process, time.monotonic())
        self.lives.append(life)
        threading.Thread(target=self._listen, args=(life,), name="listener", daemon=True).start()

    def _listen(self, life: Life) -> None:
        assert life.process.stdout is not None
        with open(self._events, "ab") as kept:
            for line in life.process.stdout:
                if not line.endswith(b"\n"):
                    assert life.killed, line
                    return
                now, event = time.monotonic(), json.loads(line)
                kept.write(line)
                kept.flush()
                life.events.append((now, event))
                self._hear(event, now)

    def kill(self) -> None:
        """With SIGKILL; then nothing of it may be left."""
        life, pid = self.life, self.life.process.pid
        maps, programs = bpf_objects(pid)
        helpers = [(child, _start(child)) for child in targets.descendants(pid)]
        life.killed, life.ended = True, time.monotonic()
        life.process.kill()
        life.process.wait(60)
        helpers = [(child, began) for child, began in helpers if began]
        with _noting(self.wrong, "after a kill: "):
            kernel.wait_until(
                lambda: not any(_start(child) == began for child, began in helpers),
                f"the end of its helpers {helpers}",
                GONE_WITHIN_S,
            )
        with _noting(self.wrong, "after a kill: "):
            kernel.wait_until(lambda: not programs & loaded("prog"), "the end of its BPF programs", GONE_WITHIN_S)
        with _noting(self.wrong, "after a kill: "):
            kernel.wait_until(lambda: not maps & loaded("map"), "the end of its BPF maps", GONE_WITHIN_S)

    def end(self) -> None:
        """As a service manager does."""
        life = self.life
        life.process.send_signal(signal.SIGTERM)
        status = life.process.wait(60)
        life.ended = time.monotonic()
        if status:
            self.wrong.append(f"SIGTERM: it ended with status {status}")

    def sample(self) -> None:
        pid = self.life.process.pid
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text()
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            maps, programs = bpf_objects(pid)
            self.samples.append(
                Sample(
                    time.monotonic(), len(self.lives), int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024,
                    len(os.listdir(f"/proc/{pid}/fd")), int(fields[17]), len(kernel.children(pid)), len(maps),
                    len(programs), sum(map(int, fields[11:15])) / TICKS,
                )
            )  # fmt: skip

    def said(self) -> str:
        return self._log.read_text(errors="replace")


def _start(pid: int) -> str:
    """The start time of a living process, to tell it from a successor; nothing when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


@contextlib.contextmanager
def _noting(wrong: list[str], where: str) -> Iterator[None]:
    try:
        yield
    except AssertionError as error:
        wrong.append(where + str(error))
