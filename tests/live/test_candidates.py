"""From an init, shell or supervisor down to Python, and the list of all there are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from stucktrace.collectors import candidates
from stucktrace.errors import NoSuchProcess

from tests.harness import kernel, targets
from tests.harness.pythons import run

WAITING = "import os, threading; os.write(int(os.environ['READY_FD']), b'ready\\n'); threading.Event().wait()"
SLEEP = "import time; print('ready', flush=True); time.sleep(600)"


@pytest.mark.parametrize(
    "above",
    [[], ["tini", "--"], ["sh", "-c", '"$@"; true', "sh"], ["tini", "--", "sh", "-c", '"$@"; true', "sh"], ["setpriv", "--no-new-privs"]],
    ids=["nothing", "tini", "sh", "tini and sh", "exec"],
)  # fmt: skip
def test_what_stands_above_python(above: list[str]):
    with targets.start([*above, sys.executable, "-c", WAITING]) as target:
        (found,) = candidates.find_python(target.pid)
        assert found in {target.pid, *targets.descendants(target.pid)}
        assert candidates.is_python(found)


def test_supervisord_stands_for_its_programs(tmp_path: Path):
    program = f"command={sys.executable} -c 'import threading; threading.Event().wait()'"
    configuration = tmp_path / "supervisord.conf"
    configuration.write_text(
        f"[supervisord]\nnodaemon=true\nlogfile={tmp_path}/log\npidfile={tmp_path}/pid\nchildlogdir={tmp_path}\n"
        f"[program:one]\n{program}\n[program:two]\n{program}\n[program:other]\ncommand=sleep 600\n"
    )
    with targets.start(["supervisord", "-c", str(configuration)], ready=False) as supervisor:
        children = kernel.wait_for_children(supervisor.pid, 3)
        pythons = kernel.wait_until(
            lambda: (found := [pid for pid in children if "Event" in command(pid)])[1:] and found, "both programs"
        )
        kernel.wait_until(lambda: all(candidates.is_python(pid) for pid in pythons), "both are Python")
        assert sorted(candidates.find_python(supervisor.pid)) == sorted(pythons)


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def test_no_python_below():
    with targets.start(["sleep", "600"], ready=False) as target:
        kernel.wait_for_call(target.pid, "clock_nanosleep", "nanosleep")
        assert candidates.find_python(target.pid) == (target.pid,)
        assert not candidates.is_python(target.pid)


def test_a_shell_that_started_the_look_itself():
    look = "import os\nfrom stucktrace.collectors import candidates\nprint(candidates.find_python(os.getppid()), os.getppid())"
    shell = ["sh", "-c", '"$1" -c "$2" & worker=$!; "$1" -c "$3"; kill $worker; echo $worker', "sh", sys.executable]
    done = subprocess.run([*shell, "import time; time.sleep(600)", look], capture_output=True, text=True, timeout=120)
    found, worker = done.stdout.splitlines()
    # The one beside it may not have become Python yet; then the shell stands for itself.
    shown, shell_pid = found.rsplit(" ", 1)
    assert shown in (f"({worker},)", f"({shell_pid},)"), done


def test_a_renamed_interpreter_and_one_that_is_deleted(tmp_path: Path):
    renamed = tmp_path / "worker"
    renamed.write_bytes(Path("/usr/bin/python3").read_bytes())
    renamed.chmod(0o755)
    with run(SLEEP, python=str(renamed)) as child:
        assert candidates.find_python(child.pid) == (child.pid,)
        renamed.unlink()
        assert candidates.find_python(child.pid) == (child.pid,)


def test_nobody():
    with pytest.raises(NoSuchProcess):
        candidates.find_python(1 << 30)
    assert not candidates.is_python(1 << 30)


def test_the_list(tmp_path: Path):
    (tmp_path / "app.py").write_text("def application(environ, start): pass\n")
    command = [sys.executable, "-m", "gunicorn", "-b", "127.0.0.1:0", "-w", "2", "--no-control-socket", "app"]
    with targets.start(command, ready=False, cwd=tmp_path) as master, run(SLEEP) as plain:
        kernel.wait_until(lambda: master.log().count("Booting worker") == 2, "two workers")
        workers = kernel.wait_for_children(master.pid, 2)
        listed = kernel.wait_until(
            lambda: (
                (found := {one.pid: one for one in candidates.list_candidates()}).keys() >= {master.pid, *workers}
                and found[master.pid].kind == "gunicorn-master"
                and found
            ),
            "the master and its workers",
        )
        assert listed[master.pid].children == 2
        assert {listed[pid].kind for pid in workers} == {"gunicorn-worker"}
        assert listed[plain.pid].kind == "python" and "sleep(600)" in listed[plain.pid].command
        assert os.getpid() not in listed
        # Masters stand first: one line of them is what a user looks for.
        kinds = [one.kind in ("gunicorn-master", "celery-main") for one in candidates.list_candidates()]
        assert kinds == sorted(kinds, reverse=True)
        for one in listed.values():
            assert str(one.pid) in str(one)
