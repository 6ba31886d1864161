"""Who is watched: a process that ends while it is looked at costs itself only."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from stucktrace.node.tracker import Tracker

from tests.harness import kernel


def test_a_process_that_ends_while_it_is_classified(monkeypatch: pytest.MonkeyPatch) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        kernel.wait_for_call(child.pid, "clock_nanosleep")
        tracker = Tracker(re.compile(r"sleep\(600\)"), None)

        def gone(_: int) -> int:
            raise ProcessLookupError

        with monkeypatch.context() as ended:
            ended.setattr(os, "pidfd_open", gone)
            tracker.consider(child.pid)
        assert child.pid not in tracker.processes
        tracker.consider(child.pid)
        assert child.pid in tracker.processes
    finally:
        child.kill()
        child.wait(60)
