"""Python stacks of live processes: joined with the kernel's threads, never at the target's expense."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from stucktrace.collectors import pyspy, python
from stucktrace.errors import CollectorError

from tests.harness import pythons

THREADS = """
import ctypes, sys, threading, time
lock = threading.Lock()
lock.acquire()
def waits_for_the_lock():
    with lock:
        pass
def sleeps():
    time.sleep(600)
for function in (waits_for_the_lock, sleeps):
    thread = threading.Thread(target=function)
    thread.daemon = True
    thread.start()
print("ready")
time.sleep(600)
"""

HOLDS_THE_GIL = """
import ctypes, threading, time
def holder():
    print("ready")
    ctypes.PyDLL(None).sleep(600)
thread = threading.Thread(target=holder)
thread.daemon = True
thread.start()
while True:
    time.sleep(0.01)
"""

LOCALS = """
import time
def login(user, password, url, body):
    print("ready")
    time.sleep(600)
login("ann", "hunter2", "amqp://guest:s3cret@broker//", "x" * 100000)
"""


def collect(pid, **options):
    options = {"native": False, "show_locals": False, **options}
    return python.collect(pythons.process_of(pid), pythons.threads_of(pid), **options)


def bare(function):
    return function.rpartition(".")[2]


@pytest.mark.parametrize("interpreter", pythons.interpreters(), ids=pythons.name_of)
def test_each_thread_has_its_own_frames(interpreter):
    with pythons.run(THREADS, python=interpreter) as target:
        pythons.until(lambda: pythons.quiet(target.pid, 3), "all three threads wait")
        fact = collect(target.pid)
        kernel = {thread.tid: thread for thread in pythons.threads_of(target.pid)}
    by_function = {bare(thread.frames[0].function): thread for thread in fact.threads}
    assert set(by_function) == {"waits_for_the_lock", "sleeps", "<module>"}
    assert kernel[by_function["waits_for_the_lock"].tid].syscall.name == "futex"
    assert kernel[by_function["sleeps"].tid].syscall.name in ("clock_nanosleep", "select", "pselect6")
    assert by_function["<module>"].tid == target.pid
    assert by_function["<module>"].frames[0].file == "<string>"
    assert fact.paused_at_most_s is None and fact.gil_readable
    assert not any(thread.owns_gil for thread in fact.threads)
    assert fact.version.startswith("3.")


@pytest.mark.parametrize("interpreter", pythons.interpreters(), ids=pythons.name_of)
def test_the_gils_holder_is_named(interpreter):
    with pythons.run(HOLDS_THE_GIL, python=interpreter) as target:
        pythons.until(lambda: pythons.settled(target.pid, "clock_nanosleep"), "the holder sleeps")
        pythons.until(lambda: pythons.in_call(target.pid, "futex"), "the main thread waits for the GIL")
        fact = collect(target.pid)
    owners = [thread for thread in fact.threads if thread.owns_gil]
    assert [bare(thread.frames[0].function) for thread in owners] == ["holder"]


@pytest.mark.parametrize("interpreter", pythons.interpreters(), ids=pythons.name_of)
def test_a_target_in_another_pid_namespace(interpreter):
    with pythons.run(THREADS, python=interpreter, before=("unshare", "--pid", "--fork", "--kill-child")) as outer:
        pid = int(Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()[0])
        pythons.until(lambda: pythons.quiet(pid, 3), "all three threads wait")
        fact = collect(pid)
        kernel = {thread.tid: thread for thread in pythons.threads_of(pid)}
    by_function = {bare(thread.frames[0].function): thread for thread in fact.threads}
    assert kernel[pid].ns_tid == 1
    assert kernel[by_function["waits_for_the_lock"].tid].syscall.name == "futex"
    assert by_function["<module>"].tid == pid


def test_locals_only_when_asked_for_and_without_secrets():
    with pythons.run(LOCALS) as target:
        pythons.until(lambda: pythons.quiet(target.pid, 1), "it sleeps")
        assert collect(target.pid).threads[0].frames[0].locals == ()
        shown = dict(collect(target.pid, show_locals=True).threads[0].frames[0].locals)
    assert shown["user"] == '"ann"' and shown["password"] == "(hidden)"
    assert shown["url"] == '"amqp://(hidden)@broker//"'
    assert len(shown["body"]) <= 200


def test_native_frames_tell_how_long_the_target_stood():
    with pythons.run(THREADS) as target:
        pythons.until(lambda: pythons.quiet(target.pid, 3), "all three threads wait")
        fact = collect(target.pid, native=True)
        assert fact.paused_at_most_s is not None and 0 < fact.paused_at_most_s < pyspy.NATIVE_DEADLINE_S + 2
        assert any(frame.native for thread in fact.threads for frame in thread.frames)
        pythons.until(lambda: set(pythons.states(target.pid)) == {"S"}, "it goes on")


def test_a_target_that_is_stopped_is_not_touched_by_native():
    with pythons.run(THREADS) as target:
        os.kill(target.pid, signal.SIGSTOP)
        pythons.until(lambda: set(pythons.states(target.pid)) == {"T"}, "it is stopped")
        with pytest.raises(CollectorError):
            collect(target.pid, native=True)
        assert set(pythons.states(target.pid)) == {"T"}


INSPECTS = """
import sys
from stucktrace.collectors import pyspy
print("ready")
while True:
    try:
        pyspy.dump(int(sys.argv[1]), native=sys.argv[2] == "native")
    except Exception:
        pass
