"""What cannot be looked at, or only in part: one clear line with the remedy, the right exit status, the rest still said."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import command, elsewhere, kernel, targets

PF_KTHREAD = 0x00200000
WAITING = "import os, threading; os.write(int(os.environ['READY_FD']), b'ready\\n'); threading.Event().wait()"
SLEEP = "import os; os.write(int(os.environ['READY_FD']), b'ready\\n'); os.execvp('sleep', ['sleep', '1000'])"
BUSY = "import os; os.write(int(os.environ['READY_FD']), b'ready\\n')\nwhile True: pass"


@pytest.fixture
def waiting() -> Iterator[targets.Target]:
    with targets.start([sys.executable, "-c", WAITING]) as target:
        yield target


def refused(*args: str | int, status: int = 3) -> str:
    """The one line on stderr."""
    result = command.run("pid", *args)
    assert (result.status, result.stdout) == (status, ""), result
    assert result.stderr.startswith("stucktrace: ") and result.stderr.count("\n") == 1, result.stderr
    assert "; " in result.stderr, "no remedy"
    return result.stderr


@pytest.mark.parametrize("text", ["0", "abc", "1.5", "4194305", "99999999999999999999", "", "\x1b[2J"])
def test_what_is_no_pid_is_a_usage_error(text: str):
    line = refused(text, status=2)
    assert "\x1b" not in line


def test_a_negative_number_is_a_usage_error():
    assert command.run("pid", "-5").status == 2
    refused("--", "-5", status=2)


@pytest.mark.parametrize(
    "args",
    [
        ["--engine", "magic", "1"],
        ["--sample", "-1", "1"],
        ["--nonsense"],
        ["--stuck-after", "0", "1"],
        ["--json", "--dot", "1"],
    ],
)
def test_usage_errors(args: list[str]):
    refused(*args, status=2)


def test_no_such_process():
    child = subprocess.Popen(["true"])
    child.wait()
    assert f"no process {child.pid}" in refused(child.pid)


def test_nothing_is_looked_at_when_one_argument_makes_no_sense(waiting: targets.Target):
    refused(waiting.pid, "abc", status=2)


def test_a_kernel_thread():
    pid = next(
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and int((entry / "stat").read_text().rpartition(")")[2].split()[6]) & PF_KTHREAD
    )
    assert "kernel thread" in refused(pid)


def test_a_zombie():
    child = subprocess.Popen(["true"])
    try:
        kernel.wait_for_state(child.pid, "Z")
        assert "zombie" in refused(child.pid)
    finally:
        child.wait()


def test_a_thread_id_names_its_process():
    code = (
        "import os, threading; threading.Thread(target=threading.Event().wait, daemon=True).start();"
        "os.write(int(os.environ['READY_FD']), b'ready\\n'); threading.Event().wait()"
    )
    with targets.start([sys.executable, "-c", code]) as target:
        kernel.wait_until(lambda: len(kernel.tids(target.pid)) == 2)
        tid = max(kernel.tids(target.pid), key=lambda tid: tid != target.pid)
        assert f"process {target.pid}" in refused(tid)


def test_the_same_pid_twice_is_looked_at_once(waiting: targets.Target):
    result = command.run("pid", waiting.pid, waiting.pid, "--json")
    assert (result.status, result.stdout.count("\n")) == (0, 1)


def test_one_that_is_gone_does_not_hide_the_others(waiting: targets.Target):
    child = subprocess.Popen(["true"])
    child.wait()
    result = command.run("pid", child.pid, waiting.pid, "--json")
    assert (result.status, result.stdout.count("\n")) == (3, 1)
    assert json.loads(result.stdout)["process"]["pid"] == waiting.pid
    assert result.stderr.count("\n") == 1


def test_a_process_that_is_not_python():
    with targets.start([sys.executable, "-c", SLEEP]) as target:
        kernel.wait_for_call(target.pid, "clock_nanosleep", "nanosleep")
        report = command.explain(target.pid)
        assert report.verdict["class"] == "healthy"
        assert report["process"]["python"] is None
        assert report["threads"][0]["syscall"]["name"] in {"clock_nanosleep", "nanosleep"}


def test_a_process_that_ends_during_the_sampling_window():
    with targets.start([sys.executable, "-c", BUSY]) as target:
        inspector = subprocess.Popen(
            [command.COMMAND, "pid", str(target.pid), "--sample", "60"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            kernel.wait_for_call(inspector.pid, "poll", "ppoll")
            kernel.wait_until(lambda: kernel.call(inspector.pid))
            os.kill(target.pid, signal.SIGKILL)
            target.process.wait()
            out, err = inspector.communicate(timeout=120)
        finally:
            inspector.kill()
    assert (inspector.returncode, out, err.count("\n")) == (3, "", 1), (out, err)
    assert "ended" in err or "no process" in err


def test_escape_sequences_in_argv_and_thread_name():
    nasty = "\x1b]0;owned\x07\x1b[2J\u202e\n\r"
    code = "import ctypes; ctypes.CDLL(None).prctl(15, b'\\x1b[2Jx\\n', 0, 0, 0); " + WAITING
    with targets.start([sys.executable, "-c", code, nasty]) as target:
        for options in ([], ["-v"], ["--json"]):
            result = command.run("pid", target.pid, *options)
            assert result.status == 0
            for character in "\x1b\x07\r\u202e":
                assert character not in result.stdout + result.stderr


def test_two_thousand_threads():
    code = (
        "import os, threading; threading.stack_size(65536); gate = threading.Event()\n"
        "for _ in range(2000): threading.Thread(target=gate.wait, daemon=True).start()\n"
        "os.write(int(os.environ['READY_FD']), b'ready\\n'); gate.wait()"
    )
    with targets.start([sys.executable, "-c", code]) as target:
        kernel.wait_until(lambda: len(kernel.tids(target.pid)) == 2001)
        for engine in ("auto", "none"):
            report = command.explain(target.pid, "--engine", engine)
            assert len(report["threads"]) == 2001
            assert report.verdict["class"] == "healthy"


def test_twenty_thousand_fds():
    """As many of them as this machine gives to one process."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = 20_000 if hard == resource.RLIM_INFINITY or hard >= 21_000 else hard - 100
    assert count >= 19_000, f"the machine allows {hard} files"
    code = (
        f"import os, resource, threading; resource.setrlimit(resource.RLIMIT_NOFILE, ({count + 100}, {hard}))\n"
        f"held = [os.open('/dev/null', 0) for _ in range({count})]\n" + WAITING
    )
    with targets.start([sys.executable, "-c", code]) as target:
        for engine in ("auto", "none"):
            report = command.explain(target.pid, "--engine", engine)
            assert report["process"]["fd_count"] > count
            assert report.verdict["class"] == "healthy"


