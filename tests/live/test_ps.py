"""`stucktrace ps` beside real gunicorns: rows, verdicts, JSON, and `--watch` on a terminal of its own."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from importlib import resources
from typing import Any

import jsonschema
import pytest

from tests.harness import agent, brokers, celery, command, elsewhere, kernel, targets

NASTY = "\x1b]0;owned\x07\x1b[31m"
ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"


def validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(
        json.loads(resources.files("stucktrace").joinpath("ps.schema.json").read_text())
    )


def beside(pid: int) -> list[str]:
    """Into the PID and mount namespace of this process, so that other tests' workers are not seen."""
    return ["nsenter", "-t", str(pid), "-p", "-m"]


def rows(pid: int, *options: str) -> list[dict[str, Any]]:
    """`stucktrace ps --json` there, validated."""
    done = command.run("ps", "--json", *options, prefix=beside(pid))
    assert done.status == 0, done
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for row in found:
        validator().validate(row)
    return found


@contextlib.contextmanager
def one_stuck(workers: int = 3) -> Iterator[tuple[agent.Gunicorn, int]]:
    """gunicorn with one worker that hangs in a request; with its pid, in gunicorn's own namespace."""
    with (
        targets.start("http_holder.py", "deaf") as holder,
        agent.gunicorn("--timeout", 300, workers=workers) as server,
        server.request(f"/fetch?url=http://127.0.0.1:{holder.said}/"),
    ):
        hung = kernel.wait_until(
            lambda: [pid for pid in server.workers if kernel.in_call(pid, "recvfrom")], "the worker that hangs"
        )
        kernel.wait_until(lambda: kernel.asleep_s(hung[0]) >= 6, "it has hung for 6 s")
        yield server, agent.own_pid(hung[0])


def test_a_stuck_worker_among_idle_ones(engine: str):
    with one_stuck() as (server, hung):
        found = rows(server.master, "--engine", engine)
        assert [row["kind"] for row in found] == ["gunicorn-master"] + ["gunicorn-worker"] * 3
        master, *workers = found
        assert {row["master"] for row in workers} == {master["pid"]} and master["master"] is None
        assert {row["role"] for row in found} == {"sync"} and len({row["time"] for row in found}) == 1
        assert {row["pid"]: row["verdict"]["class"] for row in workers} == {
            row["pid"]: "stuck" if row["pid"] == hung else "healthy" for row in workers
        }
        stuck = next(row for row in workers if row["pid"] == hung)
        assert stuck["inside"]["syscall"] == "recvfrom" and stuck["inside"]["on"].startswith("127.0.0.1:")
        assert stuck["inside"]["for_s"] >= 6 and stuck["inside"]["tid"] == hung
        for row in workers:
            assert row["rss_bytes"] > 1 << 20 and row["fd_count"] >= 4 and row["age_s"] > 0, row
            if row["pid"] != hung:
                assert (row["inside"]["on"], row["verdict"]["code"]) == ("listening", "idle"), row
        table = command.run("ps", "--engine", engine, prefix=beside(server.master))
        assert (table.status, table.stderr) == (0, "") and "\x1b" not in table.stdout
        (line,) = [line for line in table.stdout.splitlines() if line.split()[0] == str(hung)]
        assert re.search(r"gunicorn worker sync .* recvfrom 127\.0\.0\.1:\d+ .* peer-silent \w+$", line), table.stdout
        (glance,) = [row for row in rows(server.master, "--no-verdict") if row["pid"] == hung]
        assert glance["verdict"] is None and glance["inside"]["on"] == stuck["inside"]["on"]


