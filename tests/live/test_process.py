"""A process as a whole: identity, namespaces, foreign roots, and targets that end while they are looked at."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stucktrace.collectors import candidates, epoll, file_locks, openfiles, pipes, process, procfs, relatives
from stucktrace.errors import CannotInspect, CollectorError, NoSuchProcess, NotPermitted

from tests.harness import elsewhere, kernel, targets
from tests.harness.pythons import run

SLEEP = "import time; print('ready', flush=True); time.sleep(600)"
SECRET = "postgres://user:hunter2@host/db"


def test_what_is_known_of_one(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", SECRET)
    with run(SLEEP) as child:
        fact = process.read_process(child.pid)
        assert (fact.pid, fact.ns_pid, fact.ppid, fact.uid) == (child.pid, child.pid, os.getpid(), 0)
        assert fact.state in "SR" and fact.is_python and fact.python_version.startswith("3.")
        assert fact.argv[0] == sys.executable and fact.argv[-1] == SLEEP
        assert fact.fd_count == len(os.listdir(f"/proc/{child.pid}/fd"))
        assert fact.packages["pytest"] == pytest.__version__
        assert 0 <= fact.age_s < 600 and (fact.rss_bytes or 0) > 1 << 20
        assert fact.worker.kind == "python" and not fact.frozen and fact.tracer_pid == 0
        assert process.still_same(fact)
        assert "hunter2" not in repr(fact)


def test_threads_are_no_processes():
    with run("import threading; threading.Thread(target=threading.Event().wait).start(); print('ready')") as child:
        tid = max(procfs.thread_ids(child.pid))
        with pytest.raises(NoSuchProcess) as caught:
            process.read_process(tid)
        assert caught.value.remedy == f"stucktrace pid {child.pid}"


def test_a_zombie_is_a_fact():
    child = subprocess.Popen(["true"])
    try:
        kernel.wait_for_state(child.pid, "Z")
        fact = process.read_process(child.pid)
        assert (fact.state, fact.argv, fact.is_python) == ("Z", (), False)
        assert process.still_same(fact)
    finally:
        child.wait()
    assert not process.still_same(fact)


def test_a_killed_process_is_not_the_same_any_more():
    with run(SLEEP) as child:
        fact = process.read_process(child.pid)
        os.kill(child.pid, signal.SIGKILL)
        kernel.wait_for_state(child.pid, "Z")
        assert not process.still_same(fact)


def test_stopped_and_traced_processes():
    with run(SLEEP) as child:
        os.kill(child.pid, signal.SIGSTOP)
        kernel.wait_for_state(child.pid, "T")
        fact = process.read_process(child.pid)
        assert fact.state == "T" and process.still_same(fact)


def test_another_pid_namespace():
    with run(SLEEP, before=("unshare", "--pid", "--fork", "--kill-child")) as child:
        (inner,) = kernel.wait_for_children(child.pid, 1)
        fact = process.read_process(inner)
        assert (fact.pid, fact.ns_pid) == (inner, 1)
        assert fact.is_python and fact.packages["pytest"] == pytest.__version__
        assert candidates.find_python(child.pid) == (inner,)


ROOTED = """
set -e
mount --bind / "$0"
exec chroot "$0" "$@"
"""


@pytest.mark.parametrize("tree", ["bind mount", *map(str, sorted(Path("/tmp/trees").glob("*/usr/bin/python3.[0-9]*")))])
def test_another_root(tree: str, tmp_path: Path):
    """A chroot in its own mount namespace: the kernel names its files from above its root, or from the inside."""
    if tree == "bind mount":
        before = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "sh", "-c", ROOTED, str(tmp_path)]
        python = sys.executable
    else:
        before = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "chroot", str(Path(tree).parents[2])]
        python = f"/usr/bin/{Path(tree).name}"
    with run(SLEEP, python=python, before=before) as child:
        (inner,) = kernel.wait_for_children(child.pid, 1)
        fact = process.read_process(inner)
        assert fact.ns_pid == 1 and fact.is_python and fact.python_version.startswith("3.")
        if tree == "bind mount":
            assert fact.packages["pytest"] == pytest.__version__
        else:
            # Nothing of ours is taken for the tree's.
            assert "pytest" not in fact.packages


def test_another_users_process_without_the_capability():
    """What everybody may read is said; what may not be read is not made up."""
    code = """
