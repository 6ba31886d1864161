"""Locks on files, from tests/targets/stuck_file_locks.py, with both engines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import command, crowd, kernel

pytestmark = pytest.mark.xdist_group("file_locks")
CALLS = {"twice": "flock", "behind_another": "flock", "record_behind_another": "fcntl", "behind_a_stopped_one": "flock",
         "crossed": "flock"}  # fmt: skip
engines = pytest.mark.parametrize("engine", ["auto", "none"])


@pytest.fixture(scope="module")
def hung(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, crowd.Hung]]:
    folder: Path = tmp_path_factory.mktemp("files")
    programs: dict[str, crowd.Hung] = {}
    import contextlib

    with contextlib.ExitStack() as stack:
        for case in CALLS:
            programs.update(
                stack.enter_context(crowd.start("stuck_file_locks.py", [case], str(folder / f"{case}.lock")))
            )
        yield programs


def settled(target: crowd.Hung, case: str, seconds: float) -> None:
    kernel.wait_for_call(target.pid, CALLS[case])
    kernel.wait_until(lambda: kernel.asleep_s(target.pid) >= seconds, f"{case} asleep")


@engines
def test_two_opens_of_one_file(hung: dict[str, crowd.Hung], engine: str):
    target = hung["twice"]
    settled(target, "twice", 2)
    report = command.check(target.pid, "deadlock", "--engine", engine, confidence="proven")
    assert "twice.lock" in report.summary


@engines
@pytest.mark.parametrize("case", ["behind_another", "record_behind_another"])
def test_a_live_holder(hung: dict[str, crowd.Hung], case: str, engine: str):
    target = hung[case]
    settled(target, case, 3)
    report = command.check(target.pid, "waiting", "--engine", engine, "--stuck-after", 3600)
    assert f"{case}.lock" in report.summary
    assert str(target.words[2]) in report.summary
    past = command.check(target.pid, "inconclusive", "--engine", engine, "--stuck-after", 2)
    assert str(target.words[2]) in past.summary


@engines
def test_a_stopped_holder(hung: dict[str, crowd.Hung], engine: str):
    target = hung["behind_a_stopped_one"]
    settled(target, "behind_a_stopped_one", 6)
    report = command.check(target.pid, "lock-held", "--engine", engine)
    assert any(f"kill -CONT {target.words[2]}" in now["do"] for now in report.verdict["remedy"]["now"])


@engines
def test_two_processes_with_two_files(hung: dict[str, crowd.Hung], engine: str):
    target = hung["crossed"]
    settled(target, "crossed", 2)
    for one, other in (target.words[1:], target.words[:0:-1]):
        report = command.check(one, "deadlock", "--engine", engine, confidence="proven")
        assert f"(pid {other})" in report.summary
