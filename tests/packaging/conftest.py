"""A worker that hangs in an empty system, and what the command that was installed there has to say."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator, Sequence

from tests.harness import command, kernel, targets
from tests.harness.roots import Root


@contextlib.contextmanager
def hung(root: Root) -> Iterator[int]:
    """The pid of this tree's own Python in a deadlock of two locks."""
    root.copy_in(targets.TARGETS, "/opt/deadlock")
    program = ("/usr/bin/python3", "-u", "-B", "/opt/deadlock/deadlocks.py", "crossed_locks")
    started = root.command(*program, env={"READY_FD": "1"})
    with subprocess.Popen(started, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            pid, *tids = map(int, process.stdout.readline().split())
            assert pid == process.pid and len(tids) == 2
            for tid in tids:
                kernel.wait_for_call(pid, "futex", tid=tid)
                kernel.wait_until(lambda tid=tid: kernel.asleep_s(pid, tid) >= 1.0, "a second in it")  # type: ignore[misc]
            yield pid
        finally:
            process.kill()


def explains(root: Root, pid: int, *prefix: str, program: Sequence[str] = ("stucktrace",), env: dict[str, str]) -> None:
    """The command in the tree proves the deadlock, by BPF and with Python stacks."""
    done = root.attempt(*prefix, *program, "pid", str(pid), "--json", env=env)
    assert (done.returncode, done.stderr) == (1, ""), done
    report = command.Report(json.loads(done.stdout))
    command.validator().validate(report)
    assert (report.code, report.confidence) == ("deadlock", "proven"), report.text()
    assert report["seen"]["engine"] == "core" and report["process"]["python"]["version"].startswith("3.11")
    frames = [frame["function"] for thread in report["threads"] for frame in thread["python"]]
    assert {name.rpartition(".")[2] for name in frames} >= {"forwards", "backwards"}, frames


def nothing_is_missing(root: Root, *prefix: str, program: Sequence[str] = ("stucktrace",), env: dict[str, str]) -> None:
    """`stucktrace doctor` can do all that it needs."""
    done = root.attempt(*prefix, *program, "doctor", "--json", env=env)
    found = json.loads(done.stdout)
    lacking = [one for one in found["abilities"] if one["needed"] and not one["works"]]
    assert (done.returncode, done.stderr, lacking) == (0, "", []), done
