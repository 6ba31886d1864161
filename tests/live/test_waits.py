"""Counts of calls in a window: exact for what a watched process does, silent about all others."""

from __future__ import annotations

import os
import subprocess
import sys
from ctypes import c_uint32
from pathlib import Path

import pytest
from stucktrace.collectors import waits
from stucktrace.facts import CallActivity

from tests.harness.kernel import wait_until
from tests.harness.scripts import running

# On each line from stdin it does an exact number of things with its sockets, and answers.
WORKER = """
import ctypes, json, os, select, socket, sys, time
libc = ctypes.CDLL(None)
reader, writer = socket.socketpair()
idle, silent = socket.socketpair(); idle.setblocking(False)
closed = socket.socket(); closed.bind(("127.0.0.1", 0)); port = closed.getsockname()[1]
epoll = select.epoll()
print(json.dumps({"reader": reader.fileno(), "writer": writer.fileno(), "idle": idle.fileno(), "epoll": epoll.fileno()}), flush=True)
for line in sys.stdin:
    for _ in range(5): writer.send(b"0123456789")
    for _ in range(5): reader.recv(10)
    for _ in range(7):
        try: idle.recv(1)
        except BlockingIOError: pass
    for _ in range(3): epoll.poll(0)
    for _ in range(4): libc.poll(None, 0, 0)
    for _ in range(6): os.sched_yield()
    for _ in range(2): time.sleep(0.001)
    for _ in range(2): os.write(writer.fileno(), b"abc")
    os.read(reader.fileno(), 100)
    with socket.socket() as s:
        try: s.connect(("127.0.0.1", port))
        except ConnectionRefusedError: refused = s.fileno()
    print(refused, flush=True)
"""


def of(activity: tuple[CallActivity, ...], calls: set[str], fd: int | None = None) -> CallActivity:
    (found,) = (entry for entry in activity if entry.call in calls and (fd is None or entry.fd == fd))
    return found


def assert_exact(activity: tuple[CallActivity, ...], says: dict[str, int], refused: int, tid: int) -> None:
    def figures(calls: set[str], fd: int | None = None) -> tuple[int, int, int, int]:
        found = of(activity, calls, fd)
        assert found.tid == tid
        return found.returns, found.moved_bytes, found.empty, found.last_error

    assert figures({"sendto"}, says["writer"]) == (5, 50, 0, 0)
    assert figures({"recvfrom"}, says["reader"]) == (5, 50, 0, 0)
    assert figures({"recvfrom"}, says["idle"]) == (7, 0, 7, 11)
    assert figures({"epoll_wait", "epoll_pwait"}, says["epoll"]) == (3, 0, 3, 0)
    assert figures({"poll", "ppoll"}) == (4, 0, 4, 0)
    assert figures({"sched_yield"}) == (6, 0, 6, 0)
    assert figures({"clock_nanosleep"}) == (2, 0, 0, 0)
    assert figures({"write"}, says["writer"]) == (2, 6, 0, 0)
    assert figures({"read"}, says["reader"]) == (1, 6, 0, 0)
    assert figures({"connect"}, refused) == (1, 0, 0, 111)


@pytest.mark.parametrize("core", [{}, {"tp_btf"}], indirect=True, ids=["tp_btf", "raw_tp"])
def test_exact_counts_of_the_watched_alone(core, request):
    with running(WORKER) as watched, running(WORKER) as stranger:
        watched.tell("before the window")
        with waits.watching([watched.pid], core) as watch:
            assert watch.complete
            assert watch.missing == ()
            stranger.tell("go")
            refused = int(watched.tell("go"))
            activity = watch.activity()
            assert watch.complete
    assert set(activity) == {watched.pid}
    assert_exact(activity[watched.pid], watched.says, refused, watched.pid)
    assert core.hooks["waits"] == f"{request.node.callspec.id}/sys_exit"
    assert core.lost_records() == 0


def test_two_windows_one_after_the_other_and_two_processes(core):
    with running(WORKER) as one, running(WORKER) as other:
        for _ in range(2):
            with waits.watching([one.pid, other.pid], core) as watch:
                refused = {script.pid: int(script.tell("go")) for script in (one, other)}
                activity = watch.activity()
            for script in (one, other):
                assert_exact(activity[script.pid], script.says, refused[script.pid], script.pid)


def test_a_process_whose_slot_another_has(core):
    """Two watched processes whose pids share their low bits: the hash tells them apart."""
    with running(WORKER) as script, waits.watching([script.pid], core) as watch:
        core.load("waits").map("watched_slots").update(c_uint32(script.pid % 4096), c_uint32(script.pid + 4096))
        refused = int(script.tell("go"))
        assert_exact(watch.activity()[script.pid], script.says, refused, script.pid)


def test_a_thread_that_sleeps_through_returns_nothing(core):
    source = "import json, os\nr, w = os.pipe()\nprint(json.dumps({}), flush=True)\nos.read(r, 1)"
    with running(source) as script:
        syscall = Path(f"/proc/{script.pid}/syscall")
        wait_until(lambda: syscall.read_text().startswith(READ), "the read")
        with waits.watching([script.pid], core) as watch:
            assert watch.activity() == {}
            assert watch.complete


READ = "0 " if os.uname().machine == "x86_64" else "63 "


def test_threads_that_begin_in_the_window_are_counted(core):
    source = """
import json, os, sys, threading
r, w = os.pipe()
tids, done = [], threading.Event()
def work():
    tids.append(threading.get_native_id())
    for _ in range(50): os.write(w, b"x")
    done.set()
    threading.Event().wait()
print(json.dumps({"w": w}), flush=True)
for line in sys.stdin:
    threading.Thread(target=work, daemon=True).start()
    done.wait()
    print(tids[0], flush=True)
"""
    with running(source) as script, waits.watching([script.pid], core) as watch:
        tid = int(script.tell("go"))
        written = of(watch.activity()[script.pid], {"write"}, script.says["w"])
        assert (written.tid, written.returns, written.moved_bytes) == (tid, 50, 50)


def test_without_bpf_it_is_there_and_never_complete():
    with waits.watching([os.getpid()], None) as watch:
        assert watch.complete is False
        assert watch.activity() == {}


def test_a_process_that_is_gone(core):
    process = subprocess.Popen(["true"])
    process.wait()
    with waits.watching([process.pid], core) as watch:
        assert watch.activity() == {}


def test_in_a_pid_namespace():
    inside = """
import os, subprocess, sys
from stucktrace.collectors import kernel, waits
target = subprocess.Popen([sys.executable, "-c", "import os, sys\\nfor line in sys.stdin: os.sched_yield(); print(1, flush=True)"],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
def tell():
    target.stdin.write("go\\n"); target.stdin.flush(); target.stdout.readline()
tell()
with kernel.open_kernel("core").kernel as core, waits.watching([target.pid], core) as watch:
    tell()
    (found,) = (entry for entry in watch.activity()[target.pid] if entry.call == "sched_yield")
assert (found.tid, found.returns) == (target.pid, 1), found
target.kill()
"""
    out = subprocess.run(
        ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", inside],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert out.returncode == 0, out.stderr