def test_a_request_that_hangs_in_a_threaded_worker():
    with (
        targets.start("http_holder.py", "deaf") as holder,
        agent.gunicorn("-k", "gthread", "--threads", 3, workers=2) as server,
    ):
        for _ in range(4):
            # Its pool has threads, which idle.
            with server.request("/") as client:
                assert client.wait(120) == 0
        glance = rows(server.master, "--no-verdict")[1:]
        assert max(row["threads"] for row in glance) > 1
        assert [row["verdict"]["code"] for row in glance] == ["idle", "idle"], glance
        with server.request(f"/fetch?url=http://127.0.0.1:{holder.said}/"):
            hung = kernel.wait_until(
                lambda: [
                    (pid, tid)
                    for pid in server.workers
                    for tid in kernel.tids(pid)
                    if kernel.in_call(pid, "recvfrom", tid=tid) and kernel.asleep_s(pid, tid) >= 6
                ],
                "the thread that hangs",
            )
            ((pid, tid),) = hung
            found = rows(server.master)
            (row,) = [row for row in found if row["pid"] == agent.own_pid(pid)]
            assert (row["verdict"]["class"], row["inside"]["syscall"]) == ("stuck", "recvfrom"), row
            assert row["inside"]["tid"] == row["verdict"]["tid"] != row["pid"] and row["role"] == "gthread"
            (work,) = row["work"]
            assert (work["kind"], work["name"], work["tid"]) == ("request", "GET /fetch", row["inside"]["tid"])
            assert [row["verdict"]["code"] for row in found if row["pid"] == agent.own_pid(server.master)] != ["stuck"]


def test_others_are_shown_when_asked_for():
    with agent.gunicorn() as server:
        inside = beside(server.master)
        code = "import threading; threading.Event().wait()"
        with targets.start([*inside, sys.executable, "-c", code, f"--name={NASTY}"], ready=False) as other:
            (pid,) = kernel.wait_for_children(other.pid, 1)
            kernel.wait_for_call(pid, "futex")
            own = agent.own_pid(pid)
            assert own not in {row["pid"] for row in rows(server.master)}
            for options in (["--all"], ["--match", "name="]):
                (row,) = [row for row in rows(server.master, *options) if row["pid"] == own]
                assert (row["kind"], row["verdict"]["code"]) == ("python", "idle") and NASTY in row["command"]
            table = command.run("ps", "--all", prefix=inside)
            assert table.status == 0 and "\x1b" not in table.stdout and "\x07" not in table.stdout
            assert own not in {row["pid"] for row in rows(server.master, "--match", "no such thing")}


@pytest.mark.xdist_group("redis")
def test_celery_and_its_pool(redis: brokers.Broker):
    with redis.client() as broker, celery.worker(broker) as worker:
        for child in worker.children:
            kernel.wait_for_call(child, "read")
        # Its PID namespace is everybody's, and other tests' workers need no verdict.
        done = command.run("ps", "--json", "--no-verdict")
        found = {row["pid"]: row for row in map(json.loads, done.stdout.splitlines())}
        assert found[worker.main]["kind"] == "celery-main" and found[worker.main]["role"] == "prefork"
        for child in worker.children:
            assert (found[child]["kind"], found[child]["master"]) == ("celery-child", worker.main)
            assert found[child]["verdict"]["code"] == "idle" and found[child]["inside"]["on"] == "pipe", found[child]


def test_nothing_to_show_and_nothing_to_be_seen():
    alone = ["unshare", "--pid", "--fork", "--mount-proc"]
    nothing = command.run("ps", prefix=alone)
    assert (nothing.status, nothing.stdout) == (0, "") and "no gunicorn or Celery" in nothing.stderr
    assert nothing.stderr.count("\n") == 1
    with agent.gunicorn() as server:
        blind = [*beside(server.master), "setpriv", "--reuid=65534", "--bounding-set=-all", "--inh-caps=-all"]
        with elsewhere.installed() as environment:
            done = elsewhere.run(environment, "ps", prefix=tuple(blind))
        assert done.returncode == 3 and done.stderr.count("\n") == 1, done
        assert len(done.stdout.splitlines()) == 3, done


def test_a_bad_pattern_is_a_usage_error():
    done = command.run("ps", "--match", "(")
    assert done.status == 2 and "regular expression" in done.stderr and done.stderr.count("\n") == 1


