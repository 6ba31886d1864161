"""gunicorn's settings: which of command line, environment, file and default wins, and what is not guessed."""

from __future__ import annotations

import ctypes
import os

import pytest
from stucktrace.collectors import gunicorn_config
from stucktrace.collectors.gunicorn_config import Setting, parse


def read(folder, arguments: str = "app:app", environ: dict[str, str] | None = {}):
    return gunicorn_config.read(os.getpid(), arguments.split(), environ, str(folder))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("timeout = 90", {"timeout": 90}),
        ("timeout = '90'\nworkers = 4", {"timeout": "90", "workers": 4}),
        ("timeout: int = 90", {"timeout": 90}),
        ("timeout = 60 * 5 + 1", {"timeout": 301}),
        ("timeout = 5\ntimeout = 6", {"timeout": 6}),
        ("timeout = graceful_timeout = 7", {"timeout": 7}),
        ("import os\ntimeout = int(os.getenv('T', 90))", {"timeout": None}),
        ("timeout = 30\nif True:\n    timeout = 90", {"timeout": None}),
        ("try:\n    from local import timeout\nexcept ImportError:\n    pass", {"timeout": None}),
        ("timeout = 30\ntimeout += 5", {"timeout": None}),
        ("timeout, workers = 30, 4", {"timeout": None, "workers": None}),
        ("for timeout in (1, 2): pass", {"timeout": None}),
        ("workers = multiprocessing.cpu_count() * 2 + 1", {"workers": None}),
        ("timeout = 1 // 0", {"timeout": None}),
        ("timeout = 'a' * 1000000000000", {"timeout": None}),
        ("from base import *\ntimeout = 9", {"timeout": 9, "worker_class": None, "workers": None, "threads": None}),
        ("def post_fork(server, worker):\n    timeout = 5", {}),
        ("bind = '0.0.0.0:8000'", {}),
        ("timeout: int", {}),
        ("", {}),
        ("this is no python", None),
        ("\0", None),
        ("x = " + "-" * 100_000 + "1", None),
    ],
)
def test_config_files(text, found):
    assert parse(text.encode()) == found


def test_defaults(tmp_path):
    found = read(tmp_path)
    assert found["timeout"] == Setting(30, "default")
    assert found["worker_class"] == Setting("sync", "default")
    assert found["workers"] == Setting(1, "default")


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(tmp_path):
    file = tmp_path / "gunicorn.conf.py"
    file.write_text("timeout = 1\nworkers = 1\nthreads = 1\n")
    environ = {"GUNICORN_CMD_ARGS": "--timeout 2 --workers 2", "WEB_CONCURRENCY": "9"}
    found = read(tmp_path, "-t 3 app:app", environ)
    assert found["timeout"] == Setting("3", "command line")
    assert found["workers"] == Setting("2", "GUNICORN_CMD_ARGS")
    assert found["threads"] == Setting(1, str(file))
    assert found["worker_class"] == Setting("sync", "default")
    assert read("/", "app:app", {"WEB_CONCURRENCY": "9"})["workers"] == Setting("9", "WEB_CONCURRENCY")


def test_a_timeout_of_zero(tmp_path):
    assert read(tmp_path, "--timeout 0 app:app")["timeout"] == Setting("0", "command line")


@pytest.mark.parametrize("name", ["prod.py", "file:prod.py", "conf/../prod.py"])
def test_a_named_file(tmp_path, name):
    (tmp_path / "conf").mkdir()
    (tmp_path / "prod.py").write_text("timeout = 41")
    assert read(tmp_path, f"-c {name} app:app")["timeout"] == Setting(41, str(tmp_path / "prod.py"))
    assert read(tmp_path, "app:app", {"GUNICORN_CMD_ARGS": f"--config={name}"})["timeout"].value == 41


def test_a_computed_setting_is_not_the_default(tmp_path):
    file = tmp_path / "gunicorn.conf.py"
    file.write_text("import os\ntimeout = int(os.environ['T'])")
    assert read(tmp_path)["timeout"] == Setting(None, str(file))
    assert read(tmp_path, "--timeout 5 app:app")["timeout"] == Setting("5", "command line")


@pytest.mark.parametrize("content", [None, "not python at all"])
def test_a_named_file_that_cannot_be_read_may_set_everything(tmp_path, content):
    if content:
        (tmp_path / "lost.py").write_text(content)
    found = read(tmp_path, "-c lost.py -w 3 app:app")
    assert found["timeout"].value is None and "lost.py" in found["timeout"].source
    assert found["workers"] == Setting("3", "command line")


def test_a_module(tmp_path):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "prod.py").write_text("timeout = 42")
    assert read(tmp_path, "-c python:conf.prod app:app")["timeout"].value == 42
    lost = read(tmp_path, "-c python:elsewhere.prod app:app")["timeout"]
    assert lost == Setting(None, "python:elsewhere.prod")


def test_a_file_beside_where_chdir_led(tmp_path):
    """After --chdir the working directory is another than the one in which the file was named."""
    app = tmp_path / "app"
    app.mkdir()
    (tmp_path / "prod.py").write_text("timeout = 43")
    (app / "prod.py").write_text("timeout = 44")
    arguments = f"--chdir {app} -c prod.py app:app"
    assert read(app, arguments, {"PWD": str(tmp_path)})["timeout"].value == 43
    assert read(app, arguments)["timeout"].value is None


def test_an_environment_that_cannot_be_read(tmp_path):
    found = read(tmp_path, "-t 5 app:app", None)
    assert found["timeout"] == Setting("5", "command line")
    assert found["workers"] == Setting(None, "environment")


def test_no_link_leads_out_and_no_pipe_holds_us(tmp_path):
    os.mkfifo(tmp_path / "gunicorn.conf.py")
    assert read(tmp_path)["timeout"].value is None


def test_a_pipe_is_not_opened(tmp_path):
    """Its reading end would let go a writer of the target's that waits for a reader, and then break its pipe."""
    path = tmp_path / "gunicorn.conf.py"
    os.mkfifo(path)
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        assert libc.inotify_add_watch(watch, os.fsencode(path), 0x20) > 0  # IN_OPEN
        assert read(tmp_path)["timeout"].value is None
        with pytest.raises(BlockingIOError):
            os.read(watch, 4096)
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        assert os.read(watch, 4096)
    finally:
        os.close(watch)


@pytest.mark.parametrize("terms", [100, 1500, 20_000])
def test_a_long_sum(terms):
    found = parse(b"timeout = 1" + b"+1" * terms)
    assert found is None or found["timeout"] in (None, terms + 1)
