"""Threads as the kernel shows them: both means, the iterator and /proc, must tell the same of the same thread."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stucktrace.collectors import kernel, syscalls, threads
from stucktrace.facts import ThreadFact

from tests.harness.kernel import wait_until
from tests.harness.scripts import running

MEANS = {"iter": "core", "proc": "none"}


@pytest.fixture(params=MEANS.values(), ids=MEANS.keys())
def opened(request):
    found = kernel.open_kernel(request.param).kernel
    assert (found is None) == (request.param == "none")
    yield found
    if found is not None:
        assert found.lost_records() == 0
        found.close()


PARKED = """
import ctypes, json, os, select, socket, threading, time
a, b = socket.socketpair()
r, w = os.pipe()
full, _ = socket.socketpair()
full.setblocking(False)
try:
    while True: full.send(b"x" * 4096)
except BlockingIOError:
    pass
full.setblocking(True)
epoll = select.epoll()
lock = threading.Lock(); lock.acquire()
def poll(fds, milliseconds):
    p = select.poll()
    for fd, events in fds: p.register(fd, events)
    return lambda: p.poll(milliseconds)
jobs = {
    "recv": lambda: a.recv(1), "read": lambda: os.read(r, 1), "send": lambda: full.send(b"x"),
    "poll": poll([(a, select.POLLIN)], 900_000), "polls": poll([(a, select.POLLIN), (r, select.POLLIN)], None),
    "polled_write": poll([(full, select.POLLOUT)], None),
    "select": lambda: select.select([a, r], [], [], 900), "epoll": lambda: epoll.poll(),
    "epoll_timed": lambda: epoll.poll(900), "lock": lambda: lock.acquire(), "lock_timed": lambda: lock.acquire(True, 900),
    "sleep": lambda: time.sleep(900),
}
tids = {}
def run(name, job):
    tids[name] = threading.get_native_id()
    ctypes.CDLL(None).prctl(15, name.encode(), 0, 0, 0)
    job()
for name, job in jobs.items():
    threading.Thread(target=run, args=(name, job), daemon=True).start()