class Terminal:
    """A terminal with the command in it."""

    def __init__(self, *args: str, prefix: list[str], size: tuple[int, int] = (24, 120)) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(*size)
        self.modes = termios.tcgetattr(self.slave)
        self.text = ""
        self.process = subprocess.Popen(
            [*prefix, command.COMMAND, *args],
            stdin=self.slave, stdout=self.slave, stderr=self.slave, env={**os.environ, "TERM": "xterm"},
            preexec_fn=self._take,
        )  # fmt: skip

    @staticmethod
    def _take() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        # nsenter, which only waits, is not to die of Ctrl-C; the command sets its own handler.
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def resize(self, lines: int, columns: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))

    def read_until(self, done: Callable[[str], object], deadline_s: float = 90) -> None:
        """Reads what it draws until `done` of all of it is true."""
        end = time.monotonic() + deadline_s
        while not done(self.text):
            readable, _, _ = select.select([self.master], [], [], max(0.0, end - time.monotonic()))
            assert readable, self.text[-3000:]
            self.text += os.read(self.master, 1 << 16).decode(errors="replace")

    def ended(self) -> int:
        """Its exit status, with everything read that it wrote."""
        end = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < end:
            if select.select([self.master], [], [], 0.1)[0]:
                self.text += os.read(self.master, 1 << 16).decode(errors="replace")
        status = self.process.wait(1)
        while select.select([self.master], [], [], 0)[0]:
            self.text += os.read(self.master, 1 << 16).decode(errors="replace")
        return status

    def as_it_was(self) -> bool:
        screens = self.text.count(ENTER) == self.text.count(LEAVE) and self.text.rstrip().endswith(LEAVE)
        return screens and termios.tcgetattr(self.slave) == self.modes

    def close(self) -> None:
        for pid in [*targets.descendants(self.process.pid), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(60)
        os.close(self.master)
        os.close(self.slave)


def frames(text: str) -> list[str]:
    return text.split("\x1b[?2026h")[1:]


@pytest.mark.parametrize("how", ["q", "interrupt", "terminate"])
def test_watching_refreshes_and_gives_the_terminal_back(how: str):
    with agent.gunicorn(workers=2) as server:
        terminal = Terminal("ps", "--watch", "0.2", prefix=beside(server.master))
        try:
            terminal.read_until(lambda text: len(re.findall(r"3 processes: 3 idle", text)) >= 3)
            assert ENTER in terminal.text and not terminal.as_it_was()
            old = agent.own_pid(server.workers[0])
            os.kill(server.workers[0], signal.SIGKILL)
            new = kernel.wait_until(
                lambda: [pid for pid in kernel.children(server.master) if pid not in server.workers], "a new worker"
            )
            terminal.read_until(lambda text: re.search(rf"\n *{agent.own_pid(new[0])} ", frames(text)[-1]))
            assert not re.search(rf"\n *{old} ", frames(terminal.text)[-1])
            terminal.resize(3, 40)
            os.kill(kernel.children(terminal.process.pid)[0], signal.SIGWINCH)
            terminal.read_until(lambda text: "... and" in frames(text)[-1])
            if how == "terminate":
                os.kill(kernel.children(terminal.process.pid)[0], signal.SIGTERM)
            else:
                os.write(terminal.master, b"q" if how == "q" else b"\x03")
            assert terminal.ended() == 0 and terminal.as_it_was(), terminal.text[-500:]
        finally:
            terminal.close()


def test_watching_without_a_terminal_prints_table_after_table():
    with agent.gunicorn() as server:
        process = subprocess.Popen(
            [*beside(server.master), command.COMMAND, "ps", "--watch", "0.2"], stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            read = [process.stdout.readline() for _ in range(9)]
            assert [line.split()[:1] for line in read[:4]] == [line.split()[:1] for line in read[4:8]], read
            assert read[0].split()[0] == "PID" and read[3] == "\n"
            assert not any("\x1b" in line for line in read)
        finally:
            for pid in [*targets.descendants(process.pid), process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait(60)
