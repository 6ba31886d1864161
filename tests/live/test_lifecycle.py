"""Process events as they come: whose, how they ended and who sent the signal; in the ids that the tool itself sees."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from stucktrace.collectors import kernel, lifecycle
from stucktrace.collectors.lifecycle import LifeEvent

from tests.harness.kernel import children, wait_until
from tests.harness.scripts import running

# Forks a child that does what the line says, and prints the child's pid: at once when the child waits, else at its end.
PARENT = """
import ctypes, json, os, signal, sys, threading
libc = ctypes.CDLL(None)
def main_thread_first():
    def last():
        while open(f"/proc/self/task/{os.getpid()}/stat").read().rpartition(")")[2].split()[0] != "Z": pass
        os._exit(5)
    threading.Thread(target=last).start()
    libc.pthread_exit(None)
def threads():
    for _ in range(3):
        thread = threading.Thread(target=len, args=((),))
        thread.start()
        thread.join()
    os._exit(0)
def grandchild():
    if os.fork() == 0: os._exit(9)
    os.wait()
    os._exit(0)
def handled():
    signal.signal(signal.SIGABRT, lambda *_: os._exit(1))
    wait()
def wait():
    os.write(ready, b"x")
    while True: signal.pause()
def exits(): os._exit(7)
def eat():
    blocks = []
    while True: blocks.append(bytes(1 << 20))
print(json.dumps({"pid": os.getpid()}), flush=True)
for line in sys.stdin:
    told, ready = os.pipe()
    pid = os.fork()
    if pid == 0:
        libc.prctl(1, signal.SIGKILL)
        globals()[line.strip()]()
    os.close(ready)
    if not os.read(told, 1): os.waitpid(pid, 0)
    os.close(told)
    print(pid, flush=True)
"""


class Events:
    """Everything that was told so far."""

    def __init__(self, life: lifecycle.Lifecycle) -> None:
        self.life = life
        self.told: list[LifeEvent] = []

    def of(self, pid: int) -> list[LifeEvent]:
        self.told += self.life.events()
        return [event for event in self.told if event.pid == pid]

    def end_of(self, pid: int) -> int:
        """Its status, once it has ended."""
        exits = wait_until(lambda: [event for event in self.of(pid) if event.kind == "exit"], f"the exit of {pid}")
        assert len(exits) == 1 and exits[0].status is not None
        return exits[0].status


@pytest.fixture
def events(core: kernel.Kernel) -> Iterator[Events]:
    life = lifecycle.Lifecycle(core)
    yield Events(life)
    life.close()
    assert core.lost_records() == 0


def test_every_hook_is_attached(events: Events, core: kernel.Kernel):
    assert events.life.missing == ()
    assert core.hooks["lifecycle"] == f"tp_btf/{','.join(lifecycle.HOOKS.values())}"


def test_an_exec_of_anybody(events: Events):
    with subprocess.Popen(["sh", "-c", "read line; exec sleep 100"], stdin=subprocess.PIPE) as shell:
        assert shell.stdin is not None
        shell.stdin.write(b"\n")
        shell.stdin.close()
        told = wait_until(lambda: len(told := events.of(shell.pid)) == 2 and told, "two programs")
        shell.kill()
    me = os.getpid()
    assert [(event.kind, event.command, event.parent) for event in told] == [("exec", "sh", me), ("exec", "sleep", me)]


def test_a_child_that_dies_at_once(events: Events):
    with running(PARENT) as parent, running(PARENT) as stranger:
        events.life.watch([parent.pid])
        pid, unknown = int(parent.tell("exits")), int(stranger.tell("exits"))
        assert os.waitstatus_to_exitcode(events.end_of(pid)) == 7
        fork, end = events.of(pid)
        assert (fork.kind, fork.parent, fork.status) == ("fork", parent.pid, None)
        assert fork.time_s < end.time_s
        assert events.of(unknown) == []
        pid = int(parent.tell("grandchild"))
        events.end_of(pid)
        (grandchild,) = {event.pid for event in events.told if event.parent == pid}
        assert os.waitstatus_to_exitcode(events.end_of(grandchild)) == 9


@pytest.mark.parametrize(("child", "code"), [("threads", 0), ("main_thread_first", 5)])
def test_threads_are_no_processes(events: Events, child: str, code: int):
    with running(PARENT) as parent:
        events.life.watch([parent.pid])
        pid = int(parent.tell(child))
        assert os.waitstatus_to_exitcode(events.end_of(pid)) == code
        assert [event.kind for event in events.of(pid)] == ["fork", "exit"]


def test_who_killed_it(events: Events):
    with running(PARENT) as parent:
        events.life.watch([parent.pid])
        pid = int(parent.tell("wait"))
        os.kill(pid, signal.SIGCONT)
        os.kill(pid, signal.SIGKILL)
        assert events.end_of(pid) == signal.SIGKILL
        (kill,) = [event for event in events.of(pid) if event.kind == "signal"]
        assert (kill.signal, kill.sender) == (signal.SIGKILL, os.getpid())


def test_an_abort_wakes_its_reader(events: Events):
    """As gunicorn's master does it: the worker may handle it, and its stack is there until then."""
    with running(PARENT) as parent:
        events.life.watch([parent.pid])
        pid = int(parent.tell("handled"))
        events.of(pid)
        subprocess.run(["kill", "-ABRT", str(pid)], check=True)
        assert select.select([events.life.fd], [], [], 60)[0]
        assert os.waitstatus_to_exitcode(events.end_of(pid)) == 1
        (abort,) = [event for event in events.of(pid) if event.kind == "abort"]
        assert {event.command for event in events.told if event.pid == abort.sender} == {"kill"}