def test_py_spy_missing(waiting: targets.Target):
    with elsewhere.installed(pyspy=None) as environment:
        done = elsewhere.run(environment, "pid", waiting.pid, "--json")
    report = json.loads(done.stdout)
    assert done.returncode in {0, 4}
    assert report["threads"][0]["syscall"]["name"] == "futex"
    assert any("py-spy" in entry["because"] and entry["remedy"] for entry in report["seen"]["missing"])


@pytest.mark.parametrize(
    "script",
    ["#!/bin/sh\nsleep 1000\n", "#!/bin/sh\necho nonsense\n", "#!/bin/sh\necho 'Error: unsupported version of Python' >&2; exit 1\n",
     "#!/bin/sh\nyes\n", "#!/nonexistent\n"],
    ids=["hangs", "nonsense", "unknown interpreter", "endless output", "cannot run"],
)  # fmt: skip
def test_py_spy_fails(waiting: targets.Target, script: str):
    with elsewhere.installed(pyspy=script) as environment:
        done = elsewhere.run(environment, "pid", waiting.pid, "--json")
    report = json.loads(done.stdout)
    assert done.returncode in {0, 4}, done
    assert report["threads"][0]["syscall"]["name"] == "futex"
    assert any(entry["because"] and entry["remedy"] for entry in report["seen"]["missing"])


def test_another_users_process_without_any_capability(waiting: targets.Target):
    with elsewhere.installed() as environment:
        for engine in ("auto", "none"):
            done = elsewhere.run(environment, "pid", waiting.pid, "--engine", engine, prefix=elsewhere.UNPRIVILEGED)
            assert done.returncode in {3, 4}, done
            assert "CAP_" in done.stdout + done.stderr or "root" in done.stdout + done.stderr
        done = elsewhere.run(environment, "pid", waiting.pid, "--engine", "core", prefix=elsewhere.UNPRIVILEGED)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1), done


def test_ones_own_process_without_any_capability():
    with (
        elsewhere.installed() as environment,
        targets.start([elsewhere.PYTHON, "-c", WAITING], prefix=elsewhere.UNPRIVILEGED) as target,
    ):
        done = elsewhere.run(environment, "pid", target.pid, "--json", prefix=elsewhere.UNPRIVILEGED)
        assert done.returncode == 0, done
        report = json.loads(done.stdout)
        assert report["verdict"]["class"] == "healthy"
        assert report["threads"][0]["python"], report["seen"]


def test_hidepid(waiting: targets.Target):
    """Without the right to see the process at all it is as if it were not there; the line says what could hide it."""
    mount = ("unshare", "--mount", "sh", "-c", 'mount -t proc -o hidepid=invisible proc /proc && exec "$@"', "sh")
    with elsewhere.installed() as environment:
        done = elsewhere.run(environment, "pid", waiting.pid, prefix=(*mount, *elsewhere.UNPRIVILEGED))
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1), done
        assert "hidepid" in done.stderr
        done = elsewhere.run(environment, "pid", waiting.pid, "--json", prefix=mount)
        assert done.returncode == 0, done


def test_other_namespaces():
    code = "import os, threading; threading.Thread(target=threading.Event().wait, daemon=True).start(); " + WAITING
    with targets.start(
        [sys.executable, "-c", code], prefix=["unshare", "--pid", "--fork", "--mount-proc", "--net"]
    ) as target:
        (inner,) = kernel.wait_for_children(target.pid, 1)
        for engine in ("auto", "none"):
            report = command.explain(inner, "--engine", engine)
            assert report.verdict["class"] == "healthy"
            assert (report["process"]["pid"], report["process"]["ns_pid"]) == (inner, 1)
            assert all(thread["python"] for thread in report["threads"]), report["seen"]
            assert {thread["ns_tid"] for thread in report["threads"]} == {1, 2}


def test_a_stopped_and_a_traced_process(waiting: targets.Target):
    os.kill(waiting.pid, signal.SIGSTOP)
    kernel.wait_for_state(waiting.pid, "T")
    report = command.check(waiting.pid, "stopped")
    assert report.verdict["class"] == "stuck"
    os.kill(waiting.pid, signal.SIGCONT)
    kernel.wait_for_state(waiting.pid, "S")


def test_itself():
    """Its own parent, a Python process that is busy waiting for it, is no special case."""
    report = command.explain(os.getpid())
    assert report["process"]["pid"] == os.getpid()
    assert time.time() - report["time"] < 120