from stucktrace.collectors import openfiles, process
from stucktrace.errors import CollectorError
fact = process.read_process(PID)
assert fact.fd_count is None and fact.argv and fact.is_python, fact
assert fact.packages == {} and fact.worker.timeout_s is None, fact
try:
    openfiles.read_fds(PID)
except CollectorError as error:
    assert "CAP_SYS_PTRACE" in error.missing.remedy
else:
    raise AssertionError("read")
"""
    with run(SLEEP) as child, elsewhere.installed() as environment:
        done = subprocess.run(
            [*elsewhere.UNPRIVILEGED, elsewhere.PYTHON, "-c", code.replace("PID", str(child.pid))],
            env=environment, capture_output=True, text=True, cwd="/", timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def test_hidden_processes():
    """/proc with hidepid: another user's process does not exist for us, and the message says why that may be."""
    code = """
from stucktrace.collectors import process
from stucktrace.errors import NoSuchProcess
try:
    process.read_process(PID)
except NoSuchProcess as error:
    assert "hidepid" in error.message and "root" in error.remedy, (error.message, error.remedy)
else:
    raise AssertionError("seen")
"""
    with run(SLEEP) as child, elsewhere.installed() as environment:
        script = 'mount -t proc -o hidepid=invisible proc /proc && exec "$@"'
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, "sh", *elsewhere.UNPRIVILEGED, elsewhere.PYTHON, "-c",
             code.replace("PID", str(child.pid))],
            env=environment, capture_output=True, text=True, cwd="/", timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def test_twenty_thousand_fds_are_read_at_once():
    code = """
import os, resource, time
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
null = os.open("/dev/null", os.O_RDONLY)
for _ in range(min(most, 20_100) - 100): os.dup(null)
print("ready", flush=True)
time.sleep(600)
"""
    with run(code) as child:
        fact = process.read_process(child.pid)
        began = time.process_time()
        files = openfiles.read_fds(child.pid)
        assert time.process_time() - began < 5
        assert files.complete and len(files.links) == fact.fd_count and len(files.links) > 1000


def test_targets_that_end_while_they_are_looked_at():
    """At any moment of a process's end, every collector answers or raises what it declares."""
    declared = (CannotInspect, CollectorError)
    chance = random.Random(4711)
    seen = ended = 0
    for _ in range(120):
        child = subprocess.Popen(
            [sys.executable, "-S", "-c", "import os; os.pipe(); os.fork(); input()"], stdin=subprocess.PIPE
        )
        try:
            time.sleep(chance.uniform(0, 0.04))
            os.kill(child.pid, signal.SIGKILL if chance.random() < 0.9 else signal.SIGSTOP)
            try:
                fact = process.read_process(child.pid)
                seen += 1
                relatives.collect(fact)
                candidates.find_python(child.pid)
                candidates.children_of(fact)
                files = openfiles.read_fds(child.pid)
                epoll.collect(fact, files)
                pipes.collect(fact, files)
                file_locks.collect(fact, ())
                process.still_same(fact)
            except declared:
                ended += 1
        finally:
            for pid in [child.pid, *targets.descendants(child.pid)]:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            child.communicate()
    assert seen


def test_a_pid_that_was_taken_by_another():
    """The start time tells: no pid is the same process for that alone."""
    from dataclasses import replace

    fact = process.read_process(os.getpid())
    assert process.still_same(fact)
    assert not process.still_same(replace(fact, start_time=fact.start_time - 1))


def test_not_permitted_is_not_gone():
    error = procfs.explained(1, PermissionError(13, "Permission denied"))
    assert isinstance(error, NotPermitted) and error.remedy
