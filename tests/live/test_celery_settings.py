"""Celery's settings read from the memory of real processes: whatever way a project gives them, and whatever it lost."""

from __future__ import annotations

import json
import os
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from stucktrace.collectors import celery_settings
from stucktrace.collectors.process import read_process
from stucktrace.diagnosis import traps_celery
from stucktrace.facts.settings import CHANGED_SINCE, DEFAULT, NOT_SET, OK, SettingFact

from tests.harness import command, kernel, pythons, targets

PYTHONS = {pythons.name_of(path): path for path in pythons.interpreters()}
CASES = [
    *(pytest.param(path, True, id=name) for name, path in PYTHONS.items() if name[:4] in ("3.10", "3.12", "3.13")),
    pytest.param(sys.executable, True, id="used"),
    pytest.param(sys.executable, False, id="unused"),
]
SETUP = "from celery import Celery\napp = Celery('shop')\n"
USE = "app.conf.broker_url\n"


@contextmanager
def project(folder: Path, python: str = sys.executable, **files: str) -> Iterator[int]:
    """A process that imported `main`; its files are as old as those of an image."""
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        os.utime(path, (time.time() - 3600,) * 2)
    places = [str(folder), sysconfig.get_path("purelib")]
    code = (
        f"import sys, time; sys.dont_write_bytecode = True; sys.path[:0] = {places!r}\n"
        "import main\nprint('ready')\ntime.sleep(600)"
    )
    with pythons.run(code, python=python) as child:
        yield child.pid


def settings(pid: int) -> dict[str, SettingFact]:
    facts = celery_settings.collect(read_process(pid))
    assert "secret" not in repr(facts)
    return {fact.name: fact for fact in facts}


def problems(facts: dict[str, SettingFact]) -> set[str]:
    return {check.code for check in traps_celery.checks(tuple(facts.values())) if check.status != OK}


def audited(pid: int) -> tuple[int, set[str]]:
    """(exit status, what is not well) by the command itself, which shows no credential either."""
    done = command.run("audit", pid, "--json")
    text = command.run("audit", pid, "--verbose").stdout
    assert "secret" not in done.stdout + text and "Celery" in text
    checks = json.loads(done.stdout)["checks"]
    return done.status, {check["code"] for check in checks if check["status"] != OK}


def lost(facts: dict[str, SettingFact]) -> dict[str, tuple[tuple[str, object], ...]]:
    return {name.rpartition(".")[2]: fact.others for name, fact in facts.items() if fact.source == NOT_SET}


OPTIONS = (
    "{'confirm_publish': True, 'heartbeat': 7.5, 'password': 'secret', "
    "'socket_settings': {'TCP_KEEPIDLE': 10, 4: 5, Option.COUNT: 3}}"
)


@pytest.mark.parametrize(("python", "use"), CASES)
def test_what_is_set_and_what_is_not(tmp_path, python, use):
    main = (
        "import enum\nfrom celery import Celery\nclass Option(enum.IntEnum):\n    COUNT = 6\napp = Celery('shop', broker='amqp://me:secret@broker:5671/secret')\n"
        f"app.conf.update(broker_transport_options={OPTIONS}, broker_pool_limit=None, task_acks_late=True)\n"
        "app.conf.result_backend = 'db+postgresql://me:secret@database/x'\n" + (USE if use else "")
    )
    with project(tmp_path, python, main=main) as pid:
        found = settings(pid)
        if python == sys.executable:
            assert audited(pid) == (1, {"string-keys", "no-connection-pool"})
    assert all(fact.in_force and fact.known for fact in found.values())
    options = {
        name.removeprefix("broker_transport_options"): fact.value for name, fact in found.items() if "transport" in name
    }
    assert options == {
        "": "4 options",
        ".confirm_publish": True,
        ".heartbeat": 7.5,
        ".socket_settings['TCP_KEEPIDLE']": 10,
        ".socket_settings[4]": 5,
        ".socket_settings[6]": 3,
    }
    values = {name: fact.value for name, fact in found.items()}
    assert values["broker_url"] == "amqp://broker:5671"
    assert values["result_backend"] == "db+postgresql"
    assert (values["broker_pool_limit"], values["task_acks_late"]) == (None, True)
    assert values["app_state"] == ("configured" if use else "not used yet")
    assert (found["worker_prefetch_multiplier"].value, found["worker_prefetch_multiplier"].source) == (4, DEFAULT)
    assert problems(found) == {"string-keys", "no-connection-pool"}


BASE = """
CELERY_BROKER_URL = "amqp://me:secret@broker//"
CELERY_BROKER_TRANSPORT_OPTIONS = {"confirm_publish": True, "heartbeat": 30}
CELERY_TASK_ACKS_LATE = True
"""
NAMESPACED = SETUP + "app.config_from_object('conf.production', namespace='CELERY')\nimport conf.production\n"
STARS = "from .base import *\nCELERY_WORKER_CONCURRENCY = 3\n"
REPLACED = "CELERY_BROKER_TRANSPORT_OPTIONS = {'socket_settings': {4: 5}}\n"
MERGED = "CELERY_BROKER_TRANSPORT_OPTIONS = {**CELERY_BROKER_TRANSPORT_OPTIONS, 'read_timeout': 20}\n"