while len(tids) < len(jobs): time.sleep(0.01)
print(json.dumps({"tids": tids, "a": a.fileno(), "r": r, "full": full.fileno(), "epoll": epoll.fileno()}), flush=True)
signal = __import__("signal"); signal.pause()
"""
CALLS = {
    "recv": {"recvfrom"},
    "read": {"read"},
    "send": {"sendto"},
    "poll": {"poll", "ppoll"},
    "polls": {"poll", "ppoll"},
    "polled_write": {"poll", "ppoll"},
    "select": {"select", "pselect6"},
    "epoll": {"epoll_wait", "epoll_pwait"},
    "epoll_timed": {"epoll_wait", "epoll_pwait"},
    "lock": {"futex"},
    "lock_timed": {"futex"},
    "sleep": {"clock_nanosleep"},
}


def by_name(pid: int, opened: kernel.Kernel | None) -> dict[str, ThreadFact]:
    return {thread.name: thread for thread in threads.collect([pid], opened).get(pid, ())}


def parked(pid: int, opened: kernel.Kernel | None) -> dict[str, ThreadFact]:
    """The threads of PARKED once each sits in its call."""

    def settled() -> dict[str, ThreadFact] | None:
        found = by_name(pid, opened)
        in_call = all(
            name in found and (call := found[name].syscall) and call.name in names for name, names in CALLS.items()
        )
        return found if in_call else None

    return wait_until(settled, "every thread in its call")


def test_every_call_with_its_fds_and_timeout(opened):
    with running(PARKED) as script:
        found = parked(script.pid, opened)
    says = script.says
    call = {name: thread.syscall for name, thread in found.items()}
    assert {name: found[name].tid for name in CALLS} == says["tids"]
    assert (call["recv"].fd, call["recv"].waits_to, call["recv"].endless) == (says["a"], "read", None)
    assert (call["read"].fd, call["read"].waits_to) == (says["r"], "read")
    assert (call["send"].fd, call["send"].waits_to) == (says["full"], "write")
    assert (call["poll"].fd, call["poll"].waits_to, call["poll"].endless) == (says["a"], "read", False)
    assert call["poll"].timeout_s == 900
    assert (call["polls"].fd, set(call["polls"].fds), call["polls"].endless) == (None, {says["a"], says["r"]}, True)
    assert (call["polled_write"].fd, call["polled_write"].waits_to) == (says["full"], "write")
    assert (set(call["select"].fds), call["select"].waits_to) == ({says["a"], says["r"]}, "read")
    assert call["select"].timeout_s == pytest.approx(900, abs=1)
    assert (call["epoll"].fd, call["epoll"].endless) == (says["epoll"], True)
    assert call["epoll_timed"].timeout_s == 900
    assert (call["lock"].fds, call["lock"].endless) == ((), True)
    # These two were given a deadline: the kernel's age of the sleep turns it back into the timeout.
    assert call["lock_timed"].timeout_s == pytest.approx(900, abs=1)
    assert call["sleep"].timeout_s == pytest.approx(900, abs=1)
    for name in CALLS:
        thread = found[name]
        assert (thread.state, thread.tid, thread.kernel_stack) == ("S", thread.ns_tid, ()), name
        assert thread.blocked_s is not None and 0 <= thread.blocked_s < 900, name
        assert thread.blocked_since_source and thread.wchan, name
        assert thread.on_cpu_s is not None and thread.switches, name


def test_both_means_agree():
    with running(PARKED) as script, kernel.open_kernel("core").kernel as core:
        parked(script.pid, core)
        iterated, read = by_name(script.pid, core), by_name(script.pid, None)
    assert iterated.keys() == read.keys()
    for name in CALLS:
        one, other = iterated[name], read[name]
        assert one.blocked_s == pytest.approx(other.blocked_s, abs=10), name
        assert (one.tid, one.ns_tid, one.state, one.switches) == (other.tid, other.ns_tid, other.state, other.switches)
        assert one.on_cpu_s == pytest.approx(other.on_cpu_s, abs=1e-6), name
        assert one.wchan == other.wchan
        assert one.syscall.args == other.syscall.args
        assert (one.syscall.number, one.syscall.fds) == (other.syscall.number, other.syscall.fds)


def test_a_sleep_is_as_old_as_it_is(opened):
    """The age grows with the clock, look by look, however long ago the sleep began."""
    with running("import json, time; print(json.dumps({}), flush=True); time.sleep(900)") as script:
        first = wait_until(lambda: sleeping(script.pid, opened), "the sleep")
        before = time.monotonic()
        time.sleep(1.0)
        second = sleeping(script.pid, opened)
        passed_s = time.monotonic() - before
    assert second.switches == first.switches
    assert second.blocked_s - first.blocked_s >= 0.9
    # The looks themselves take time too, on a busy machine a good deal.
    assert second.blocked_s - first.blocked_s <= passed_s + 30


def sleeping(pid: int, opened: kernel.Kernel | None) -> ThreadFact | None:
    (thread,) = threads.collect([pid], opened)[pid]
    return thread if thread.syscall and "nanosleep" in thread.syscall.name else None


def test_compare_tells_a_sleeper_from_a_poller(opened):
    source = """
