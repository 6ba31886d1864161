"""Distributions and their versions in the names of metadata folders, and the folders that are searched."""

from __future__ import annotations

import os

import pytest
from stucktrace.collectors import packages
from stucktrace.collectors.interpreter import Interpreter
from stucktrace.collectors.regions import Regions


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("celery-5.7.0.dist-info", {"celery": "5.7.0"}),
        ("psycopg2_binary-2.9.13.dist-info", {"psycopg2-binary": "2.9.13"}),
        ("zope.interface-8.7.dist-info", {"zope-interface": "8.7"}),
        ("PyYAML-6.0.dist-info", {"pyyaml": "6.0"}),
        ("gunicorn-20.1.0.egg-info", {"gunicorn": "20.1.0"}),
        ("gunicorn-20.1.0-py3.9.egg-info", {"gunicorn": "20.1.0"}),
        ("greenlet-2.0.2-py3.9-linux-x86_64.egg-info", {}),
        ("torch-2.1.0+cu118.dist-info", {"torch": "2.1.0+cu118"}),
        ("celery-5.0.0rc1.dist-info", {"celery": "5.0.0rc1"}),
        ("celery", {}),
        ("celery.egg-info", {}),
        ("~elery-5.7.0.dist-info", {"~elery": "5.7.0"}),
        ("__pycache__", {}),
    ],
)
def test_names(name, found):
    if name.startswith("greenlet"):
        found = {"greenlet": "2.0.2"} if packages.from_names((name,)) else {}
    assert packages.from_names((name,)) == found


def environment(folder, *names: str, settings: str | None = None, version: str = "3.11"):
    site = folder / "lib" / f"python{version}" / "site-packages"
    site.mkdir(parents=True)
    for name in names:
        (site / f"{name}.dist-info").mkdir()
    if settings is not None:
        (folder / "pyvenv.cfg").write_text(settings)
    return folder


def read(argv: tuple[str, ...], executable: str = "/nowhere/bin/python3.11", environ: dict[str, str] | None = None):
    return packages.read_packages(os.getpid(), Regions(()), Interpreter("3.11.2", executable), argv, environ or {})


def test_an_isolated_environment_hides_the_base(tmp_path):
    base = environment(tmp_path / "base", "celery-4.0.0", "old-1.0")
    venv = environment(
        tmp_path / "venv", "celery-5.7.0", settings=f"home = {base}/bin\ninclude-system-site-packages = false\n"
    )
    python = f"{base}/bin/python3.11"
    assert read((f"{venv}/bin/python", f"{venv}/bin/gunicorn"), python) == {"celery": "5.7.0"}


def test_an_environment_above_the_base(tmp_path):
    base = environment(tmp_path / "base", "celery-4.0.0", "old-1.0")
    venv = environment(
        tmp_path / "venv", "celery-5.7.0", settings=f"home = {base}/bin\ninclude-system-site-packages = true\n"
    )
    found = read((f"{venv}/bin/python",), f"{base}/bin/python3.11")
    assert (found["celery"], found["old"]) == ("5.7.0", "1.0")


def test_the_search_path_comes_first(tmp_path):
    venv = environment(tmp_path / "venv", "celery-5.7.0", settings="include-system-site-packages = false\n")
    extra = tmp_path / "extra"
    (extra / "celery-9.9.dist-info").mkdir(parents=True)
    argv = (f"{venv}/bin/python",)
    assert read(argv, environ={"PYTHONPATH": f"relative:{extra}"})["celery"] == "9.9"


def test_an_activated_environment_is_not_the_one_that_runs(tmp_path):
    """VIRTUAL_ENV is inherited by whatever a shell starts; Python itself does not look at it."""
    venv = environment(tmp_path / "venv", "celery-5.7.0", settings="include-system-site-packages = false\n")
    base = environment(tmp_path / "base", "kombu-5.0")
    found = read((f"{base}/bin/python3.11",), f"{base}/bin/python3.11", {"VIRTUAL_ENV": str(venv)})
    assert found["kombu"] == "5.0" and "celery" not in found


def test_a_bare_name_is_looked_up_on_the_path(tmp_path):
    venv = environment(tmp_path / "venv", "celery-5.7.0", settings="include-system-site-packages = false\n")
    (venv / "bin").mkdir()
    (venv / "bin" / "python").touch()
    assert read(("python", "app.py"), environ={"PATH": f"/nowhere:{venv}/bin"}) == {"celery": "5.7.0"}
    assert read(("gunicorn: worker [app]",)) == read(())
