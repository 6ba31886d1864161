"""Healthy processes that look like hangs: more than a hundred of them, side by side, for a minute. None is ever called stuck.

All descendants of a program are looked at too. Looks at several processes share one run of the command, as a user's
would; some are looked at alone as well.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.harness import agent, command, kernel, targets

WATCHED_S = 60.0
ROUNDS = 2
AT_ONCE = 24
"""Processes in one run of the command."""
ALONE = 3
"""One program of so many is looked at alone too, in one of the rounds."""
PROGRAMS = (
    "healthy_threads.py",
    "healthy_locks.py",
    "healthy_io.py",
    "healthy_processes.py",
    "healthy_loops.py",
    "healthy_pools.py",
)
HELPERS = {"works", "spawn", "crowd", "short", "start", "local_server", "connected", "anonymous"}
OPTIONS: tuple[tuple[str, ...], ...] = (
    ("--engine", "auto"),
    ("--engine", "none", "--stuck-after", "2"),
    ("--engine", "auto", "--stuck-after", "2"),
    ("--engine", "none"),
)
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Healthy:
    name: str
    command: tuple[str, ...]
    children: int = 0
    """It is ready when it has so many; 0: when it says so."""
    env: dict[str, str] = field(default_factory=dict)
    says_ready: bool = True


def cases() -> Iterator[Healthy]:
    for program in PROGRAMS:
        path = targets.TARGETS / program
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name not in HELPERS and not node.name.startswith("_"):
                yield Healthy(f"{path.stem}.{node.name}", (sys.executable, str(path), node.name, "{folder}/database"))
    for kind, more in (("sync", ()), ("gthread", ("--threads", "4")), ("gevent", ())):
        arguments = ("-k", kind, "-w", "2", "-b", "127.0.0.1:0", "--chdir", str(targets.TARGETS), *more)
        yield Healthy(f"gunicorn.{kind}", (f"{BIN}/gunicorn", *arguments, "healthy_wsgi:application"), 2)
    celery = (f"{BIN}/celery", "-A", "healthy_app")
    worker = (*celery, "worker", "--without-gossip", "--without-mingle")
    for pool in ("prefork", "solo", "threads", "gevent"):
        yield Healthy(f"celery.{pool}", (*worker, "-P", pool, "-c", "2"))
    yield Healthy("celery.warm_shutdown", (*worker, "-P", "prefork", "-c", "1"), env={"WARM": "1"})
    yield Healthy("celery.beat", (*celery, "beat", "-s", "{folder}/schedule", "--pidfile="))
    python = (sys.executable, str(targets.TARGETS / "healthy_threads.py"), "sleeps")
    for name, arguments in {
        "sleep": ("sleep", "3600"),
        "tail": ("tail", "-f", "/dev/null"),
        "netcat": ("nc", "-l", "-U", "{folder}/socket"),
        "redis": ("redis-server", "--port", "0", "--save", "", "--unixsocket", "{folder}/redis"),
        "cat": ("sh", "-c", "sleep 3600 | cat"),
        "perl": ("perl", "-e", "select(undef, undef, undef, 3600)"),
        "bash": ("bash", "-c", "while sleep 3600; do :; done"),
        "flock": ("flock", "{folder}/lock", "sleep", "3600"),
        "tini": ("tini", "-s", "--", *python),
        "shell": ("sh", "-c", f"{' '.join(python)}; true"),
    }.items():
        yield Healthy(f"program.{name}", arguments, says_ready=name in ("tini", "shell"))


CASES = tuple(cases())
BUSY = tuple(case for case in CASES if "compute" in case.name or "busy" in case.name)
"""They take the CPU all the time, so they have a shorter test of their own."""


class Crowd:
    """The running programs, and what they answered."""

    def __init__(self, stack: contextlib.ExitStack, folder: Path) -> None:
        self._stack, self._folder = stack, folder
        self.names: dict[int, str] = {}
        """Main process of each program -> the case."""
        self.wrong: dict[str, list[str]] = {}
        self.looks = 0

    def start(self, case: Healthy) -> None:
        folder = self._folder / case.name
        folder.mkdir()
        arguments = [word.replace("{folder}", str(folder)) for word in case.command]
        ready = case.says_ready and not case.children
        target = self._stack.enter_context(targets.start(arguments, ready=ready, env=case.env, cwd=targets.TARGETS))
        if case.children:
            kernel.wait_for_children(target.pid, case.children)
        self.names[target.pid] = case.name

    def families(self) -> dict[int, str]:
        """Every process of every program -> the case."""
        found: dict[int, str] = {}
        for pid, name in self.names.items():
            found.update(dict.fromkeys(filter(kernel.alive, [pid, *targets.descendants(pid)]), name))
        return found

    def look(self, pids: Sequence[int], options: Sequence[str], names: dict[int, str]) -> None:
        result = command.run("pid", *pids, "--json", *options)
        reports = [command.Report(json.loads(line)) for line in result.stdout.splitlines()]
        self.looks += len(reports)
        for report in reports:
            command.validator().validate(report)
            for told in (report, *report["children"]):
                verdict = told["verdict"]
                if verdict["class"] != "healthy":
                    self.complain(names, told.get("pid") or report["process"]["pid"], options, verdict)
        for line in result.stderr.splitlines():
            if "stands above" in line:
                continue
            found = re.match(r"stucktrace: .*?process (\d+)", line)
            if not found or kernel.alive(int(found[1])):
                self.wrong.setdefault("stderr", []).append(line)

    def complain(self, names: dict[int, str], pid: int, options: Sequence[str], verdict: dict[str, str]) -> None:
        said = f"{' '.join(options)}: {verdict['code']} ({verdict['confidence']}): {verdict['summary']}"
        self.wrong.setdefault(names.get(pid, str(pid)), []).append(said)


@contextlib.contextmanager
def under_the_agent(crowd: Crowd, *options: str | int) -> Iterator[agent.Agent]:
    """An agent watches every Python process of the node meanwhile; its alerts about the crowd are complaints."""
    ours: dict[int, str] = {}
    with agent.watching(os.getpid(), "--match", ".", *options) as watcher:
        yield watcher
        while event := watcher.read(1.0):
            ours = ours or crowd.families()
            if event["type"] == "opened":
                for affected in event["affected"]:
                    if affected["pid"] in ours:
                        crowd.complain(ours, affected["pid"], ("agent", *map(str, options)), event["report"]["verdict"])


def watch(folder: Path, chosen: Sequence[Healthy], watched_s: float, rounds: int) -> None:
    """Looks at all of them in rounds, at every process with other options in each round."""
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(2) as pool, ThreadPoolExecutor(4) as starters:
        crowd = Crowd(stack, folder)
        list(starters.map(crowd.start, chosen))
        watching = contextlib.ExitStack()
        watching.enter_context(under_the_agent(crowd, "--stuck-after", 10))
        began = time.monotonic()
        alone = list(crowd.names)
        for number in range(rounds):
            kernel.wait_until(
                lambda number=number: time.monotonic() >= began + watched_s * number / (rounds - 1), "the next round"
            )
            names = crowd.families()
            # A program's children are much alike: each is looked at once.
            chosen_now = [pid for at, pid in enumerate(names) if pid in crowd.names or at % rounds == number]
            jobs = [
                (chosen_now[at : at + AT_ONCE], OPTIONS[(number + at // AT_ONCE) % len(OPTIONS)])
                for at in range(0, len(chosen_now), AT_ONCE)
            ]
            jobs += [([pid], OPTIONS[number % len(OPTIONS)]) for pid in alone[number :: rounds * ALONE]]
            list(pool.map(lambda job: crowd.look(*job, names), jobs))
            print(f"round {number}: {crowd.looks} looks after {time.monotonic() - began:.1f} s")
        watching.close()
        assert crowd.looks >= len(chosen) * rounds
        assert not crowd.wrong, "\n".join(f"{name}: {said}" for name, words in crowd.wrong.items() for said in words)


pytestmark = pytest.mark.xdist_group("lookalikes")


@pytest.mark.timeout(900)
def test_never_called_stuck(tmp_path: Path):
    watch(tmp_path, [case for case in CASES if case not in BUSY], WATCHED_S, ROUNDS)


def test_never_called_stuck_while_they_compute(tmp_path: Path):
    watch(tmp_path, BUSY, 8.0, 3)
