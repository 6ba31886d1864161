"""Command lines and process titles, as gunicorn, Celery and their users write them."""

from __future__ import annotations

import pytest
from stucktrace.collectors import command_line
from stucktrace.collectors.command_line import CELERY_BEAT, CELERY_WORKER, GUNICORN, OTHER, option


def read(text: str) -> command_line.CommandLine:
    return command_line.read(text.split(" "))


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("/venv/bin/python3 /venv/bin/gunicorn -w 4 app:app", GUNICORN),
        ("python3.11 -m gunicorn app:app", GUNICORN),
        ("python -u -W ignore -X dev -m gunicorn app:app", GUNICORN),
        ("/usr/bin/python3 -Bm gunicorn.app.wsgiapp app:app", GUNICORN),
        ("gunicorn app:app", GUNICORN),
        ("pypy3 /usr/bin/gunicorn app:app", GUNICORN),
        ("/usr/bin/python3 /usr/local/bin/celery -A proj worker -l info", CELERY_WORKER),
        ("celery worker -A proj", CELERY_WORKER),
        ("python -m celery --app proj -b redis://broker worker -c 4", CELERY_WORKER),
        ("python -m celery --app=proj --broker=redis://broker worker", CELERY_WORKER),
        ("celery -A beat worker", CELERY_WORKER),
        ("celery -A worker beat", CELERY_BEAT),
        ("celery -A proj worker -B", CELERY_WORKER),
        ("python manage.py celery worker", CELERY_WORKER),
        ("celery -A proj flower", OTHER),
        ("celery -A proj inspect active", OTHER),
        ("python -c import+gunicorn gunicorn app:app", OTHER),
        ("python -mgunicorn app:app", GUNICORN),
        ("/venv/bin/python /venv/bin/coverage run -m gunicorn app:app", GUNICORN),
        ("python -m debugpy --listen 5678 -m celery -A proj worker", CELERY_WORKER),
        ("python -m coverage run serve.py", OTHER),
        ("python serve.py gunicorn", OTHER),
        ("vim gunicorn.conf.py", OTHER),
        ("bash -c gunicorn+app:app", OTHER),
        ("python", OTHER),
        ("", OTHER),
    ],
)
def test_programs(text, program):
    assert read(text).program == program


def test_nothing_at_all():
    assert command_line.read(()).program == OTHER
    assert command_line.program_name(()) == ""


@pytest.mark.parametrize(
    ("title", "program", "role"),
    [
        ("gunicorn: master [app:app]", GUNICORN, "master"),
        ("gunicorn: worker [app:app]", GUNICORN, "worker"),
        ("gunicorn: arbiter [app]", GUNICORN, "master"),
        ("[celeryd: celery@host:MainProcess] -active- (-A proj worker -c 2)", CELERY_WORKER, "master"),
        ("[celeryd: w1@host:ForkPoolWorker-12]", CELERY_WORKER, "worker"),
        ("[celery beat] -A proj beat", CELERY_BEAT, ""),
    ],
)
def test_titles(title, program, role):
    line = command_line.read((title,))
    assert (line.program, line.role, line.title) == (program, role, title)


def test_a_celery_title_repeats_its_arguments():
    line = command_line.read(("[celeryd: celery@host:MainProcess] -active- (-A proj worker -c 2 --time-limit=66)",))
    assert option(line.arguments, "-c", "--concurrency") == "2"
    assert option(line.arguments, "--time-limit") == "66"


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("-t 90", "90"),
        ("-t90", "90"),
        ("-t=90", "90"),
        ("-Dt90", "90"),
        ("-RDt 90", "90"),
        ("--timeout 90", "90"),
        ("--timeout=90", "90"),
        ("--timeo 90", "90"),
        ("--timeo=90", "90"),
        ("--timeout 30 -t 90", "90"),
        ("--timeout 0", "0"),
        ("--timeout=", ""),
        ("--timeout-keepalive 90", None),
        ("--threads 90", None),
        ("--t 90", None),
        ("--timeout", None),
        ("app:app", None),
    ],
)
def test_options(words, value):
    assert option(words.split(), "-t", "--timeout") == value


def test_options_that_begin_alike():
    arguments = "--worker-connections 500 --worker-tmp-dir /dev/shm --workers 3 -k gevent".split()
    assert option(arguments, "-k", "--worker-class") == "gevent"
    assert option(arguments, "-w", "--workers") == "3"
    assert option(["--soft-time-limit=5"], "--time-limit") is None


def test_program_names():
    assert command_line.program_name("/usr/bin/python3 /usr/bin/supervisord -n".split()) == "supervisord"
    assert command_line.program_name("python3 -m supervisor.supervisord".split()) == "supervisor.supervisord"


def test_numbers():
    assert command_line.number("30") == 30
    assert command_line.number("0") == 0
    for text in (None, "", "many", "nan", "inf", "-inf"):
        assert command_line.number(text) is None


def test_quotes_in_the_environment():
    assert command_line.split("--timeout 90 --name 'a b'") == ["--timeout", "90", "--name", "a b"]
    assert command_line.split("--name 'a b") == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("--broker=amqp://guest:s3cret@mq:5672//", "--broker=amqp://(hidden)@mq:5672//"),
        ("redis://:p@ss/word@cache/0", "redis://(hidden)@cache/0"),
        ("http://localhost:8000/a ann@example.org", "http://localhost:8000/a ann@example.org"),
        ("worker@host", "worker@host"),
    ],
)
def test_no_password_of_a_url_is_shown(text, shown):
    assert command_line.without_userinfo(text) == shown
