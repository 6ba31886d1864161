"""Roles and limits of real gunicorn and Celery processes, with and without a process title."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from stucktrace.collectors import candidates, process
from stucktrace.collectors.workers import EMBEDDED, HIDDEN
from stucktrace.facts import ProcessFact, WorkerFact

from tests.harness import kernel, targets

UNTITLED = str(targets.TARGETS / "untitled")
APP = """
import os
def application(environ, start_response):
    start_response("200 OK", [])
    return [b"done"]
"""
GUNICORN = [sys.executable, "-m", "gunicorn", "-b", "127.0.0.1:0", "--no-control-socket"]
TITLES = pytest.mark.parametrize("titled", [True, False], ids=["titled", "untitled"])


@contextmanager
def gunicorn(
    folder: Path,
    *options: str,
    titled: bool,
    env: Mapping[str, str] = {},
    workers: int = 1,
    command: list[str] = GUNICORN,
) -> Iterator[tuple[int, list[int]]]:
    """(master, workers) once each worker has its heartbeat."""
    (folder / "app.py").write_text(APP)
    search = {} if titled else {"PYTHONPATH": UNTITLED}
    words = [*command, *options] if command is not GUNICORN else [*command, *options, "app"]
    with targets.start(words, ready=False, cwd=folder, env={**env, **search}) as master:
        kernel.wait_until(lambda: master.log().count("Booting worker") >= workers, "workers booted")
        pids = kernel.wait_for_children(master.pid, workers)
        for pid in pids:
            kernel.wait_until(lambda: worker_of(pid).last_notify_s is not None, f"a heartbeat of {pid}")
            if titled:
                kernel.wait_until(lambda: title(pid).startswith("gunicorn: worker"), "its title")
        yield master.pid, pids


def title(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()


def worker_of(pid: int) -> WorkerFact:
    return process.read_process(pid).worker


@TITLES
def test_a_sync_worker(tmp_path, titled):
    with gunicorn(tmp_path, "-w", "2", "--timeout", "77", titled=titled, workers=2) as (master, pids):
        fact = worker_of(master)
        assert (fact.kind, fact.worker_class, fact.timeout_s) == ("gunicorn-master", "sync", 77)
        assert (fact.concurrency, fact.threads, fact.last_notify_s) == (2, 1, None)
        for pid in pids:
            fact = worker_of(pid)
            assert (fact.kind, fact.worker_class, fact.timeout_s) == ("gunicorn-worker", "sync", 77)
            assert fact.timeout_source == "command line"
            assert fact.last_notify_s is not None and -1 <= fact.last_notify_s < 77
            assert fact.seconds_to_kill is not None and 0 < fact.seconds_to_kill <= 78
        assert sorted(candidates.children_of(process.read_process(master))) == pids


@TITLES
def test_options_from_the_environment(tmp_path, titled):
    env = {"GUNICORN_CMD_ARGS": "--timeout 55 --threads=3", "WEB_CONCURRENCY": "2"}
    with gunicorn(tmp_path, titled=titled, env=env, workers=2) as (_, pids):
        fact = worker_of(pids[0])
        assert (fact.worker_class, fact.threads, fact.concurrency) == ("gthread", 3, 2)
        assert (fact.timeout_s, fact.timeout_source) == (55, "GUNICORN_CMD_ARGS")


@TITLES
@pytest.mark.parametrize(
    "options", [[], ["-c", "gunicorn.conf.py"], ["-c", "python:gunicorn.conf"]], ids=["found", "named", "module"]
)
def test_a_config_file(tmp_path, titled, options):
    folder = tmp_path / "gunicorn"
    if options[-1:] == ["python:gunicorn.conf"]:
        # A package of this name would hide gunicorn itself.
        folder, options = tmp_path, ["-c", "python:settings"]
        (tmp_path / "settings.py").write_text("timeout = 66\nworker_class = 'gthread'\nthreads = 4\n")
    else:
        folder.mkdir()
        (folder / "gunicorn.conf.py").write_text("timeout = 66\nworker_class = 'gthread'\nthreads = 4\n")
    with gunicorn(folder, *options, titled=titled) as (_, (pid,)):
        fact = worker_of(pid)
        assert (fact.worker_class, fact.threads, fact.timeout_s) == ("gthread", 4, 66)
        assert fact.timeout_source.endswith(".py")


@TITLES
def test_a_computed_setting_is_not_known(tmp_path, titled):
    (tmp_path / "gunicorn.conf.py").write_text("import os\ntimeout = int(os.environ.get('NEVER_SET', 45))\n")
    with gunicorn(tmp_path, titled=titled) as (_, (pid,)):
        fact = worker_of(pid)
        assert (fact.timeout_s, fact.seconds_to_kill) == (None, None)
        assert fact.timeout_source == str(tmp_path / "gunicorn.conf.py")


@TITLES
def test_a_timeout_of_zero(tmp_path, titled):
    with gunicorn(tmp_path, "--timeout", "0", titled=titled) as (_, (pid,)):
        fact = worker_of(pid)
        assert (fact.timeout_s, fact.seconds_to_kill) == (0, None)


@TITLES
def test_an_application_that_starts_gunicorn_itself(tmp_path, titled):
    """Its options are code: a title, or the heartbeat file that master and worker share, is all that shows."""
    (tmp_path / "serve.py").write_text("""