def test_the_end_of_what_was_watched_by_name(events: Events):
    with running(PARENT) as target:
        events.life.watch([target.pid])
        target.process.kill()
        assert events.end_of(target.pid) == signal.SIGKILL
        events.life.watch([])
    with running(PARENT) as forgotten:
        events.life.watch([forgotten.pid])
        events.life.watch([])
        pid = int(forgotten.tell("exits"))
        assert events.of(pid) == []


def test_a_child_that_nobody_asks_for(events: Events, monkeypatch: pytest.MonkeyPatch):
    with running(PARENT) as parent:
        events.life.watch([parent.pid])
        wanted, unwanted = int(parent.tell("wait")), int(parent.tell("wait"))
        monkeypatch.setattr(lifecycle, "CHILD_WATCHED_S", 0.0)
        events.life.watch([parent.pid, wanted])
        for pid in (unwanted, wanted):
            os.kill(pid, signal.SIGKILL)
        assert events.end_of(wanted) == signal.SIGKILL
        assert [event.kind for event in events.of(unwanted)] == ["fork"]


def test_more_processes_than_fit(core: kernel.Kernel):
    events = Events(lifecycle.Lifecycle(core))
    with running(PARENT) as parent:
        pids = [parent.pid, *range(1 << 22, (1 << 22) + lifecycle.MOST)]
        events.life.watch(pids)
        (missing,) = events.life.missing
        assert str(len(pids)) in missing.because and str(lifecycle.MOST) in missing.because
        pid = int(parent.tell("exits"))
        parent.process.kill()
        assert events.end_of(parent.pid) == signal.SIGKILL
        assert [event.kind for event in events.of(pid)] == ["fork"]
        # There was no room for the child.
        assert core.lost_records() == 1
        events.life.watch([])
        assert events.life.missing == ()
    events.life.close()


@contextmanager
def little_memory(pid: int) -> Iterator[None]:
    """The process and its children may use 64 MB."""
    separate = Path("/sys/fs/cgroup/memory")
    group = (separate if separate.is_dir() else separate.parent) / f"stucktrace-test-{os.getpid()}"
    group.mkdir()
    try:
        limit = group / ("memory.limit_in_bytes" if separate.is_dir() else "memory.max")
        limit.write_text(str(64 << 20))
        (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text(), "the end of its processes")
        group.rmdir()


def test_the_kernel_runs_out_of_memory(events: Events):
    with running(PARENT) as parent:
        with little_memory(parent.pid):
            events.life.watch([parent.pid])
            pid = int(parent.tell("eat"))
            parent.process.kill()
        assert events.end_of(pid) == signal.SIGKILL
        told = [(event.kind, event.sender) for event in events.of(pid)]
        assert ("oom", 0) in told and told[-1] == ("exit", 0)
        assert all(sender == 0 for _, sender in told)


INSIDE = """
import json, sys
from stucktrace.collectors import kernel, lifecycle
opened = kernel.open_kernel("core").kernel
life = lifecycle.Lifecycle(opened)
print("{}", flush=True)
for line in sys.stdin:
    if line.startswith("watch"):
        life.watch([int(line.split()[1])])
        print(flush=True)
    else:
        print(json.dumps([vars(event) for event in life.events()]), flush=True)
"""


def test_a_tool_in_a_pid_namespace_of_its_own(events: Events):
    """It sees its neighbours by their ids there, and nobody else; whoever is outside is 0."""
    with running(INSIDE, "unshare", "--pid", "--fork", "--kill-child", "--mount-proc") as tool:
        (init,) = children(tool.pid)
        with running(PARENT, "nsenter", "-t", str(init), "-p", "-m") as neighbour:
            own = neighbour.says["pid"]
            (outside,) = children(neighbour.pid)
            assert own != outside
            tool.tell(f"watch {own}")
            child = int(neighbour.tell("exits"))
            events.life.watch([outside])
            os.kill(outside, signal.SIGTERM)
            events.end_of(outside)
            subprocess.run(["true"], check=True)
            told = [LifeEvent(**event) for event in json.loads(tool.tell("tell"))]
    assert [(event.kind, event.pid, event.parent, event.status) for event in told[-4:]] == [
        ("fork", child, own, None),
        ("exit", child, own, 7 << 8),
        ("signal", own, 0, None),
        ("exit", own, 0, signal.SIGTERM),
    ]
    assert {event.sender for event in told} == {0}
    assert {event.pid for event in told} == {own, child}


def test_a_flood_is_counted(core: kernel.Kernel):
    """By a ring buffer and by perf buffers, which have their places for each CPU."""
    source = """
import os
print("{}", flush=True)
count = int(input())
for _ in range(count):
    if (pid := os.fork()) == 0: os._exit(0)
    os.waitpid(pid, 0)
print("done", flush=True)
"""
    forks = 2500
    with running(source) as target, kernel.Kernel(frozenset({"ringbuf"})) as older:
        lives = {core: lifecycle.Lifecycle(core), older: lifecycle.Lifecycle(older)}
        for life in lives.values():
            life.watch([target.pid])
        assert target.tell(str(forks)) == "done"
        for loaded, life in lives.items():
            told = len(life.events())
            assert 500 < told < 2 * forks
            # Some of what was told are programs that others began meanwhile.
            assert loaded.lost_records() >= 2 * forks - told
            life.close()


@pytest.mark.parametrize("core", [{"tp_btf/mark_victim", "raw_tp/mark_victim"}], indirect=True)
def test_a_missing_hook_leaves_the_others(core: kernel.Kernel):
    life = lifecycle.Lifecycle(core)
    assert [missing.what for missing in life.missing] == ["process events: mark_victim"]
    assert subprocess.run([sys.executable, "-c", ""], check=True)
    wait_until(lambda: any(event.kind == "exec" for event in life.events()), "an exec")
    life.close()