import json, select, threading, time
threading.Thread(target=time.sleep, args=(900,), daemon=True).start()
print(json.dumps({}), flush=True)
while True: select.select([], [], [], 0.001)
"""
    with running(source) as script:

        def asleep() -> bool:
            calls = [t.syscall.name for t in threads.collect([script.pid], opened)[script.pid] if t.syscall]
            return "clock_nanosleep" in calls

        wait_until(asleep, "the sleeper's sleep")
        first = threads.collect([script.pid], opened)[script.pid]

        def woke() -> tuple[ThreadFact, ...] | None:
            second = threads.compare(first, threads.collect([script.pid], opened)[script.pid])
            main = next(t for t in second if t.tid == script.pid)
            return second if main.slept_through is False and main.cpu_s_in_window else None

        second = wait_until(woke, "the poller woke")
        (sleeper,) = (t for t in second if t.tid != script.pid)
        assert sleeper.slept_through is True
        assert sleeper.cpu_s_in_window == 0


def test_running_in_user_space_is_in_no_call(opened):
    with running("import json; print(json.dumps({}), flush=True)\nwhile True: pass") as script:
        first = wait_until(lambda: runs(script.pid, opened), "it runs")
        assert (first.syscall, first.blocked_s, first.blocked_since_source) == (None, None, "")

        def used_cpu() -> bool:
            later = runs(script.pid, opened)
            return later is not None and later.on_cpu_s > first.on_cpu_s

        wait_until(used_cpu, "CPU time grows")


def runs(pid: int, opened: kernel.Kernel | None) -> ThreadFact | None:
    (thread,) = threads.collect([pid], opened)[pid]
    return thread if thread.state == "R" else None


RESTARTED = """
import ctypes, json, select, threading, time
libc = ctypes.CDLL(None)
class Timespec(ctypes.Structure): _fields_ = [("s", ctypes.c_long), ("ns", ctypes.c_long)]
word, wait, nap = ctypes.c_uint32(7), Timespec(900, 0), Timespec(900, 0)
p = select.poll()
jobs = {
    "poll": lambda: libc.poll(None, 0, 900_000), "nanosleep": lambda: libc.nanosleep(ctypes.byref(nap), None),
    "futex": lambda: libc.syscall(FUTEX, ctypes.byref(word), 128, 7, ctypes.byref(wait), None, 0),
    "epoll": lambda: select.epoll().poll(),
}
def run(name, job):
    libc.prctl(15, name.encode(), 0, 0, 0)
    job()
for name, job in jobs.items(): threading.Thread(target=run, args=(name, job), daemon=True).start()
print(json.dumps({}), flush=True)
while True: time.sleep(900)
""".replace("FUTEX", str(syscalls.NUMBERS["futex"]))


def test_stopped_and_continued_the_call_stays_what_it_was(opened):
    def in_calls(state: str) -> dict[str, ThreadFact] | None:
        found = by_name(script.pid, opened)
        if not all(name in found and found[name].state == state for name in ("poll", "nanosleep", "futex", "epoll")):
            return None
        calls = {name: found[name].syscall.name if found[name].syscall else "" for name in found}
        right = calls["poll"] in ("poll", "ppoll") and "nanosleep" in calls["nanosleep"] and calls["futex"] == "futex"
        return found if right else None

    with running(RESTARTED) as script:
        wait_until(lambda: in_calls("S"), "each in its call")
        os.kill(script.pid, signal.SIGSTOP)
        stopped = wait_until(lambda: in_calls("T"), "each stopped in its call")
        assert all(thread.blocked_s is not None for thread in stopped.values())
        os.kill(script.pid, signal.SIGCONT)
        again = wait_until(lambda: in_calls("S"), "each in its call again")
        assert again["futex"].syscall.timeout_s == 900
        assert again["poll"].syscall.timeout_s == 900


def test_uninterruptible_shows_the_kernel_stack(opened):
    """A parent waits in state D until its vfork child has called exec; this child never does."""
    source = """
import ctypes, json, os, threading
libc = ctypes.CDLL(None)
print(json.dumps({}), flush=True)
if libc.vfork() == 0:
    while True: libc.pause()
"""
    with running(source) as script:

        def blocked() -> ThreadFact | None:
            (thread,) = threads.collect([script.pid], opened)[script.pid]
            return thread if thread.state == "D" and thread.kernel_stack else None

        thread = wait_until(blocked, "the vfork")
        child = int(Path(f"/proc/{script.pid}/task/{script.pid}/children").read_text().split()[0])
        script.process.kill()
        os.kill(child, signal.SIGKILL)
    assert any("clone" in symbol for symbol in thread.kernel_stack)
    assert thread.syscall and thread.syscall.name in ("vfork", "clone")


def test_gone_is_absent_and_a_zombie_is_not(opened):
    process = subprocess.Popen(["true"])
    zombie = wait_until(lambda: zombie_of(process.pid, opened), "the zombie")
    assert (zombie.syscall, zombie.blocked_s) == (None, None)
    process.wait()
    assert threads.collect([process.pid], opened) == {}
    alone = threads.collect([os.getpid(), process.pid], opened)
    assert set(alone) == {os.getpid()}
    assert os.getpid() in {thread.tid for thread in alone[os.getpid()]}


def zombie_of(pid: int, opened: kernel.Kernel | None) -> ThreadFact | None:
    found = threads.collect([pid], opened)
    return found[pid][0] if pid in found and found[pid][0].state == "Z" else None


def test_two_thousand_threads(opened):
    source = """
