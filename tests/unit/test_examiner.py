"""What is kept of examinations for the next ones: not for ever."""

from __future__ import annotations

import time
from typing import Any

import pytest
from stucktrace.diagnosis.model import Budgets
from stucktrace.node import examiner
from stucktrace.node.examiner import Examined, Examiner

from tests.harness import kernel

NOBODY = 1 << 22
"""No process has this pid: it is the first that none can have."""


def test_what_was_found_of_a_process_that_ended_meanwhile_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    sightings: Any = None
    found = Examiner("none", sightings, lambda: None)
    found.forget(7)
    found._earlier[7] = time.monotonic(), sightings
    answers: list[Examined] = []
    found.submit((NOBODY,), Budgets())
    kernel.wait_until(lambda: answers.extend(found.answers()) or answers, "the answer")
    assert answers[0].gone and 7 in found._earlier
    monkeypatch.setattr(examiner, "KEPT_S", 0.0)
    found.submit((NOBODY,), Budgets())
    assert 7 not in found._earlier