def test_an_overlay_that_replaces_and_one_that_adds(tmp_path):
    files = {"main": NAMESPACED, "conf__base": BASE}
    with project(tmp_path, **files, conf__production=STARS + REPLACED) as pid:
        found = settings(pid)
        assert audited(pid) == (5, {"settings-overlay"})
    where = f"{tmp_path}/conf/base.py:3"
    assert lost(found) == {"confirm_publish": ((where, True),), "heartbeat": ((where, 30),)}
    assert problems(found) == {"settings-overlay"}
    assert found["broker_transport_options"].source == f"{tmp_path}/conf/production.py:3"
    assert (found["task_acks_late"].value, found["task_acks_late"].source) == (True, f"{tmp_path}/conf/base.py:4")
    assert (found["worker_concurrency"].value, found["broker_url"].value) == (3, "amqp://broker")
    files["main"] += USE
    with project(tmp_path, **files, conf__production=STARS + MERGED) as pid:
        found = settings(pid)
    assert found["broker_transport_options.heartbeat"].value == 30
    assert problems(found) == set()


OLD_STYLE = "BROKER_URL = 'amqp://broker'\nBROKER_TRANSPORT_OPTIONS = {'heartbeat': 30}\nBROKER_HEARTBEAT = 20\n"


@pytest.mark.parametrize(
    ("files", "gone"),
    [
        # The last word is a file of this machine's own.
        (
            {
                "main": SETUP + "app.config_from_object('conf')\nimport conf\n",
                "conf": OLD_STYLE + "try:\n    from local import *\nexcept ImportError:\n    pass\n",
                "local": "BROKER_TRANSPORT_OPTIONS = {'read_timeout': 20}\n",
            },
            {"heartbeat": "conf.py:2"},
        ),
        # The second object replaces the first one.
        (
            {
                "main": SETUP + "app.config_from_object('conf')\nimport conf\napp.config_from_object('more')\n" + USE,
                "conf": OLD_STYLE,
                "more": "BROKER_URL = 'amqp://broker'\n",
            },
            {"heartbeat": "conf.py:2", "broker_heartbeat": "conf.py:3"},
        ),
        # A class, over its base.
        (
            {
                "main": SETUP + "import conf\napp.config_from_object(conf.Production)\n" + USE,
                "conf": "class Base:\n    broker_url = 'amqp://broker'\n    broker_transport_options = {'heartbeat': 30}\n"
                "class Production(Base):\n    broker_transport_options = {'read_timeout': 20}\n",
            },
            {"heartbeat": "conf.Base.broker_transport_options"},
        ),
        # The application's own code.
        (
            {
                "main": SETUP + "app.config_from_object('conf')\nimport conf\n"
                "app.conf.broker_transport_options = {'read_timeout': 20}\n" + USE,
                "conf": OLD_STYLE.replace("BROKER_HEARTBEAT = 20\n", ""),
            },
            {"heartbeat": "conf.BROKER_TRANSPORT_OPTIONS"},
        ),
        # One dict of all settings over another one.
        (
            {
                "main": SETUP + "import conf\napp.config_from_object(conf.CELERY)\n" + USE,
                "conf": "from base import *\nCELERY = {'broker_url': 'amqp://broker'}\n",
                "base": "CELERY = {'broker_transport_options': {'heartbeat': 30}, 'broker_heartbeat': 20}\n",
            },
            {"heartbeat": "base.py:1", "broker_heartbeat": "base.py:1"},
        ),
        # Flask's way: the dict of a class over that of its base.
        (
            {
                "main": "from celery import Celery\nimport conf\ndef make():\n    app = Celery('shop')\n"
                "    app.config_from_object(conf.Production.CELERY)\n    return [app]\nmade = make()\n",
                "conf": "class Base:\n    CELERY = {'broker_transport_options': {'heartbeat': 30}, 'task_acks_late': True}\n"
                "class Production(Base):\n    CELERY = {'broker_url': 'amqp://broker'}\n",
            },
            {"heartbeat": "conf.Base.CELERY", "task_acks_late": "conf.Base.CELERY"},
        ),
        # A dict that updates the application.
        (
            {
                "main": SETUP + "from conf import OURS\napp.conf.update(OURS)\n" + USE,
                "conf": "from base import *\nOURS = dict(broker_url='amqp://b', broker_transport_options={'read_timeout': 2})\n",
                "base": "OURS = {'broker_transport_options': {'heartbeat': 30}}\n",
            },
            {"heartbeat": "base.py:1"},
        ),
        # The same file, for one environment.
        (
            {
                "main": SETUP + "app.config_from_object('conf')\nimport conf\n",
                "conf": "import os\nbroker_url = 'amqp://b'\nbroker_transport_options = {'heartbeat': 30}\n"
                "if 'PATH' in os.environ:\n    broker_transport_options = {'read_timeout': 20}\n",
            },
            {"heartbeat": "conf.py:3"},
        ),
        # Code, twice.
        (
            {
                "main": SETUP + "app.conf.broker_transport_options = {'heartbeat': 30}\nimport more\n" + USE,
                "more": "from main import app\napp.conf.update(broker_transport_options={'read_timeout': 20})\n",
            },
            {"heartbeat": "main.py:3"},
        ),
    ],
    ids=["local", "second", "class", "code", "dict", "flask", "updated", "environment", "twice"],
)
def test_other_ways_to_lose_settings(tmp_path, files, gone):
    with project(tmp_path, **files) as pid:
        found = settings(pid)
    named = {name.rpartition(".")[2]: fact for name, fact in found.items() if fact.others}
    assert {name: fact.others[0][0].removeprefix(f"{tmp_path}/") for name, fact in named.items()} == gone
    assert "settings-overlay" in problems(found)


