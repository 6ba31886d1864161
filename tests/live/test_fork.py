"""Locks that were copied while a thread of the parent held them, in the child that waits for them; with both engines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import command, crowd

pytestmark = pytest.mark.xdist_group("fork")
OWNED = ["log_handler", "rlock", "mutex"]
engines = pytest.mark.parametrize("engine", ["auto", "none"])


@pytest.fixture(scope="module")
def hung(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, crowd.Hung]]:
    folder: Path = tmp_path_factory.mktemp("imports")
    with crowd.start("stuck_forks.py", [*OWNED, "lock", "import_lock"], str(folder)) as programs:
        yield programs


@engines
@pytest.mark.parametrize("case", OWNED)
def test_an_owner_that_is_a_thread_of_the_parent(hung: dict[str, crowd.Hung], case: str, engine: str):
    target = hung[case]
    target.wait("futex")
    report = command.check(target.pid, "orphaned-lock", "--engine", engine, confidence="proven")
    assert f"a thread of its parent, pid {target.target.pid}" in report.summary
    assert "fork" in report.summary
    (owner,) = (owner for lock in report["locks"] for owner in lock["owners"])
    assert owner["state"] == "absent"
    assert any("do not fork" in later["do"] for later in report.verdict["remedy"]["later"])


@engines
def test_the_log_record_names_where_it_waits(hung: dict[str, crowd.Hung], engine: str):
    target = hung["log_handler"]
    target.wait("futex")
    report = command.check(target.pid, "orphaned-lock", "--engine", engine)
    frames = [frame["function"] for thread in report["threads"] for frame in thread["python"]]
    assert any(function.endswith("acquire") for function in frames)


@engines
def test_a_lock_without_an_owner(hung: dict[str, crowd.Hung], engine: str):
    target = hung["lock"]
    target.wait("futex", 6)
    report = command.check(target.pid, "orphaned-lock", "--engine", engine, confidence="likely")
    assert f"pid {target.target.pid}" in report.summary


@engines
def test_an_import_lock(hung: dict[str, crowd.Hung], engine: str):
    target = hung["import_lock"]
    target.wait("futex", 6)
    report = command.check(target.pid, "orphaned-lock", "--engine", engine)
    assert report.confidence in ("proven", "likely")


@engines
@pytest.mark.parametrize("case", [*OWNED, "lock", "import_lock"])
def test_the_parent_is_healthy(hung: dict[str, crowd.Hung], case: str, engine: str):
    report = command.explain(hung[case].target.pid, "--engine", engine, "--stuck-after", 2)
    assert report.verdict["class"] == "healthy", report.summary
