"""Worker classes by their names, and roles as far as one command line tells them."""

from __future__ import annotations

import os

import pytest
from stucktrace.collectors import workers
from stucktrace.collectors.workers import HIDDEN, Start

NOBODY = 1 << 30


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("sync", "sync"),
        ("gthread", "gthread"),
        ("egg:gunicorn#gevent", "gevent"),
        ("gunicorn.workers.ggevent.GeventWorker", "gevent"),
        ("uvicorn.workers.UvicornWorker", "uvicorn"),
        ("uvicorn_worker.UvicornWorker", "uvicorn"),
        ("aiohttp.GunicornWebWorker", "aiohttp"),
        ("my.own.Worker", "Worker"),
        ("", ""),
    ],
)
def test_classes(given, name):
    assert workers.class_name(given) == name


@pytest.mark.parametrize(
    ("argv", "kind"),
    [
        (("gunicorn: master [app]",), "gunicorn-master"),
        (("gunicorn: worker [app]",), "gunicorn-worker"),
        (("[celeryd: w@h:MainProcess] -active- (worker)",), "celery-main"),
        (("[celeryd: w@h:ForkPoolWorker-1]",), "celery-child"),
        (("[celery beat]",), "celery-beat"),
        (("python", "-m", "gunicorn", "app"), "gunicorn-master"),
        (("celery", "-A", "proj", "worker"), "celery-main"),
        (("python", "app.py"), "python"),
    ],
)
def test_roles(argv, kind):
    assert workers.kind_of(Start(NOBODY, 0, argv), is_python=True) == kind


def test_no_python():
    assert workers.kind_of(Start(NOBODY, 0, ("nginx",)), is_python=False) == "other"


def test_a_title_hides_the_limits_unless_memory_tells_them():
    start = Start(NOBODY, 0, ("gunicorn: master [app]",))
    fact = workers.read_worker(start, is_python=True, environ={})
    assert (fact.timeout_s, fact.timeout_source, fact.worker_class) == (None, HIDDEN, "")
    start = Start(os.getpid(), 0, start.argv, ("python", "/venv/bin/gunicorn", "-t", "77", "--threads", "4", "app"))
    fact = workers.read_worker(start, is_python=True, environ={})
    assert (fact.timeout_s, fact.timeout_source, fact.worker_class, fact.threads) == (77, "command line", "gthread", 4)


def test_an_application_that_embeds_gunicorn_hides_them_too():
    start = Start(NOBODY, 0, ("gunicorn: worker [app]",), ("python", "serve.py", "--timeout", "77"))
    fact = workers.read_worker(start, is_python=True, environ={})
    assert (fact.timeout_s, fact.timeout_source) == (None, HIDDEN)


def test_celery_limits():
    argv = ("celery", "-A", "p", "worker", "-P", "gevent", "-c", "100", "--soft-time-limit", "55", "--time-limit=66")
    fact = workers.read_worker(Start(NOBODY, 0, argv), is_python=True, environ={})
    assert (fact.pool, fact.concurrency, fact.timeout_s, fact.hard_timeout_s) == ("gevent", 100, 55, 66)


def test_celery_settings_may_name_the_pool():
    """Without the option and without children nothing tells which pool it is."""
    fact = workers.read_worker(Start(NOBODY, 0, ("celery", "-A", "p", "worker")), is_python=True, environ={})
    assert (fact.pool, fact.timeout_s, fact.concurrency) == ("", None, None)


def test_a_timeout_of_zero_kills_nobody():
    argv = ("gunicorn", "--timeout", "0", "app")
    fact = workers.read_worker(Start(NOBODY, 0, argv), is_python=True, environ={})
    assert (fact.timeout_s, fact.seconds_to_kill) == (0, None)