NO_LOSS = {
    "conditional": "import os\nif 'PATH' in os.environ:\n    BROKER_TRANSPORT_OPTIONS = {'heartbeat': 30}\n",
    "not_taken": "if 1 > 2:\n    BROKER_TRANSPORT_OPTIONS = {}\nelse:\n    BROKER_TRANSPORT_OPTIONS = {'heartbeat': 30}\n",
    "updated": "BROKER_TRANSPORT_OPTIONS = {}\nBROKER_TRANSPORT_OPTIONS.update({'heartbeat': 30})\n",
    "deleted": "BROKER_TRANSPORT_OPTIONS = {'heartbeat': 30}\ndel BROKER_TRANSPORT_OPTIONS['heartbeat']\n",
    "computed": "BROKER_TRANSPORT_OPTIONS = dict(zip(['heartbeat'], [30]))\n",
    "kept": "BROKER_TRANSPORT_OPTIONS = {'read_timeout': 5}\n",
    "of_redis": "BROKER_TRANSPORT_OPTIONS = {'visibility_timeout': 5}\n",
}


def test_what_is_no_evidence_of_a_loss(tmp_path):
    stars = "".join(f"from {name} import *\n" for name in NO_LOSS)
    conf = stars + "BROKER_URL = 'amqp://broker'\nBROKER_TRANSPORT_OPTIONS = {'read_timeout': 20}\n"
    main = SETUP + "app.config_from_object('conf')\nimport conf\n" + USE
    # Another module's variables are no settings, whatever they are called; nor is a module that nobody imported.
    others = {"other": "BROKER_TRANSPORT_OPTIONS = {'heartbeat': 1}\n", "absent": OLD_STYLE}
    with project(tmp_path, main=main + "import other\nfrom other import *\n", conf=conf, **NO_LOSS, **others) as pid:
        assert problems(settings(pid)) == set()


def test_a_file_that_was_changed_since(tmp_path):
    main = SETUP + "app.config_from_object('conf')\nimport conf\n" + USE
    with project(tmp_path, main=main, conf="broker_url = 'amqp://broker'\ntask_acks_late = False\n") as pid:
        file = tmp_path / "conf.py"
        file.write_text(
            "broker_url = 'amqp://broker'\ntask_acks_late = True\nbroker_transport_options = {'heartbeat': 30}\n"
        )
        os.utime(file, (time.time() + 60,) * 2)
        found = settings(pid)
        assert lost(found) == {"heartbeat": ((f"{file}:3{CHANGED_SINCE}", 30),)}
        assert found["task_acks_late"].others[0] == (f"{file}:2{CHANGED_SINCE}", True)
        assert problems(found) == {"settings-changed"}
        # Written again as it was: nothing is amiss.
        file.write_text("# As before.\nbroker_url = 'amqp://broker'\ntask_acks_late = False\n")
        os.utime(file, (time.time() + 60,) * 2)
        assert problems(settings(pid)) == set()


@pytest.mark.parametrize("pool", ["gevent", "threads"])
def test_what_a_worker_made_of_its_command_line(pool):
    """A worker of greenlets has its frames on no stack while it waits; gevent has Celery make an application besides."""
    start = [sys.executable, "-m", "celery", "-A", "memory_celery", "worker", "--loglevel", "INFO", "--without-mingle"]
    with targets.start([*start, "-P", pool, "-c", "3"], cwd=targets.TARGETS, ready=False) as target:
        kernel.wait_until(lambda: "ready." in target.log(), "the worker is ready")
        found = settings(target.pid)
    values = {name: fact.value for name, fact in found.items()}
    assert (values["app"], values["app_role"], values["broker_url"]) == ("memory_celery", "worker", "memory://")
    assert (values["worker_concurrency"], values["worker_pool"]) == (3, pool)