from gunicorn.app.base import BaseApplication
import app
class Server(BaseApplication):
    def load_config(self):
        self.cfg.set("bind", "127.0.0.1:0")
        self.cfg.set("timeout", 99)
        self.cfg.set("control_socket_disable", True) if "control_socket_disable" in self.cfg.settings else None
    def load(self):
        return app.application
Server().run()
""")
    with gunicorn(tmp_path, titled=titled, command=[sys.executable, "serve.py"]) as (master, (pid,)):
        assert worker_of(master).kind == "gunicorn-master"
        assert (worker_of(pid).kind, worker_of(pid).timeout_s) == ("gunicorn-worker", None)
        assert worker_of(pid).timeout_source == (HIDDEN if titled else EMBEDDED)
        assert candidates.children_of(process.read_process(master)) == (pid,)


@TITLES
def test_a_workers_own_fork_is_no_worker(tmp_path, titled):
    with gunicorn(tmp_path, titled=titled) as (_, (pid,)):
        assert worker_of(pid).kind == "gunicorn-worker"
    forks = APP + "if os.fork() == 0:\n    import time; time.sleep(600)\n"
    (tmp_path / "forks.py").write_text(forks)
    with gunicorn(tmp_path, "forks:application", titled=titled, command=GUNICORN) as (master, pids):
        (worker,) = pids
        (fork,) = kernel.wait_for_children(worker, 1)
        assert (worker_of(worker).kind, worker_of(fork).kind) == ("gunicorn-worker", "python")
        assert worker_of(fork).seconds_to_kill is None
        assert candidates.children_of(process.read_process(master)) == (worker,)


@TITLES
def test_what_else_a_master_forks_is_no_worker(tmp_path, titled):
    hook = "import os, time\ndef when_ready(server):\n    if os.fork() == 0:\n        time.sleep(600)\n"
    (tmp_path / "gunicorn.conf.py").write_text(hook)
    (tmp_path / "app.py").write_text(APP)
    search = {} if titled else {"PYTHONPATH": UNTITLED}
    with targets.start([*GUNICORN, "app"], ready=False, cwd=tmp_path, env=search) as master:
        kernel.wait_until(lambda: "Booting worker" in master.log(), "the worker boots")
        pids = kernel.wait_for_children(master.pid, 2)
        kernel.wait_until(lambda: any(worker_of(pid).last_notify_s is not None for pid in pids), "a heartbeat")
        # The fork keeps its master's title.
        kinds = {pid: worker_of(pid).kind for pid in pids}
        assert sorted(kinds.values()) == ["gunicorn-worker", "python"], kinds
        (worker,) = candidates.children_of(process.read_process(master.pid))
        assert kinds[worker] == "gunicorn-worker"


@TITLES
@pytest.mark.parametrize("options", [["-c", "2"], ["-P", "solo"]], ids=["prefork", "solo"])
def test_celery(tmp_path, titled, options):
    (tmp_path / "proj.py").write_text("import celery\napp = celery.Celery(broker='memory://')\n")
    search = {} if titled else {"PYTHONPATH": UNTITLED}
    limits = ["--soft-time-limit", "55", "--time-limit=66"]
    command = [sys.executable, "-m", "celery", "-A", "proj", "worker", "-l", "info", *options, *limits]
    with targets.start(command, ready=False, cwd=tmp_path, env=search) as main:
        kernel.wait_until(lambda: " ready." in main.log(), "the worker is ready")
        wanted = 2 if options[0] == "-c" else 0
        children = kernel.wait_for_children(main.pid, wanted)
        fact = process.read_process(main.pid)
        assert title(main.pid).startswith("[celeryd") is titled
        worker = fact.worker
        assert (worker.kind, worker.pool) == ("celery-main", "prefork" if wanted else "solo")
        assert (worker.timeout_s, worker.hard_timeout_s) == (55, 66)
        assert worker.concurrency == (2 if wanted else None)
        assert sorted(candidates.children_of(fact)) == children
        for pid in children:
            child = worker_of(pid)
            assert (child.kind, child.pool, child.timeout_s, child.hard_timeout_s) == (
                "celery-child",
                "prefork",
                55,
                66,
            )


@TITLES
def test_beat(tmp_path, titled):
    (tmp_path / "proj.py").write_text("import celery\napp = celery.Celery(broker='memory://')\n")
    search = {} if titled else {"PYTHONPATH": UNTITLED}
    command = [sys.executable, "-m", "celery", "-A", "proj", "beat", "-l", "info", "-s", str(tmp_path / "schedule")]
    with targets.start(command, ready=False, cwd=tmp_path, env=search) as beat:
        kernel.wait_until(lambda: "beat: Starting" in beat.log(), "beat runs")
        fact: ProcessFact = process.read_process(beat.pid)
        assert fact.worker.kind == "celery-beat"
        assert title(beat.pid).startswith("[celery beat") is titled


@TITLES
def test_a_beat_inside_a_worker(tmp_path, titled):
    (tmp_path / "proj.py").write_text("import celery\napp = celery.Celery(broker='memory://')\n")
    search = {} if titled else {"PYTHONPATH": UNTITLED}
    command = [sys.executable, "-m", "celery", "-A", "proj", "worker", "-B", "-l", "info", "-c", "2"]
    command += ["-s", str(tmp_path / "schedule")]
    with targets.start(command, ready=False, cwd=tmp_path, env=search) as main:
        kernel.wait_until(lambda: " ready." in main.log() and "beat: Starting" in main.log(), "worker and beat run")
        pids = kernel.wait_for_children(main.pid, 3)
        kinds = [worker_of(pid).kind for pid in pids]
        assert sorted(kinds) == ["celery-beat", "celery-child", "celery-child"], kinds
        assert pids[kinds.index("celery-beat")] not in candidates.children_of(process.read_process(main.pid))


def test_the_environment_behind_a_title_never_leaves(tmp_path):
    with gunicorn(tmp_path, titled=True, env={"SECRET_KEY": "hunter2"}) as (_, (pid,)):
        assert not any(Path(f"/proc/{pid}/environ").read_bytes().strip(b"\0") for _ in range(1)) or os.environ.get(
            "SPT_NOENV"
        )
        assert "hunter2" not in repr(process.read_process(pid))
