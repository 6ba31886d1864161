"""Which source of gunicorn's settings wins, against what the process itself says."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from stucktrace.collectors import celery_options, gunicorn_memory, gunicorn_settings
from stucktrace.facts.settings import DEFAULT, MEMORY

PROCESS = SimpleNamespace(pid=os.getpid())


@pytest.fixture
def found(monkeypatch, tmp_path):
    """The settings by name, of a process with this memory, command line, environment and config file."""

    def read(memory, arguments="", environ=None, file=None):
        path = tmp_path / "gunicorn.conf.py"
        if file is not None:
            path.write_text(file)
        monkeypatch.setattr(gunicorn_memory, "read", lambda pid, names: memory)
        argv = ["gunicorn", *(["-c", str(path)] if file is not None else []), *arguments.split(), "app:app"]
        facts, config = gunicorn_settings.collect(PROCESS, argv, environ, None)
        assert config.path == (str(path) if file is not None else "")
        return {fact.name: (fact.value if fact.known else "?", fact.source.rpartition("/")[2]) for fact in facts} | {
            "others": {fact.name: fact.others for fact in facts}
        }

    return read


def test_the_first_source_wins(found):
    facts = found(
        {}, "-t 9 --max-requests-jitter 3", {"GUNICORN_CMD_ARGS": "-t 8 --threads=4"}, "timeout = 7\nkeepalive = 6"
    )
    assert facts["timeout"] == (9, "command line")
    assert [value for _, value in facts["others"]["timeout"]] == [8, 7]
    assert facts["threads"] == (4, "GUNICORN_CMD_ARGS")
    assert facts["keepalive"] == (6, "gunicorn.conf.py")
    assert facts["workers"] == (1, DEFAULT)
    assert facts["max_requests"] == (0, DEFAULT), "only its jitter was given"
    assert facts["max_requests_jitter"] == (3, "command line")


def test_memory_is_the_truth_and_the_sources_explain_it(found):
    memory = {"timeout": 44, "keepalive": 5, "workers": 9, "preload_app": True, "threads": 1}
    facts = found(memory, "--preload", {"WEB_CONCURRENCY": "9"}, "keepalive = 2 + later()\ntimeout = 7")
    assert facts["timeout"] == (44, MEMORY), "no source says so: the file was changed, or the application set it"
    assert facts["others"]["timeout"][0][1] == 7
    assert facts["keepalive"] == (5, "gunicorn.conf.py"), "computed there"
    assert facts["workers"] == (9, "WEB_CONCURRENCY")
    assert facts["preload_app"] == (True, "command line")
    assert facts["threads"] == (1, DEFAULT)


def test_a_file_that_cannot_be_read_explains_only_what_nothing_else_does(found):
    facts = found({"timeout": 44, "keepalive": 2, "threads": 4}, "--threads 4", {}, "timeout = (((")
    assert facts["timeout"] == (44, "gunicorn.conf.py")
    assert facts["keepalive"] == (2, DEFAULT)
    assert facts["threads"] == (4, "command line")
    assert found({"timeout": 44}, "", {}, "timeout = 44\n" + "#" * (1 << 18))["keepalive"] == ("?", "gunicorn.conf.py")


def test_what_is_not_known(found):
    facts = found({}, "", {}, "timeout = later()\nworker_tmp_dir = None")
    assert facts["timeout"] == ("?", "gunicorn.conf.py")
    assert facts["worker_tmp_dir"] == (None, "gunicorn.conf.py")
    assert found({}, "-w 3", None)["timeout"] == ("?", "GUNICORN_CMD_ARGS"), "the environment cannot be read"
    assert found({}, "-w 3", None)["workers"] == (3, "command line")


def test_celerys_command_line():
    argv = [
        "celery",
        "-A",
        "proj",
        "worker",
        "-c4",
        "-P",
        "threads",
        "-O",
        "fair",
        "--time-limit=30.5",
        "--without-heartbeat",
    ]
    assert {fact.name: fact.value for fact in celery_options.collect(argv)} == {
        "worker_pool": "threads", "worker_concurrency": 4, "task_time_limit": 30.5, "optimization": "fair",
        "without_heartbeat": True,
    }  # fmt: skip
    assert celery_options.collect(["celery", "beat"]) == ()