"""


@pytest.mark.parametrize("mode", ["native", "nonblocking"])
def test_a_killed_inspection_leaves_nothing_behind(mode):
    """Killed at moments that shift through a whole dump; the target has to go on each time, and py-spy to end."""
    with pythons.run(THREADS) as target:
        pythons.until(lambda: pythons.quiet(target.pid, 3), "all three threads wait")
        for attempt in range(8):
            with pythons.run(INSPECTS, str(target.pid), mode) as inspector:
                started = os.times().elapsed
                pythons.until(lambda: os.times().elapsed - started > attempt * 0.004, "a moment passed")
                inspector.kill()
            pythons.until(lambda: not spies_on(target.pid), "py-spy ended")
            pythons.until(lambda: set(pythons.states(target.pid)) == {"S"}, "the target goes on")


def spies_on(pid):
    """py-spy processes that look at this pid."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words and words[0].endswith(b"py-spy") and str(pid).encode() in words:
                found.append(int(entry.name))
    return found


def script(path, text):
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_hanging_py_spy_is_killed_at_the_deadline(tmp_path, monkeypatch):
    hanging = script(tmp_path / "py-spy", f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    monkeypatch.setattr(pyspy, "program", lambda: hanging)
    with pytest.raises(CollectorError) as failure:
        pyspy.dump(os.getpid(), deadline_s=0.5)
    assert "time" in failure.value.missing.because and failure.value.missing.remedy
    spy = int((tmp_path / "pid").read_text())
    assert not Path(f"/proc/{spy}").exists()


def test_a_hanging_native_py_spy_is_killed_and_the_target_goes_on(tmp_path, monkeypatch):
    """It stopped the target as an attach does, and never came to resume it."""
    hanging = script(tmp_path / "py-spy", f"#!/bin/sh\necho $$ > {tmp_path}/pid\nkill -STOP $4\nexec sleep 600\n")
    monkeypatch.setattr(pyspy, "program", lambda: hanging)
    with pythons.run(THREADS) as target:
        pythons.until(lambda: pythons.quiet(target.pid, 3), "all three threads wait")
        with pytest.raises(CollectorError) as failure:
            pyspy.dump(target.pid, native=True, deadline_s=2)
        assert "in time" in failure.value.missing.because
        spy = int((tmp_path / "pid").read_text())
        assert not Path(f"/proc/{spy}").exists()
        pythons.until(lambda: set(pythons.states(target.pid)) == {"S"}, "the target goes on")


def test_an_endless_answer_is_cut(tmp_path, monkeypatch):
    endless = script(tmp_path / "py-spy", "#!/bin/sh\nexec yes\n")
    monkeypatch.setattr(pyspy, "program", lambda: endless)
    monkeypatch.setattr(pyspy, "MAX_OUTPUT_BYTES", 1 << 20)
    with pytest.raises(CollectorError):
        pyspy.dump(os.getpid(), deadline_s=30)


def test_a_failing_read_is_tried_again(tmp_path, monkeypatch):
    tries = tmp_path / "tries"
    failing = script(
        tmp_path / "py-spy", f"#!/bin/sh\necho once >> {tries}\necho 'Error: Failed to copy x' >&2\nexit 1\n"
    )
    monkeypatch.setattr(pyspy, "program", lambda: failing)
    with pytest.raises(CollectorError) as failure:
        pyspy.dump(os.getpid(), deadline_s=60)
    assert "Failed to copy" in failure.value.missing.because
    assert len(tries.read_text().split()) == pyspy.ATTEMPTS


def test_a_missing_py_spy_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(pyspy, "_from_package", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CollectorError) as failure:
        pyspy.dump(os.getpid())
    assert "pip install py-spy" in failure.value.missing.remedy


def test_what_is_not_python_has_no_stacks():
    child = subprocess.Popen(["sleep", "600"])
    try:
        pythons.until(lambda: pythons.settled(child.pid, "clock_nanosleep"), "sleep sleeps")
        with pytest.raises(CollectorError) as failure:
            collect(child.pid)
        assert "Python" in failure.value.missing.because
    finally:
        child.kill()
        child.wait()


def test_a_target_that_is_gone():
    with pythons.run(THREADS) as target:
        process, threads = pythons.process_of(target.pid), pythons.threads_of(target.pid)
    with pytest.raises(CollectorError):
        python.collect(process, threads, native=False, show_locals=False)