import json, threading
threading.stack_size(65536)
stop = threading.Event()
for _ in range(2000): threading.Thread(target=stop.wait, daemon=True).start()
print(json.dumps({}), flush=True)
stop.wait()
"""
    with running(source) as script:
        wait_until(lambda: len(threads.collect([script.pid], opened)[script.pid]) == 2001, "2001 threads")
        before = time.process_time()
        found = threads.collect([script.pid], opened)[script.pid]
        cpu_s = time.process_time() - before
    assert len({thread.tid for thread in found}) == 2001
    assert cpu_s < 2


def test_a_target_in_its_own_pid_namespace(opened):
    source = "import json, signal; print(json.dumps({}), flush=True); signal.pause()"
    with running(source, "unshare", "--pid", "--fork", "--kill-child") as script:
        children = Path(f"/proc/{script.pid}/task/{script.pid}/children")
        pid = int(wait_until(lambda: children.read_text().split(), "unshare's child")[0])
        (thread,) = threads.collect([pid], opened)[pid]
        assert (thread.tid, thread.ns_tid) == (pid, 1)


@pytest.mark.parametrize("engine", MEANS.values(), ids=MEANS.keys())
def test_the_tool_in_a_pid_namespace_joins_no_strangers(engine):
    """In there pids are small numbers that on the node belong to others."""
    inside = """
import json, os, subprocess, sys
from stucktrace.collectors import kernel, syscalls, threads
target = subprocess.Popen(["sleep", "900"])
opened = kernel.open_kernel(sys.argv[1]).kernel
everyone = list(range(1, 400))
for _ in range(100_000):
    found = threads.collect(everyone, opened)
    if found[target.pid][0].name == "sleep" and found[target.pid][0].syscall: break
print(json.dumps({str(pid): [[t.tid, t.ns_tid, t.name] for t in facts] for pid, facts in found.items()}))
print(os.getpid(), target.pid)
target.kill()
"""
    out = subprocess.run(
        ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", inside, engine],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert out.returncode == 0, out.stderr
    found, own = out.stdout.splitlines()
    tool, target = map(int, own.split())
    seen = json.loads(found)
    assert set(seen) == {str(tool), str(target)}
    assert seen[str(target)] == [[target, target, "sleep"]]


def test_what_another_user_may_not_see_is_said():
    """Without capabilities the calls of another user's process stay unknown, and the reason is given."""
    inside = """
import json, sys
from stucktrace.collectors import threads
look = threads.look([int(sys.argv[1])], None)
(thread,) = look.facts[int(sys.argv[1])]
print(json.dumps([thread.state, thread.syscall, thread.switches is not None, [m.remedy for m in look.missing]]))
"""
    as_another_user = ("setpriv", "--reuid", "1234", "--regid", "1234", "--clear-groups")
    target = subprocess.Popen([*as_another_user, "sleep", "900"])
    try:
        wait_until(lambda: by_name(target.pid, None).get("sleep"), "the target has become sleep")
        wait_until(lambda: sleeping(target.pid, None), "it sleeps")
        out = subprocess.run(
            ["setpriv", "--bounding-set", "-all", "--no-new-privs", sys.executable, "-c", inside, str(target.pid)],
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    finally:
        target.kill()
        target.wait()
    assert out.returncode == 0, out.stderr
    state, syscall, switches, remedies = json.loads(out.stdout)
    assert (state, syscall, switches) == ("S", None, True)
    assert any("CAP_SYS_PTRACE" in remedy for remedy in remedies)
