"""Parent, children and siblings of forks, of strangers under one shell, and of orphans."""

from __future__ import annotations

import sys

from stucktrace.collectors import process, procfs, relatives
from stucktrace.facts import Relative

from tests.harness import kernel, targets
from tests.harness.pythons import run

FORKS = """
import os, sys, threading, time
threading.Thread(target=threading.Event().wait, name="helper", daemon=True).start()
pids = []
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        time.sleep(600)
    pids.append(pid)
print("ready", *pids, flush=True)
time.sleep(600)
"""
WAITING = "import os, threading; os.write(int(os.environ['READY_FD']), b'ready\\n'); threading.Event().wait()"


def named(found: tuple[Relative, ...], relation: str) -> dict[int, Relative]:
    return {one.pid: one for one in found if one.relation == relation}


def test_a_family_of_forks():
    with run(FORKS) as parent:
        pids = set(map(int, parent.words))
        found = relatives.collect(process.read_process(parent.pid))
        assert named(found, "child").keys() == pids
        assert all(one.alive and one.kind == "python" and not one.threads for one in named(found, "child").values())
        first, *others = sorted(pids)
        found = relatives.collect(process.read_process(first))
        ((_, above),) = named(found, "parent").items()
        assert above.pid == parent.pid and above.same_program and above.start_time
        assert len(above.threads) == 2 and parent.pid in dict(above.threads)
        assert named(found, "sibling").keys() == set(others)


def test_what_is_shared_within_a_look_is_the_same():
    with run(FORKS) as parent:
        known: dict[int, Relative | None] = {}
        for pid in (parent.pid, *map(int, parent.words)):
            fact = process.read_process(pid)
            alone = [(one.pid, one.relation, one.same_program, bool(one.threads)) for one in relatives.collect(fact)]
            shared = relatives.collect(fact, known)
            assert [(one.pid, one.relation, one.same_program, bool(one.threads)) for one in shared] == alone


def test_strangers_under_one_shell_are_no_siblings():
    command = f'{sys.executable} -c "import time; time.sleep(601)" & "$@"; true'
    with targets.start(["sh", "-c", command, "sh", sys.executable, "-c", WAITING]) as shell:
        kernel.wait_for_children(shell.pid, 2)
        (target,) = [
            pid for pid in kernel.children(shell.pid) if "READY_FD" in " ".join(process.read_process(pid).argv)
        ]
        found = relatives.collect(process.read_process(target))
        ((_, above),) = named(found, "parent").items()
        assert not above.same_program and above.kind == "other"
        assert not named(found, "sibling")


def test_a_zombie_child_is_not_alive():
    code = (
        "import os, time\npid = os.fork()\nif pid == 0: os._exit(0)\nprint('ready', pid, flush=True); time.sleep(600)"
    )
    with run(code) as parent:
        pid = int(parent.words[0])
        kernel.wait_for_state(pid, "Z")
        found = named(relatives.collect(process.read_process(parent.pid)), "child")
        assert not found[pid].alive and found[pid].state == "Z"


def test_orphans_of_one_parent_are_siblings():
    """Their parent is gone, and whoever reaps them has other children too: the same arguments tell."""
    code = """
import os, sys, time
reader, writer = os.pipe()
if os.fork() == 0:
    pids = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            os.close(writer)
            time.sleep(600)
        pids.append(pid)
    os.write(writer, " ".join(map(str, pids)).encode())
    os._exit(0)
os.wait()
print("ready", os.read(reader, 100).decode(), flush=True)
time.sleep(600)
"""
    with run(code) as parent:
        first, second = map(int, parent.words)
        kernel.wait_until(
            lambda: kernel.stat(first)[1] != parent.pid and kernel.stat(first)[1] == kernel.stat(second)[1],
            "a new parent",
        )
        found = relatives.collect(process.read_process(first))
        assert second in named(found, "sibling")


THREADED = """
import os, subprocess, threading, time
threading.stack_size(65536)
for _ in range(600):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
started = []
def start():
    started.append(subprocess.Popen(["sleep", "600"]).pid)
    threading.Event().wait()
threading.Thread(target=start, daemon=True).start()
while not started:
    time.sleep(0.01)
print("ready", *started, flush=True)
time.sleep(600)
"""


def test_the_children_of_one_thread_among_hundreds():
    with run(THREADED) as parent:
        (child,) = map(int, parent.words)
        assert procfs.children(parent.pid) == [child]
        assert procfs._children_by_parent(parent.pid, procfs.all_pids()) == [child]


def test_threads_that_come_and_go_hide_no_child():
    churn = "import threading\ndef churn():\n    while True:\n        threading.Thread(target=int).start()\n"
    program = churn + FORKS.replace("print(", "threading.Thread(target=churn, daemon=True).start()\nprint(")
    with run(program) as parent:
        pids = sorted(map(int, parent.words))
        assert all(procfs.children(parent.pid) == pids for _ in range(200))
